"""What the wheel holds, and what an import loads."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
MAPPED = ("runtime", "export", "calibration")


def settings() -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")
    data: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return data


def loaded_after(code: str) -> set[str]:
    program = f"import sys\n{code}\nprint(*sys.modules)"
    out = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(out.stdout.split())


def test_every_package_on_disk_is_in_the_wheel() -> None:
    setuptools = settings()["tool"]["setuptools"]
    found = set()
    for package, folder in setuptools["package-dir"].items():
        for init in (ROOT / folder).rglob("__init__.py"):
            inside = init.parent.relative_to(ROOT / folder).parts
            if not (
                package == "ufr_edge" and inside and inside[0] in MAPPED
            ):  # the links, on Pythons that follow
                found.add(".".join((package, *inside)))
    assert found == set(setuptools["packages"])


def test_every_data_file_is_in_the_wheel() -> None:
    setuptools = settings()["tool"]["setuptools"]
    data = {package: patterns for package, patterns in setuptools["package-data"].items()}
    missing = []
    for name in setuptools["packages"]:
        folder = ROOT.joinpath(*name.removeprefix("ufr_edge.").split("."))
        folder = (
            folder
            if name.startswith(tuple(f"ufr_edge.{m}" for m in MAPPED))
            else ROOT.joinpath(*name.split("."))
        )
        kept = {file for pattern in data.get(name, []) for file in folder.glob(pattern)}
        deep = name in ("ufr_edge.weights", "ufr_edge.demo")  # they hold folders of data
        here = folder.rglob("*") if deep else folder.glob("*")
        files = (
            f for f in here if f.is_file() and f.suffix not in (".py", ".pyc") and not f.name.startswith(".")
        )
        missing += [str(file.relative_to(ROOT)) for file in files if file not in kept]
    assert missing == []


@pytest.mark.parametrize("name", MAPPED)
def test_the_links_lead_to_the_folders_at_the_root(name: str) -> None:
    assert (ROOT / "ufr_edge" / name).resolve() == ROOT / name


def test_importing_the_runtime_loads_no_torch_and_no_second_copy() -> None:
    metadata.version("torch")  # it is installed here; else this test proves nothing
    loaded = loaded_after(
        "import ufr_edge.runtime, ufr_edge.runtime.bundle, ufr_edge.runtime.engines, ufr_edge.runtime.run"
    )
    assert not loaded & {"torch", "torchvision", "diffusers", "runtime", "export", "calibration"}
    assert not {name for name in loaded if name.startswith(("ufr_edge.export", "ufr_edge.calibration"))}


@pytest.mark.parametrize(
    "name", ["ufr_edge.calibration", "ufr_edge.calibration.frames", "ufr_edge.degradations"]
)
def test_these_load_no_torch_either(name: str) -> None:
    assert "torch" not in loaded_after(f"import {name}")


def test_no_extra_asks_for_torchvision() -> None:
    project = settings()["project"]
    wanted = [
        *project["dependencies"],
        *(item for e in project["optional-dependencies"].values() for item in e),
    ]
    assert not [item for item in wanted if item.startswith("torchvision")]


def test_make_installs_for_tests_what_the_extras_ask_for() -> None:
    """And without torchvision, which comes with neither; see the Makefile."""
    extras = settings()["project"]["optional-dependencies"]
    wanted = [item for name in ("spandrel", "codeformer") for item in extras[name] if item.startswith("spandrel")]
    (line,) = re.findall(r"\$\(PIP\) --no-deps (.*) \\\n", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert len(wanted) == 2 and line.split() == [*(f'"{item}"' for item in wanted), "einops"]


def test_the_base_install_asks_for_no_training_package() -> None:
    names = {re.split(r"[><=;\[ ]", item)[0] for item in settings()["project"]["dependencies"]}
    assert not names & {"torch", "diffusers", "onnx", "openvino", "nncf", "accelerate", "scikit-image"}


def test_the_version_is_the_same_everywhere() -> None:
    from ufr_edge import __version__

    assert settings()["project"]["version"] == __version__
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    numbers = re.findall(r"^## \[(\d[^\]]*)\]", changelog, flags=re.MULTILINE)
    assert numbers[0] == __version__
