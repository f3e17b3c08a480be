"""What `bundle info`, `check` and `schema` say, and that the documentation holds."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from tiny_bundle import SIDE, entry, full_entry, manifest, write_tiny_bundle, write_tiny_onnx

from ufr_edge.cli import main
from ufr_edge.errors import BundleError
from ufr_edge.files import sha256_file
from ufr_edge.runtime.bundle import read_bundle, write_manifest
from ufr_edge.runtime.bundle_info import bundle_problems, describe_bundle
from ufr_edge.runtime.bundle_schema import manifest_schema
from ufr_edge.runtime.manifest import Manifest

DOCS = Path(__file__).parents[1] / "docs"
TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "null": type(None),
}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path / "tiny.ufr")


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A bundle with an engine for here, one for another machine, and one with a measured drop."""
    folder = tmp_path / "mixed.ufr"
    folder.mkdir()
    digest = sha256_file(write_tiny_onnx(folder / "tiny.onnx"))
    engines = (
        entry("fp32", onnx_sha256=digest),
        entry(
            "int8",
            precision="int8",
            onnx_sha256=digest,
            quality={"reference_drop_db": 0.12, "z_worst_drop_db": 9},
        ),
        entry(
            "orin",
            backend="tensorrt",
            format="tensorrt",
            onnx_sha256=digest,
            device_fingerprint={"gpu": "Orin"},
        ),
    )
    write_manifest(folder, manifest(*engines, files={"tiny.onnx": digest}))
    return folder


def test_info_names_the_choice_and_a_reason_for_each_other(mixed: Path) -> None:
    found = describe_bundle(mixed)
    assert found.chosen == "int8"
    reasons = {item.entry.name: item.turned_down for item in found.engines}
    assert reasons["int8"] == ""
    assert reasons["fp32"] == "int8 goes before it: int8 before fp32"
    assert re.search("gpu is|tensorrt is not installed", reasons["orin"])
    assert [item.drop_db for item in found.engines] == [None, 0.12, None]
    assert all(item.size == (mixed / "tiny.onnx").stat().st_size for item in found.engines)


def test_info_of_a_bundle_that_fits_nowhere(mixed: Path) -> None:
    whole = read_bundle(mixed).manifest
    write_manifest(mixed, replace(whole, engines=(whole.engine("orin"),)))
    found = describe_bundle(mixed)
    assert found.chosen is None
    assert found.engines[0].turned_down
    result = CliRunner().invoke(main, ["bundle", "info", str(mixed)])
    assert result.exit_code == 0
    assert "this machine runs: none of them" in result.stdout


def test_info_command(mixed: Path) -> None:
    text = CliRunner().invoke(main, ["bundle", "info", str(mixed)]).stdout
    for part in ("edge-s at 32 px", "0.12 dB", "this machine runs: int8", "not fp32: int8 goes before it"):
        assert part in text
    for part in ("code licence Apache-2.0", "parent: edge-s-256"):
        assert part in text
    value = json.loads(CliRunner().invoke(main, ["bundle", "info", str(mixed), "--json"]).stdout)
    assert value["chosen"] == "int8"
    assert value["lineage"] == {"parent": "edge-s-256"}
    assert value["engines"][1]["drop_db"] == 0.12
    assert value["engines"][1]["turned_down"] is None


def check(bundle: Path, *flags: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["bundle", "check", str(bundle), *flags])
    return result.exit_code, result.output


def test_check_passes_a_whole_bundle(bundle: Path) -> None:
    assert check(bundle) == (0, f"{bundle}: 1 files, all as the manifest says\n")
    assert bundle_problems(read_bundle(bundle)) == ()


def test_check_names_every_file_that_is_wrong(bundle: Path, tmp_path: Path) -> None:
    (bundle / "tiny.onnx").write_bytes(b"broken")
    (bundle / "deep").mkdir()
    (bundle / "deep" / "extra.bin").write_bytes(b"x")
    (bundle / "way-out").symlink_to(tmp_path)
    code, text = check(bundle)
    assert code == 1
    for part in (
        "tiny.onnx is damaged",
        "deep/extra.bin is not in the manifest",
        "way-out is not in the manifest",
    ):
        assert part in text
    value = json.loads(CliRunner().invoke(main, ["bundle", "check", str(bundle), "--json"]).stdout)
    assert len(value["problems"]) == 3


def test_check_wants_the_onnx_of_each_engine(bundle: Path) -> None:
    whole = read_bundle(bundle).manifest
    engines = (whole.engines[0], replace(whole.engines[1], onnx_sha256="9" * 64))
    write_manifest(bundle, replace(whole, engines=engines))
    code, text = check(bundle)
    assert code == 1
    assert "Engine ov-fp32 was built from an ONNX that is not in the bundle" in text


def test_check_of_a_newer_schema(bundle: Path) -> None:
    path = bundle / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 2, "needs_ufr_edge": "8.0"}))
    code, text = check(bundle)
    assert code == 1
    assert "ufr-edge 8.0 or newer" in text


def test_the_published_schema_is_that_of_the_code() -> None:
    published = json.loads((DOCS / "manifest.schema.json").read_text(encoding="utf-8"))
    assert published == manifest_schema(), "run: ufr-edge bundle schema > docs/manifest.schema.json"
    printed = CliRunner().invoke(main, ["bundle", "schema"])
    assert json.loads(printed.stdout) == published


def errors(value: Any, schema: dict[str, Any], where: str = "$") -> list[str]:
    """Validate the part of JSON schema that ours uses."""
    assert set(schema) <= {
        *(
            "$schema",
            "title",
            "description",
            "type",
            "properties",
            "required",
            "additionalProperties",
            "items",
        ),
        *("anyOf", "const", "enum", "pattern", "format", "minimum", "minItems"),
    }, "teach this validator the new keyword"
    if "anyOf" in schema:
        return [] if any(not errors(value, part, where) for part in schema["anyOf"]) else [where]
    if not isinstance(value, TYPES[schema["type"]]) or isinstance(value, bool):
        return [where]
    found = []
    if isinstance(value, dict):
        found += [f"{where}.{key}" for key in schema.get("required", []) if key not in value]
        known, other = schema.get("properties", {}), schema.get("additionalProperties")
        for key, item in value.items():
            rule = known.get(key, other)
            found += errors(item, rule, f"{where}.{key}") if rule else []
    if isinstance(value, list):
        found += [e for i, item in enumerate(value) for e in errors(item, schema["items"], f"{where}[{i}]")]
        found += [where] if len(value) < schema.get("minItems", 0) else []
    wrong = [
        "const" in schema and value != schema["const"],
        "enum" in schema and value not in schema["enum"],
        "pattern" in schema and not re.search(schema["pattern"], str(value)),
        "minimum" in schema and value < schema["minimum"],
    ]
    return found + ([where] if any(wrong) else [])


def test_what_is_written_follows_the_schema(bundle: Path) -> None:
    for value in (
        manifest(entry(), full_entry()).to_json(),
        json.loads((bundle / "manifest.json").read_text()),
    ):
        assert errors(value, manifest_schema()) == []


@pytest.mark.parametrize(
    ("where", "change"),
    [
        ("$.schema", lambda v: v.update(schema=2)),
        ("$.schema", lambda v: v.pop("schema")),
        ("$.name", lambda v: v.update(name=3)),
        ("$.lineage", lambda v: v.pop("lineage")),
        ("$.needs_ufr_edge", lambda v: v.update(needs_ufr_edge="soon")),
        ("$.restorer.side", lambda v: v["restorer"].update(side=0)),
        ("$.restorer.side", lambda v: v["restorer"].update(side="256")),
        ("$.restorer.side", lambda v: v["restorer"].update(side=True)),
        ("$.restorer.weights_sha256", lambda v: v["restorer"].update(weights_sha256="ABC")),
        ("$.engines[0].onnx_sha256", lambda v: v["engines"][0].update(onnx_sha256="")),
        ("$.engines[0].files", lambda v: v["engines"][0].update(files=[])),
        ("$.engines[0].format", lambda v: v["engines"][0].update(format="caffe")),
        ("$.engines[0].parity", lambda v: v["engines"][0].update(parity={"psnr_db": 1})),
        ("$.files.tiny.onnx", lambda v: v["files"].update({"tiny.onnx": "xyz"})),
    ],
)
def test_the_reader_refuses_what_the_schema_refuses(
    where: str, change: Callable[[dict[str, Any]], object]
) -> None:
    value = json.loads(json.dumps(manifest(entry()).to_json()))
    change(value)
    assert errors(value, manifest_schema()) == [where]
    with pytest.raises(BundleError):
        Manifest.from_json(value)


def test_unknown_fields_are_left_alone(bundle: Path) -> None:
    value = manifest(entry()).to_json() | {"colour": "red"}
    assert errors(value, manifest_schema()) == []
    assert Manifest.from_json(value) == manifest(entry())


@pytest.mark.parametrize("page", ["docs/bundle.md", "README.md"])
def test_the_five_lines_of_the_documentation_run_from_another_folder(
    bundle: Path, tmp_path: Path, page: str
) -> None:
    text = (DOCS.parent / page).read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert code is not None
    assert len(code[1].strip().splitlines()) == 5
    place = tmp_path / "elsewhere"
    place.mkdir()
    bundle.rename(place / "my.ufr")
    cv2.imwrite(str(place / "face.png"), np.full((SIDE, SIDE, 3), 100, np.uint8))
    subprocess.run([sys.executable, "-c", code[1]], cwd=place, check=True, timeout=120)
    assert np.unique(np.asarray(cv2.imread(str(place / "restored.png")))).tolist() == [50]


def test_every_subcommand_is_documented() -> None:
    from ufr_edge.cli.bundle import command

    text = (DOCS / "bundle.md").read_text(encoding="utf-8")
    missing = [name for name in command.commands if f"ufr-edge bundle {name}" not in text]
    assert missing == []
