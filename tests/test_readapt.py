"""A bundle adapted again: resumable, gated, with lineage; what is installed is the old one or the new one."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from training_fakes import SIDE, make_faces, save_small_prior, save_small_restorer, write_faces

from ufr_edge.adaptation import readapt as module
from ufr_edge.adaptation.camera_pairs import CameraModel
from ufr_edge.adaptation.qa import QaConfig
from ufr_edge.adaptation.readapt import ReadaptConfig, readapt
from ufr_edge.adaptation.readapt_faces import fit_faces, split_people, take_faces
from ufr_edge.adaptation.readapt_gate import GateReport, Outputs, ReadaptLimits, compare, measure_side
from ufr_edge.cli import main
from ufr_edge.errors import ConfigError, GateFailedError, InputFileError
from ufr_edge.export.bundle_export import ExportOptions, export_bundle
from ufr_edge.export.requests import EngineRequest
from ufr_edge.export.stored_weights import bundle_weights
from ufr_edge.files import read_json, sha256_file, write_json
from ufr_edge.restorers.loading import load_any_restorer
from ufr_edge.runtime.bundle import read_bundle
from ufr_edge.runtime.faces.align import template
from ufr_edge.runtime.faces.detect import Face
from ufr_edge.runtime.frame import Frame
from ufr_edge.runtime.versions import current_version, history, install_version, rollback

WIDE = ReadaptLimits(
    consistency_db=99,
    noise=99,
    noise_levels=99,
    better=0,
    least_sharpness=0,
    most_sharpness=999,
    landmark_px=99,
    skill_db=99,
)
QUICK = ReadaptConfig(
    steps=2, batch=2, save_every=1, least_faces=12, limits=WIDE, qa=QaConfig(judge=False), require_faces=False
)


class Sees:
    """A detector that finds an aligned face wherever it looks."""

    info = None

    def detect(self, frame: Frame) -> list[Face]:
        side = len(frame)
        points = template(side).astype(np.float32)
        return [Face(box=np.array([0, 0, side, side], np.float32), score=0.9, landmarks=points)]


@dataclass(frozen=True)
class Site:
    """A folder of versions with one bundle in it, and 16 faces of its camera."""

    folder: Path
    faces: Path
    real: Path
    work: Path
    config: ReadaptConfig

    def readapt(self, **changes: object) -> module.ReadaptReport:
        given: dict[str, object] = {"real": self.real, "detector": Sees(), "show": False, "camera": "door"}
        config = changes.pop("config", self.config)
        return readapt(self.folder, self.faces, self.work, config, **{**given, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A bundle of a small restorer, and a small prior."""
    folder = tmp_path_factory.mktemp("made")
    restorer = load_any_restorer(save_small_restorer(folder / "weights.safetensors"))
    options = ExportOptions(store_faces=False)
    requests = [EngineRequest(format="onnx", precision="fp32")]
    export_bundle(restorer, folder / "door.ufr", formats=requests, options=options)
    return folder / "door.ufr", save_small_prior(folder / "prior")


@pytest.fixture
def site(tmp_path: Path, made: tuple[Path, str]) -> Site:
    bundle, prior = made
    install_version(tmp_path / "site", bundle)
    return Site(
        folder=tmp_path / "site",
        faces=write_faces(tmp_path / "faces", make_faces(16, seed=3)),
        real=write_faces(tmp_path / "real", make_faces(12, seed=5)),
        work=tmp_path / "work",
        config=replace(QUICK, prior=prior),
    )


def test_a_bundle_carries_its_weights(made: tuple[Path, str]) -> None:
    bundle = read_bundle(made[0])
    path = bundle_weights(bundle)
    assert path == made[0] / "weights.safetensors"
    start = load_any_restorer(path)
    assert (start.arch, start.side) == ("edge-s", SIDE)
    files = {name: digest for name, digest in bundle.manifest.files.items() if name != path.name}
    with pytest.raises(InputFileError, match="carries no weights"):
        bundle_weights(replace(bundle, manifest=replace(bundle.manifest, files=files)))


@pytest.mark.slow
def test_it_becomes_a_new_version_with_lineage(site: Site) -> None:
    report = site.readapt()
    new = current_version(site.folder)
    assert (new.number, report.installed) == (2, new.path)
    manifest = read_bundle(new.path).manifest
    assert manifest.lineage["parent"] == sha256_file(site.folder / "versions" / "0001.ufr" / "manifest.json")
    assert (manifest.lineage["camera"], manifest.lineage["prior"]) == ("door", site.config.prior)
    assert manifest.lineage["run_id"]
    assert [entry.name for entry in manifest.engines] == ["onnx-fp32"]
    assert len(json.loads(manifest.lineage["cameras"])) == 1  # its own; the parent tells of none
    assert report.gate.faces == 3
    assert {"noise_sigma", "sharpness", "input_consistency_db", "landmark_px512", "skill_psnr_db"} <= set(
        report.gate.figures["new"]
    )
    # No picture of anybody stays behind.
    pictures = {path.name for path in site.work.rglob("*") if path.suffix in (".png", ".jpg")}
    assert pictures <= {"curves.png"}
    # Nor does anything large: the bundle is among the versions.
    left = {path.relative_to(site.work).as_posix() for path in site.work.rglob("*") if path.is_file()}
    assert left == {".lock", "readapt.json", "gate.json", "faces.json", "lineage.json", "run/config.json"}
    record = json.loads((site.work / "lineage.json").read_text())
    assert record["lineage"]["parent"] == manifest.lineage["parent"] and report.bundle == new.path
    # The same call again changes nothing.
    assert site.readapt().installed == new.path
    assert len(history(site.folder)) == 2
    # Nor does it bring back what the stream has left since.
    rollback(site.folder, reason="flicker")
    assert site.readapt().installed == new.path
    assert current_version(site.folder).number == 1


STAGES = ("_split", "make_targets", "finetune", "export_bundle", "judge", "install_once")


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("when", ["before", "after"])
def test_stopped_anywhere_it_goes_on(
    site: Site, monkeypatch: pytest.MonkeyPatch, stage: str, when: str
) -> None:
    real = getattr(module, stage)

    def stopped(*args: object, **given: object) -> object:
        if when == "after":
            real(*args, **given)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, stage, stopped)
        site.readapt()
    live = current_version(site.folder)
    assert live.number == (2 if (stage, when) == ("install_once", "after") else 1)
    read_bundle(live.path).check()
    site.readapt()
    assert [version.number for version in history(site.folder)] == [1, 2]
    assert current_version(site.folder).number == 2


@pytest.mark.slow
def test_no_better_is_not_installed(site: Site) -> None:
    config = replace(site.config, limits=replace(WIDE, least_sharpness=900, most_sharpness=1000))
    for _ in range(2):  # the second call remembers
        with pytest.raises(
            GateFailedError, match=r"the old one stays: detail in levels: .* must be at least"
        ) as caught:
            site.readapt(config=config)
    assert caught.value.exit_code == 3
    assert [version.number for version in history(site.folder)] == [1]
    assert json.loads((site.work / "gate.json").read_text())["reasons"]
    assert not list(site.work.rglob("*.ufr")) + list(site.work.rglob("*.pt"))


@pytest.mark.slow
def test_a_single_bundle_is_not_replaced(site: Site, made: tuple[Path, str]) -> None:
    alone = replace(site, folder=made[0])
    report = alone.readapt()
    assert (report.installed, report.bundle) == (None, site.work / "door.ufr")
    read_bundle(report.bundle).check()


def test_a_password_in_the_name_of_a_camera_is_not_kept(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither of the name given, nor of the one that an older bundle has in its lineage."""
    told: list[str] = []
    exported: list[dict[str, str]] = []

    def export(*_: object, lineage: dict[str, str], **__: object) -> None:
        exported.append(lineage)
        raise KeyboardInterrupt

    def no_training(*_: object, **__: object) -> None:
        return None

    for name in ("make_targets", "finetune", "load_any_restorer"):
        monkeypatch.setattr(module, name, no_training)
    monkeypatch.setattr(module, "_own_camera", lambda *_: CameraModel())
    monkeypatch.setattr(module, "export_bundle", export)
    address = "rtsp://guard:s3cret@10.0.0.7/door?token=t0ken"
    for _ in range(2):  # the second call goes on in the same folder
        with pytest.raises(KeyboardInterrupt):
            site.readapt(camera=address, tell=told.append)
    manifest = current_version(site.folder).path / "manifest.json"
    value = read_json(manifest)
    write_json(manifest, {**value, "lineage": {**value["lineage"], "camera": address}})
    with pytest.raises(KeyboardInterrupt):
        replace(site, work=site.work.with_name("inherited")).readapt(camera="", tell=told.append)
    assert [lineage["camera"] for lineage in exported] == ["rtsp://***@10.0.0.7/door?token=***"] * 3
    kept = [
        path.read_text()
        for work in ("work", "inherited")
        for path in (site.work.parent / work).glob("*.json")
    ]
    assert len(kept) >= 4
    for text in (*kept, *told):
        assert "s3cret" not in text and "t0ken" not in text and "guard" not in text


@pytest.mark.slow
def test_another_run_in_the_same_work_folder(site: Site, tmp_path: Path) -> None:
    site.readapt()
    with pytest.raises(ConfigError, match="other faces or with other settings"):
        site.readapt(config=replace(site.config, steps=3))
    other = replace(site, work=site.faces)
    with pytest.raises(ConfigError, match=r"holds files but no readapt\.json"):
        other.readapt()


def test_too_few_or_black_faces(site: Site, tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="holds 16 usable faces; re-adaptation needs 24"):
        site.readapt(config=replace(site.config, least_faces=24))
    black = write_faces(tmp_path / "black", np.zeros((16, SIDE, SIDE, 3), np.uint8))
    with pytest.raises(InputFileError, match=r"0 usable faces \(left out: 16 blank\)"):
        replace(site, faces=black, work=tmp_path / "w2").readapt()
    assert current_version(site.folder).number == 1


def test_dark_and_broken_faces_are_left_out_by_one_test(tmp_path: Path) -> None:
    """What calibration would refuse is not trained on either (grey deviation below 3, however colourful)."""
    images = make_faces(12, seed=3)
    images[4] = images[4] // 100
    images[5] = np.random.default_rng(0).integers(0, 256, images[5].shape)
    folder = write_faces(tmp_path / "faces", images)
    names = sorted(path.name for path in folder.glob("*.png"))
    (folder / names[9]).write_bytes(b"no picture")
    fit, unfit = fit_faces(folder, SIDE)
    assert fit == [name for i, name in enumerate(names) if i not in (4, 5, 9)]
    assert unfit == {"blank": 1, "random noise": 1, "broken": 1}


def test_a_recorder_may_remove_faces_while_they_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = index(write_faces(tmp_path / "faces", make_faces(10)), [f"1.{i}" for i in range(10)])
    names, real = sorted(path.name for path in folder.glob("*.png")), shutil.copyfile

    def copy(source: Path, target: Path) -> Path:
        if source.name == names[7]:  # the ring is at work
            for name in names[7:9]:
                (folder / name).unlink()
        return real(source, target)

    monkeypatch.setattr(shutil, "copyfile", copy)
    assert take_faces(folder, tmp_path / "taken", 6) == 4
    left = sorted(path.name for path in (tmp_path / "taken").iterdir())
    assert left == [names[4], names[5], names[6], names[9], "index.jsonl"]
    with pytest.raises(InputFileError, match="holds no images"):
        take_faces(tmp_path / "taken" / "..", tmp_path / "t2", None)


def index(folder: Path, tracks: list[str]) -> Path:
    folder.mkdir(exist_ok=True)
    lines = [
        json.dumps({"seq": i, "file": f"{i:06d}.png", "time": 1.0 * i, "track": track})
        for i, track in enumerate(tracks)
    ]
    (folder / "index.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_nobody_is_in_both_parts(tmp_path: Path) -> None:
    tracks = [f"1.{i // 4}" for i in range(40)]
    folder, names = index(tmp_path / "faces", tracks), [f"{i:06d}.png" for i in range(40)]
    train, held = split_people(folder, names, share=0.2, most=32, least_people=2, seed=0)
    assert sorted(train + held) == names
    assert len(held) == 8
    people = [{tracks[int(name[:6])] for name in part} for part in (train, held)]
    assert not people[0] & people[1]
    assert split_people(folder, names, share=0.2, most=32, least_people=2, seed=0) == (train, held)
    assert split_people(folder, names, share=0.2, most=32, least_people=2, seed=1) != (train, held)


def test_all_of_one_person(tmp_path: Path) -> None:
    folder, names = index(tmp_path / "faces", ["1.1"] * 30), [f"{i:06d}.png" for i in range(30)]
    with pytest.raises(InputFileError, match="are of 1 person"):
        split_people(folder, names, share=0.2, most=32, least_people=2, seed=0)
    folder = index(tmp_path / "two", ["1.1"] * 15 + ["1.2"] * 5)
    train, held = split_people(folder, names[:20], share=0.2, most=32, least_people=2, seed=0)
    assert (len(train), len(held)) == (15, 5)


GOOD = {
    "noise_sigma": 2.0,
    "sharpness": 4.0,
    "input_consistency_db": 30.0,
    "landmark_px512": 3.0,
    "landmark_lost": 0.0,
    "identity": 0.8,
    "skill_psnr_db": 25.0,
}


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("noise_sigma", 2.4, "noise left in levels: 2.40, was 2.00, must be at most 2.30"),
        ("sharpness", 1.9, "detail in levels: 1.90, was 4.00, must be at least 2.00"),
        ("sharpness", 12.1, "detail in levels: 12.10, was 4.00, must be at most 12.00"),
        ("input_consistency_db", 28.9, "agreement with the input in dB: 28.90"),
        ("landmark_px512", 4.6, "displacement of landmarks"),
        ("landmark_lost", 0.06, "share of faces not found"),
        ("identity", 0.77, "likeness to the input"),
        (
            "skill_psnr_db",
            24.6,
            "PSNR in dB on earlier degradations: 24.60, was 25.00, must be at least 24.70",
        ),
        ("sharpness", float("nan"), "detail in levels: nan"),
    ],
)
def test_each_figure_can_refuse(name: str, value: float, reason: str) -> None:
    limits = ReadaptLimits(better=0, consistency_floor_db=99, landmark_floor_px=0)
    (found,) = compare(GOOD, GOOD | {name: value}, limits)
    assert found.startswith(reason)


def test_what_leaves_the_noise_in_does_not_set_the_measure_of_agreement() -> None:
    old, new = (
        GOOD | {"input_consistency_db": 37.5},
        GOOD | {"input_consistency_db": 29.0, "landmark_px512": 8.7},
    )
    assert compare(old, new, ReadaptLimits(better=0)) == ()
    lost = compare(old, new | {"input_consistency_db": 23.9, "landmark_px512": 12.1}, ReadaptLimits(better=0))
    assert [reason.split(":")[0] for reason in lost] == [
        "agreement with the input in dB",
        "displacement of landmarks in px at 512",
    ]


def test_better_or_unknown_figures_pass() -> None:
    better = GOOD | {
        "noise_sigma": 0.5,
        "input_consistency_db": 33.0,
        "landmark_px512": 1.0,
        "skill_psnr_db": 26.0,
    }
    assert compare(GOOD, better, ReadaptLimits()) == ()
    without = {name: value for name, value in GOOD.items() if name != "identity"}
    assert compare(without, GOOD | {"identity": 0.0}, ReadaptLimits(better=0)) == ()
    GateReport(figures={}, reasons=(), faces=0).raise_if_refused()
    with pytest.raises(ConfigError, match="consistency_db"):
        ReadaptLimits(consistency_db=float("nan"))


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        ({}, True),
        ({"noise_sigma": 1.92, "clean_look": 4.81}, True),
        ({"noise_sigma": 1.89}, False),
        ({"clean_look": 4.7, "noise_sigma": 2.2}, False),
        ({"input_consistency_db": 33.0, "skill_psnr_db": 27.0}, True),
        ({"clean_look": float("nan"), "noise_sigma": float("nan")}, True),
    ],
)
def test_as_good_as_before_is_not_better(change: dict[str, float], refused: bool) -> None:
    old = GOOD | {"clean_look": 5.0}
    reasons = compare(old, old | change, ReadaptLimits())
    assert [reason.startswith("nothing got better by 5 %: noise left") for reason in reasons][-1:] == (
        [True] if refused else []
    )


def test_the_look_of_clean_faces_is_nearer_the_cleaner_they_are() -> None:
    clean = make_faces(12, seed=1)
    rng = np.random.default_rng(0)
    noisy = [np.clip(clean + rng.normal(0, s, clean.shape), 0, 255).astype(np.uint8) for s in (3, 12)]
    made = [Outputs(camera=images, skill=clean) for images in noisy]
    little, much = (
        measure_side(one, noisy[1], clean, detector=None, embed=None)["clean_look"] for one in made
    )
    assert 0 < little < 0.95 * much


def test_the_command_says_what_is_missing(tmp_path: Path, made: tuple[Path, str]) -> None:
    faces = write_faces(tmp_path / "faces", make_faces(9))
    args = ["readapt", "--bundle", str(made[0]), "--faces", str(faces), "--work", str(tmp_path / "work")]
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 1
    assert "holds 9 usable faces" in result.output
