"""What the user gave is never overwritten, what cannot be trained is found first, and figures are of unseen faces."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import nn
from training_fakes import SIDE, make_faces, small_prior, small_targets, write_faces

from ufr_edge.adaptation import adapt as adapting
from ufr_edge.adaptation import finetune as training
from ufr_edge.adaptation import targets as targeting
from ufr_edge.adaptation.adapt import AdaptConfig, _check_kept, _to_measure_on, adapt
from ufr_edge.adaptation.camera_pairs import CameraModel
from ufr_edge.adaptation.camera_spread import CameraSpread
from ufr_edge.adaptation.finetune import FinetuneConfig, finetune
from ufr_edge.adaptation.intake import take_in
from ufr_edge.adaptation.pairing import load_pairs
from ufr_edge.adaptation.qa import QaConfig
from ufr_edge.adaptation.restorer_task import LossWeights, RestorerTraining
from ufr_edge.adaptation.sweep import sweep_targets
from ufr_edge.adaptation.target_index import CONFIG, INDEX, made_here, read_index, remove_targets
from ufr_edge.adaptation.targets import TargetsConfig, make_targets
from ufr_edge.adaptation.terms import check_trainable
from ufr_edge.adaptation.workers import Workers
from ufr_edge.errors import ConfigError, InputFileError, OutputError
from ufr_edge.priors import features
from ufr_edge.priors.improved_diffusion import ImprovedDiffusionPrior


class Stopped(Exception):
    """Stands for a kill."""


@pytest.fixture(autouse=True)
def no_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fakes are no faces: looking for some would only take time."""
    for part in (adapting, targeting):
        monkeypatch.setattr(part, "open_detector", lambda stack: (None, ()))


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    return write_faces(tmp_path / "cam" / "faces", make_faces(10))


@pytest.fixture
def config(tmp_path: Path) -> TargetsConfig:
    return small_targets(tmp_path, qa=QaConfig(judge=False), batch=4, device="cpu")


def finetuning(*, batch: int = 4, accumulate: int = 1, **losses: float) -> FinetuneConfig:
    weights = LossWeights(**{"prior_features": 0.0, "adversarial": 0.0, **losses})  # type: ignore[arg-type]
    training = RestorerTraining(
        steps=2, precision="fp32", losses=weights, accumulate=accumulate, discriminator="prior-features"
    )
    return FinetuneConfig(batch=batch, training=training, device="cpu")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# 1: adapt and the faces it is given


@pytest.mark.parametrize("given", ["faces", "faces/day", "link"])
def test_adapt_does_not_put_its_faces_in_place_of_those_given(
    faces: Path, config: TargetsConfig, tmp_path: Path, given: str
) -> None:
    cam = faces.parent
    write_faces(faces / "day", make_faces(9, seed=1))
    (cam / "link").symlink_to(faces)
    before = contents(cam)
    settings = AdaptConfig(targets=config, finetune=finetuning())
    with pytest.raises(ConfigError, match=r"would be lost.*\(-o\)"):
        adapt(cam / given, cam, settings, show=False)
    with pytest.raises(ConfigError, match="would be lost"):
        take_in(cam / given, faces, SIDE, detector=None)
    assert contents(cam) == before


def test_no_given_folder_lies_where_results_are_written(faces: Path, config: TargetsConfig, tmp_path: Path) -> None:
    cam, other = faces.parent, write_faces(tmp_path / "other", make_faces(9, seed=1))
    settings = AdaptConfig(targets=config, finetune=finetuning())
    before = contents(cam)
    for real, test, truth in ((faces, None, None), (None, faces, None), (None, other, faces)):
        with pytest.raises(ConfigError, match="would be lost"):
            adapt(other, cam, settings, real=real, test_faces=test, truth=truth, show=False)
    with pytest.raises(ConfigError, match="over its own"):
        adapt(faces, faces, settings, show=False)  # the report's pictures would be taken for faces
    assert contents(cam) == before
    _check_kept(faces, cam, align=False)  # nothing is written there then
    _check_kept(faces, faces / "run", align=True)


def test_pictures_of_another_origin_are_not_replaced_by_aligned_ones(faces: Path, tmp_path: Path) -> None:
    given = write_faces(tmp_path / "given", make_faces(9, seed=1))
    (given / "again.png").write_bytes((given / "face_000.png").read_bytes())
    before = contents(faces)
    with pytest.raises(OutputError, match=r"no faces\.json.*Choose another output"):
        take_in(given, faces, SIDE, detector=None)
    assert contents(faces) == before
    own = tmp_path / "run" / "faces"
    assert take_in(given, own, SIDE, detector=None).count == 9
    (given / "face_008.png").unlink()  # our own folder is made anew where other pictures are given
    assert take_in(given, own, SIDE, detector=None).count == 8 and len(list(own.glob("*.png"))) == 8


# 2: targets and the folder they go into


def test_targets_are_not_written_over_their_faces(faces: Path, config: TargetsConfig) -> None:
    before = contents(faces)
    with pytest.raises(ConfigError, match=r"over its own.*\(-o\)"):
        make_targets(faces, faces / ".." / "faces", config, overwrite=True, show=False)
    assert contents(faces) == before
    run = faces.parent / "run"
    write_faces(run / "targets", make_faces(9))
    settings = AdaptConfig(targets=config, finetune=finetuning(), align=False)
    with pytest.raises(ConfigError, match="over its own"):
        adapt(run / "targets", run, settings, show=False)


def test_targets_leave_folders_of_others_alone(faces: Path, config: TargetsConfig, tmp_path: Path) -> None:
    clean = write_faces(tmp_path / "run" / "targets", make_faces(3, seed=1))
    (clean / INDEX).write_text(json.dumps({"file": "face_000.png", "seq": 0}) + "\n")  # of a recorder
    trained = tmp_path / "trained"
    trained.mkdir()
    (trained / CONFIG).write_text(json.dumps({"restorer": "edge-m-256", "prior": "prior-256", "batch": 8}))
    for folder, words in ((clean, r"holds pictures \(face_000\.png\)"), (trained, "not of targets")):
        before = contents(folder)
        with pytest.raises(OutputError, match=words):
            make_targets(faces, folder, config, overwrite=True, show=False)
        assert contents(folder) == before
    settings = AdaptConfig(targets=config, finetune=finetuning())
    with pytest.raises(OutputError, match="holds pictures"):
        adapt(faces, tmp_path / "run", settings, show=False)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["targets"]  # nothing was begun


def test_a_folder_with_a_sweep_in_it_takes_targets(faces: Path, config: TargetsConfig, tmp_path: Path) -> None:
    swept = write_faces(tmp_path / "t", make_faces(1))
    (swept / "face_000.png").rename(swept / "sweep.png")
    assert make_targets(faces, swept, config, show=False).reused == 0
    assert make_targets(faces, swept, config, show=False).reused == 10


# 4: what cannot be trained is found before targets are drawn


def test_what_cannot_be_trained_is_found_before_targets_are_drawn(
    faces: Path, config: TargetsConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = Workers("cpu")
    workers.count = 2
    monkeypatch.setattr(adapting, "Workers", lambda _: workers)
    monkeypatch.setattr(adapting, "make_targets", lambda *_, **__: pytest.fail("targets were drawn"))
    few, none = write_faces(tmp_path / "few", make_faces(3, seed=2)), tmp_path / "none"
    cases: list[tuple[FinetuneConfig, Path | None, type[Exception], str]] = [
        (finetuning(batch=3), None, ConfigError, r"batch of 3.*2 process\(es\) x 1.*multiple of 2"),
        (finetuning(batch=2, accumulate=2), None, ConfigError, r"multiple of 4"),
        (finetuning(adversarial=0.1), None, ConfigError, "--real"),
        (finetuning(adversarial=0.1), few, InputFileError, "3 good faces of 3 files; at least 8"),
        (finetuning(adversarial=0.1), none, InputFileError, "is no folder"),
    ]
    for settings, real, error, words in cases:
        with pytest.raises(error, match=words):
            adapt(faces, tmp_path / "run", AdaptConfig(targets=config, finetune=settings), real=real, show=False)
    assert not (tmp_path / "run").exists()


def test_a_prior_without_features_is_found_where_they_are_wanted(
    config: TargetsConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = ImprovedDiffusionPrior.__new__(ImprovedDiffusionPrior)  # its class is what counts
    nn.Module.__init__(bare)
    monkeypatch.setattr(features, "load_prior", lambda source: bare if source == "bare" else small_prior())
    workers = Workers("cpu")
    for wanting in (finetuning(prior_features=0.1), finetuning(adversarial=0.1)):
        with pytest.raises(ConfigError, match="use LPIPS"):
            check_trainable(dataclasses.replace(wanting, prior="bare"), Path(config.prior), SIDE, workers)
    check_trainable(dataclasses.replace(finetuning(), prior="bare"), None, SIDE, workers)  # none are wanted
    other = dataclasses.replace(finetuning(prior_features=0.1), prior="bare", features_prior="another")
    check_trainable(other, None, SIDE, workers)


def test_clean_faces_are_looked_at_only_as_far_as_they_are_wanted(faces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workers, settings = Workers("cpu"), dataclasses.replace(finetuning(), replay=0.5)
    read: list[Path] = []
    grey = faces.parent / "grey"
    write_faces(grey, make_faces(9).mean(axis=3, keepdims=True).repeat(3, axis=3).astype(np.uint8))
    with pytest.raises(InputFileError, match="0 good faces of 9 files.*grey"):
        check_trainable(settings, grey, SIDE, workers)
    check_trainable(finetuning(), grey, SIDE, workers)  # given, but not needed

    def counted(path: Path, side: int) -> NDArray[np.uint8]:
        read.append(path)
        return np.zeros((side, side, 3), np.uint8)

    monkeypatch.setattr("ufr_edge.adaptation.terms.read_training_face", counted)
    check_trainable(settings, faces, SIDE, workers)
    assert len(read) == 8  # of ten
    monkeypatch.setattr("ufr_edge.adaptation.terms._READ", 9)
    check_trainable(settings, faces, SIDE, workers)
    assert len(read) == 8  # of many files the names are enough


# 6: targets that are half redone


def redo_halfway(faces: Path, out: Path, config: TargetsConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw targets anew with another seed, and die after the first four."""
    make = targeting._Maker.make
    made: list[int] = []

    def dying(self: Any, group: Any) -> None:
        if made:
            raise Stopped
        made.append(len(group))
        make(self, group)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(targeting._Maker, "make", dying)
        make_targets(faces, out, dataclasses.replace(config, seed=1), overwrite=True, show=False)


def test_old_targets_go_with_their_index_and_nothing_else_does(
    faces: Path, config: TargetsConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "t"
    make_targets(faces, out, config, show=False)
    old = contents(out)
    (out / "mine.png").write_bytes(old["face_000.png"])
    redo_halfway(faces, out, config, monkeypatch)
    left = contents(out)
    assert set(left) == {"face_000.png", "face_001.png", "face_002.png", "face_003.png", "mine.png", CONFIG, INDEX}
    assert left["mine.png"] == old["face_000.png"] != left["face_000.png"]
    with pytest.raises(InputFileError, match=r"Only 4 faces.*ufr-edge targets -i"):
        load_pairs(faces, out, SIDE)
    resumed = make_targets(faces, out, dataclasses.replace(config, seed=1), show=False)
    assert resumed.reused == 4 and len(load_pairs(faces, out, SIDE).lq) == 10


def test_the_index_names_no_file_outside_its_folder(tmp_path: Path) -> None:
    out = write_faces(tmp_path / "t", make_faces(2))
    (tmp_path / "t.png").write_bytes(b"mine")
    lines = [{"face": "a.png", "target": "../t.png"}, {"face": "face_000.png", "target": "face_000.png"}]
    (out / INDEX).write_text("".join(json.dumps(line) + "\n" for line in lines))
    remove_targets(out)
    assert [path.name for path in out.iterdir()] == ["face_001.png"] and (tmp_path / "t.png").exists()


def test_a_picture_that_our_index_does_not_list_is_no_target(
    faces: Path, config: TargetsConfig, tmp_path: Path
) -> None:
    out = tmp_path / "t"
    make_targets(faces, out, config, show=False)
    lines = (out / INDEX).read_text().splitlines(keepends=True)
    (out / INDEX).write_text("".join(lines[:8]))
    pairs = load_pairs(faces, out, SIDE)
    assert len(pairs.lq) == 8 and len(read_index(out)) == 8
    assert pairs.lines[0] == "matched 8 of 10 faces; without a target: face_008.png, face_009.png"
    assert "2 targets are not in" in pairs.lines[-1] and "face_008.png, face_009.png" in pairs.lines[-1]
    (out / INDEX).unlink()
    with pytest.raises(InputFileError, match=r"10 targets are not in .*Only 0 faces.*ufr-edge targets -i"):
        load_pairs(faces, out, SIDE)


def test_pictures_of_a_folder_of_the_users_count_fully(faces: Path, tmp_path: Path) -> None:
    out = write_faces(tmp_path / "clean", make_faces(10))
    (out / CONFIG).write_text(json.dumps({"prior": "far-prior"}))
    line = {"face": "face_000.png", "target": "face_000.png", "weight": 0.5}
    (out / INDEX).write_text(json.dumps(line) + "\n")
    pairs = load_pairs(faces, out, SIDE)
    assert not made_here(out) and pairs.weights is not None
    assert pairs.weights.tolist() == [0.5] + [1.0] * 9


# 8: what is measured on is not trained on


def test_faces_that_are_trained_on_are_not_measured(faces: Path, tmp_path: Path) -> None:
    test = write_faces(tmp_path / "test", make_faces(3, seed=4))
    (test / "a.png").write_bytes((faces / "face_002.png").read_bytes())
    (test / "wide.png").write_bytes(b"no picture")
    for truth in (None, write_faces(tmp_path / "truth", make_faces(3, seed=4))):
        told: list[str] = []
        held, found = _to_measure_on(test, truth, SIDE, told.append, trained=faces)
        measured = held.lq if held else found.images if found else None
        assert np.array_equal(measured, make_faces(3, seed=4))  # type: ignore[arg-type]
        assert told[-1] == "not measured, being training faces too: a.png (there face_002.png)"
        assert "wide.png" in "".join(told)
        for folder in (faces, write_faces(tmp_path / "same", make_faces(2))):
            with pytest.raises(InputFileError, match="0 good faces.*not trained on"):
                _to_measure_on(folder, truth, SIDE, told.append, trained=faces)


def test_faces_that_are_trained_on_do_not_use_up_what_is_measured(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapting, "MEASURED", 4)
    test = write_faces(tmp_path / "test", np.concatenate([make_faces(10)[:5], make_faces(6, seed=4)]))
    told: list[str] = []
    _, found = _to_measure_on(test, None, SIDE, told.append, trained=faces)
    assert found is not None and np.array_equal(found.images, make_faces(6, seed=4)[:4])
    assert "the first 4 faces" in told[0] and "face_000.png, face_001.png, face_002.png and 2 more" in told[-1]


def test_the_report_calls_only_other_faces_kept_out_of_training(
    faces: Path, config: TargetsConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = AdaptConfig(targets=config, finetune=finetuning(), shown=2, curve="never")
    with monkeypatch.context() as patch, pytest.raises(InputFileError, match="10 trained on"):
        patch.setattr(adapting, "make_targets", lambda *_, **__: pytest.fail("targets were drawn"))
        adapt(faces, tmp_path / "run", settings, test_faces=faces, show=False)
    test = write_faces(tmp_path / "test", np.concatenate([make_faces(2), make_faces(3, seed=4)]))
    page = adapt(faces, tmp_path / "run", settings, test_faces=test, show=False).report.read_text()
    assert "Faces kept out of training" in page and "pixels of a training face" in page
    assert "Measured on 3 faces" in page


# What else writes into the output folder


def test_the_dials_folder_takes_no_given_faces_place(config: TargetsConfig, tmp_path: Path) -> None:
    faces = write_faces(tmp_path / "cam" / "dial", make_faces(9, seed=1))
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match="would be lost"):
        sweep_targets(faces, tmp_path / "cam", config, show=False)
    with pytest.raises(ConfigError, match="would be lost"):
        _check_kept(faces, tmp_path / "cam", align=False)
    with pytest.raises(OutputError, match="holds files but no settings.json"):
        sweep_targets(write_faces(tmp_path / "x", make_faces(9)), tmp_path / "cam", config, count=1, show=False)
    assert {name: data for name, data in contents(tmp_path).items() if not name.startswith("x")} == before


def test_finetune_writes_into_no_folder_it_reads(faces: Path, config: TargetsConfig, tmp_path: Path) -> None:
    targets = write_faces(tmp_path / "targets", make_faces(9, seed=1))
    for out in (faces, targets):
        with pytest.raises(ConfigError, match="is read from"):
            finetune(faces, targets, out, finetuning(), show=False)


def test_another_folder_of_clean_faces_is_another_camera(
    faces: Path, config: TargetsConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    estimated: list[int] = []

    def estimate(lq: Any, clean: Any, *_: Any, **__: Any) -> CameraSpread:
        estimated.append(len(clean))
        return CameraSpread(models=(CameraModel(blur=1.0),), faces=len(lq))

    monkeypatch.setattr(training, "estimate_spread", estimate)
    usual = finetuning()
    settings = dataclasses.replace(usual, restorer=config.restorer, camera_pairs=0.5, camera_pairs_of="real")
    for count in (9, 9, 10):
        real = write_faces(tmp_path / f"real-{count}", make_faces(count, seed=2))
        finetune(faces, faces, tmp_path / "run", settings, real=real, show=False)
    assert estimated == [9, 10]  # resumed it is kept; with other faces estimated anew
