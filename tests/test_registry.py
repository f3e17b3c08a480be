"""A registry of models: plain files, several writers, lineage to the root, what differs between two."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tiny_bundle import entry, full_entry, manifest, write_tiny_onnx

from ufr_edge.cli import main
from ufr_edge.errors import BundleError, ConfigError, InputFileError, OutputError
from ufr_edge.files import read_json, sha256_file, write_json
from ufr_edge.runtime import registry as module
from ufr_edge.runtime.bundle import read_bundle, write_manifest
from ufr_edge.runtime.bundle_archive import unpack_bundle
from ufr_edge.runtime.fingerprint import Fingerprint, Value
from ufr_edge.runtime.fingerprint_files import write_fingerprint
from ufr_edge.runtime.manifest import EngineEntry
from ufr_edge.runtime.registry import RunFacts, add_model, is_known, read_registry
from ufr_edge.runtime.registry_diff import compare_models

FIGURES = {"old": {"noise_sigma": 4.0}, "new": {"noise_sigma": 1.5}}
RUN = RunFacts(
    faces=40,
    held_out=8,
    faces_sha256="f" * 64,
    prior="prior-256",
    prior_sha256="e" * 64,
    settings={"steps": 150, "limits": {"noise": 1.1}},
    scores={"figures": FIGURES, "reasons": [], "faces": 8},
    notes=("openvino-int8 is left out",),
)


def write_bundle(
    folder: Path,
    *,
    parent: str = "",
    camera: str = "",
    day: int = 1,
    engine: EngineEntry | None = None,
    noise: float | None = None,
    extra: Sequence[str] = (),
) -> str:
    """Write a bundle with one engine; returns the sha256 of its manifest."""
    folder.mkdir()
    digest = sha256_file(write_tiny_onnx(folder / "tiny.onnx"))
    files = {"tiny.onnx": digest}
    for name in extra:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"picture")
        files[name] = sha256_file(folder / name)
    if noise is not None:
        values = {"noise_1": Value(mean=noise, spread=0.1, looks=50.0)}
        name = write_fingerprint(folder, Fingerprint(values=values, faces=64, side=32))
        files[name] = sha256_file(folder / name)
    lineage = {key: text for key, text in (("parent", parent), ("camera", camera)) if text}
    made = manifest(replace(engine or entry("onnx-fp32"), onnx_sha256=digest), files=files)
    created = f"2025-01-{day:02d}T00:00:00+00:00"
    write_manifest(folder, replace(made, name=folder.stem, lineage=lineage, created=created))
    return sha256_file(folder / "manifest.json")


@pytest.fixture
def family(tmp_path: Path) -> tuple[Path, list[str]]:
    """A registry with a model, its child and its grandchild, and their ids."""
    ids = [write_bundle(tmp_path / "base.ufr")]
    ids.append(write_bundle(tmp_path / "a.ufr", parent=ids[0], camera="door", day=2, noise=1.0))
    quick = replace(full_entry(), files=("tiny.onnx",))
    ids.append(write_bundle(tmp_path / "b.ufr", parent=ids[1], camera="yard", day=3, noise=3.0, engine=quick))
    folder = tmp_path / "registry"
    for name, run in (("base", None), ("a", RUN), ("b", replace(RUN, faces=50, settings={"steps": 300}))):
        assert add_model(folder, tmp_path / f"{name}.ufr", run=run).fresh
    return folder, ids


def invoke(*args: object) -> Result:
    return CliRunner().invoke(main, ["registry", *map(str, args)])


def test_a_record_reads_back_as_it_was_written(family: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, ids = family
    found = read_registry(folder)
    assert [record.id for record in found.records] == ids
    base, child, _ = found.records
    assert (base.run, base.fingerprint, base.parent, base.camera) == (None, None, "", "")
    assert child.run == RUN
    assert child.manifest == read_bundle(tmp_path / "a.ufr").manifest
    assert child.fingerprint is not None
    assert child.fingerprint.values["noise_1"].mean == 1.0
    assert found.damaged == ()
    assert [record.camera for record in read_registry(folder, camera="yard").records] == ["yard"]


def test_lineage_goes_down_to_the_first(family: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, ids = family
    found = read_registry(folder)
    assert [record.id for record in found.lineage(found.find(ids[2]))] == ids[::-1]
    # A parent that was never added ends the chain; so does one that says it is its own ancestor.
    (folder / "models" / f"{ids[0]}.json").unlink()
    found = read_registry(folder)
    assert [record.id for record in found.lineage(found.find(ids[2]))] == ids[:0:-1]
    loop = read_json(folder / "models" / f"{ids[1]}.json")
    loop["manifest"]["lineage"]["parent"] = ids[2]
    write_json(folder / "models" / f"{ids[1]}.json", loop)
    found = read_registry(folder)
    assert len(found.lineage(found.find(ids[2]))) == 2


def test_adding_again_changes_nothing_but_adds_what_was_not_known(tmp_path: Path) -> None:
    digest = write_bundle(tmp_path / "a.ufr")
    folder = tmp_path / "registry"
    assert add_model(folder, tmp_path / "a.ufr").fresh
    path = folder / "models" / f"{digest}.json"
    before = path.read_bytes()
    assert not add_model(folder, tmp_path / "a.ufr").fresh
    assert path.read_bytes() == before
    assert not is_known(folder, tmp_path / "a.ufr")
    assert add_model(folder, tmp_path / "a.ufr", run=RUN).fresh
    assert is_known(folder, tmp_path / "a.ufr")
    full = path.read_bytes()
    assert not add_model(folder, tmp_path / "a.ufr").fresh
    assert not add_model(folder, tmp_path / "a.ufr", run=replace(RUN, faces=1)).fresh
    assert path.read_bytes() == full


def test_one_that_knows_less_never_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bundle(tmp_path / "a.ufr")
    folder = tmp_path / "registry"
    real = module._known

    def meanwhile(place: Path, path: Path) -> object:
        known = real(place, path)
        monkeypatch.setattr(module, "_known", real)
        add_model(folder, tmp_path / "a.ufr", run=RUN)  # another writer, between the look and the write
        return known

    monkeypatch.setattr(module, "_known", meanwhile)
    assert not add_model(folder, tmp_path / "a.ufr").fresh
    assert read_registry(folder).records[0].run == RUN


def test_many_writers_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "registry"
    bundles = [tmp_path / f"{i}.ufr" for i in range(6)]
    ids = {write_bundle(path) for path in bundles}
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda i: add_model(folder, bundles[i % 6], keep_bundle=True), range(24)))
    found = read_registry(folder)
    assert {record.id for record in found.records} == ids
    assert found.damaged == ()
    left = [path for path in folder.rglob("*") if path.is_file() and path.name.startswith(".")]
    assert left == []


def test_a_disk_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr("os.link", refuse)
    digest = write_bundle(tmp_path / "a.ufr")
    assert add_model(tmp_path / "registry", tmp_path / "a.ufr").fresh
    assert read_registry(tmp_path / "registry").find(digest[:8]).id == digest


def test_the_bundle_is_kept_when_asked_for(tmp_path: Path) -> None:
    digest = write_bundle(tmp_path / "a.ufr")
    folder = tmp_path / "registry"
    assert add_model(folder, tmp_path / "a.ufr").record.archive is None
    kept = add_model(folder, tmp_path / "a.ufr", keep_bundle=True).record.archive
    assert kept == folder / "bundles" / f"{digest}.ufrz"
    unpack_bundle(kept, tmp_path / "again.ufr")
    assert sha256_file(tmp_path / "again.ufr" / "manifest.json") == digest
    assert add_model(tmp_path / "other", kept).record.id == digest


def test_pictures_of_people_are_never_stored(tmp_path: Path) -> None:
    write_bundle(tmp_path / "a.ufr", extra=["reference/lq/000.png"])
    folder = tmp_path / "registry"
    with pytest.raises(ConfigError, match=r"carries pictures of faces \(reference/lq/000.png\)"):
        add_model(folder, tmp_path / "a.ufr", keep_bundle=True)
    assert add_model(folder, tmp_path / "a.ufr").fresh
    names = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert names == {".json"}


def test_a_camera_named_by_its_address_keeps_its_password(tmp_path: Path) -> None:
    write_bundle(tmp_path / "a.ufr", camera="rtsp://me:secret@10.0.0.7/1")
    add_model(tmp_path / "registry", tmp_path / "a.ufr")
    texts = [path.read_text() for path in (tmp_path / "registry").rglob("*.json")]
    assert not any("secret" in text for text in texts)


def damage_text(path: Path) -> None:
    path.write_text(path.read_text()[:100])


def damage_empty(path: Path) -> None:
    path.write_bytes(b"")


def damage_field(path: Path) -> None:
    write_json(path, {**read_json(path), "manifest": {"name": 3}})


def damage_kind(path: Path) -> None:
    path.write_text("[1, 2]")


def damage_id(path: Path) -> None:
    write_json(path, {**read_json(path), "id": "0" * 64})


@pytest.mark.parametrize(
    "damage", [damage_text, damage_empty, damage_field, damage_kind, damage_id], ids=lambda d: d.__name__
)
def test_a_damaged_record_is_named_and_left_out(
    family: tuple[Path, list[str]], tmp_path: Path, damage: object
) -> None:
    folder, ids = family
    path = folder / "models" / f"{ids[1]}.json"
    assert callable(damage)
    damage(path)
    found = read_registry(folder)
    assert [record.id for record in found.records] == [ids[0], ids[2]]
    (line,) = found.damaged
    assert str(path) in line
    result = invoke("list", "--registry", folder)
    assert result.exit_code == 0
    assert f"left out: {path}" in result.stderr
    assert ids[2][:12] in result.stdout
    # Adding the bundle again mends it.
    assert add_model(folder, tmp_path / "a.ufr").fresh
    assert read_registry(folder).damaged == ()


def test_a_record_of_a_newer_release(family: tuple[Path, list[str]]) -> None:
    folder, ids = family
    path = folder / "models" / f"{ids[1]}.json"
    write_json(path, {**read_json(path), "schema": 9, "ufr_edge": "7.1"})
    assert "was written by ufr-edge 7.1. Run: pip install --upgrade" in read_registry(folder).damaged[0]


def test_what_is_no_registry(tmp_path: Path, family: tuple[Path, list[str]]) -> None:
    with pytest.raises(InputFileError, match="does not exist"):
        read_registry(tmp_path / "nowhere")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "registry.json").write_text('{"kind": "of sweets"}')
    with pytest.raises(InputFileError, match="not that of a registry"):
        read_registry(tmp_path / "mine")
    with pytest.raises(InputFileError, match="not that of a registry"):
        add_model(tmp_path / "mine", tmp_path / "a.ufr")
    with pytest.raises(OutputError, match=r"holds files but no registry.json"):
        add_model(tmp_path / "a.ufr", tmp_path / "b.ufr")
    with pytest.raises(InputFileError, match="is no registry"):
        read_registry(tmp_path / "a.ufr")
    (tmp_path / "b.ufr" / "tiny.onnx").write_bytes(b"other")
    with pytest.raises(BundleError, match="damaged"):
        add_model(tmp_path / "new", tmp_path / "b.ufr")
    assert not (tmp_path / "new").exists()


def test_ids_by_their_first_digits(family: tuple[Path, list[str]]) -> None:
    folder, ids = family
    found = read_registry(folder)
    assert found.find(ids[1][:4].upper()).id == ids[1]
    with pytest.raises(ConfigError, match="no model begins with 0000000"):
        found.find("0000000")
    for text in ("", "abc", "zzzz", "../../x"):
        with pytest.raises(ConfigError, match="is no id"):
            found.find(text)
    alike = replace(found.records[0], id=ids[1][:20] + "0" * 44)
    with pytest.raises(ConfigError, match=f"2 models begin with {ids[1][:6]}: {ids[1][:12]}, {ids[1][:12]}"):
        replace(found, records=(*found.records, alike)).find(ids[1][:6])


def test_what_differs(family: tuple[Path, list[str]]) -> None:
    folder, ids = family
    found = read_registry(folder)
    a, b = found.records[1:]
    diff = compare_models(a, b)
    rows = {item.name: (item.a, item.b) for item in diff.differences}
    assert rows["settings.steps"] == (150, 300)
    assert rows["settings.limits.noise"] == (1.1, None)
    assert rows["faces.count"] == (40, 50)
    assert rows["lineage.camera"] == ("door", "yard")
    assert rows["engine.onnx-fp32.precision"] == ("fp32", None)
    assert rows["engine.int8.drop_db"] == (None, 0.12)
    assert rows["fingerprint.noise_1"] == (1.0, 3.0)
    assert "scores.noise_sigma" not in rows
    assert "restorer.arch" not in rows
    assert diff.distance is not None
    assert diff.distance > 3
    assert compare_models(a, a).differences == ()
    assert compare_models(found.records[0], b).distance is None
    result = invoke("diff", ids[1][:10], ids[2][:10], "--registry", folder)
    assert result.exit_code == 0, result.output
    assert "settings.steps" in result.stdout
    assert "+150" in result.stdout
    value = json.loads(invoke("diff", ids[1], ids[2], "--registry", folder, "--json").stdout)
    assert value["differences"]["faces.count"] == {"a": 40, "b": 50}
    assert value["a"] == ids[1]


def test_the_commands(family: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, ids = family
    rows = json.loads(invoke("list", "--registry", folder, "--json").stdout)
    assert [row["id"] for row in rows] == ids
    assert "door" not in invoke("list", "--registry", folder, "--camera", "yard").stdout
    shown = invoke("show", ids[2][:8], "--registry", folder)
    assert shown.exit_code == 0, shown.output
    for text in (
        *(digest[:12] for digest in ids),
        "noise_sigma",
        "1.5",
        "int8",
        "steps 300",
        "50, 8 of them",
    ):
        assert text in shown.stdout
    assert json.loads(invoke("show", ids[2], "--registry", folder, "--json").stdout)["lineage"] == ids[::-1]
    again = invoke("add", tmp_path / "a.ufr", "--registry", folder)
    assert again.stdout.startswith(f"{ids[1][:12]} is there already")
    unknown = invoke("show", "00000000", "--registry", folder)
    assert (unknown.exit_code, unknown.stderr.count("\n")) == (1, 1)
    assert invoke("list").exit_code == 2
    by_name = CliRunner().invoke(main, ["registry", "list"], env={"UFR_REGISTRY": str(folder)})
    assert by_name.exit_code == 0


def test_it_needs_no_torch() -> None:
    code = "import sys, ufr_edge.runtime.registry, ufr_edge.runtime.registry_diff; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(out.stdout.split()) & {"torch", "diffusers", "safetensors"}
