"""Imports go one way: ufr_edge -> export -> calibration -> runtime (docs/architecture.md)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHARED = ("errors", "files", "optional", "progress")
TRAINING = {"torch", "torchvision", "diffusers", "accelerate", "safetensors", "skimage", "matplotlib"}

# What each room may import of this package, by the name after `ufr_edge.`.
ALLOWED = {
    "runtime": {"runtime", *SHARED},
    "calibration": {"calibration", "runtime", *SHARED},
    # downloads: where the cache folder is
    "export": {"export", "calibration", "runtime", "restorers", "downloads", *SHARED},
}


def sources(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and full dotted name of everything imported in `tree`, at any depth."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, item.name) for item in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = "." * node.level + (node.module or "")
            names = [item.name for item in node.names]
            yield from ((node.lineno, f"{prefix}.{name}") for name in names)


def module_level(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield what runs when the module is imported; not functions, not `if TYPE_CHECKING`."""
    for node in tree.body:
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if not typing_only and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield from imports(node)


def offences(path: Path, room: str) -> list[str]:
    found = []
    for line, name in imports(ast.parse(path.read_text(encoding="utf-8"))):
        top, _, rest = name.partition(".")
        wrong = top == "" or top in ALLOWED or (top == "ufr_edge" and rest.split(".")[0] not in ALLOWED[room])
        if room == "runtime":
            wrong = wrong or top in TRAINING
        # The version is a plain value of the package itself.
        if wrong and name != "ufr_edge.__version__":
            found.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    return found


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_imports_go_one_way(room: str) -> None:
    assert sources(room)
    assert [offence for path in sources(room) for offence in offences(path, room)] == []


def test_calibration_imports_no_torch_at_module_level() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sources("calibration")
        for line, name in module_level(ast.parse(path.read_text(encoding="utf-8")))
        if name.partition(".")[0] in TRAINING
    ]
    assert found == []


def test_the_rule_sees_an_offence(tmp_path: Path) -> None:
    code = "def f():\n    from ufr_edge.export import x\n    import torch.nn\n    from . import y\n    import runtime\n"
    names = [name for _, name in imports(ast.parse(code))]
    assert names == ["ufr_edge.export.x", "torch.nn", "..y", "runtime"]
    rooms = {"ufr_edge.export.x": "export", "ufr_edge.errors.UfrEdgeError": "errors"}
    assert [rooms[name] in ALLOWED["runtime"] for name in rooms] == [False, True]
