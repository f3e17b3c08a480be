"""Skill on the cameras a bundle was adapted to before: remembered in its lineage, replayed, and checked by the gate."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_bundle import write_tiny_bundle
from training_fakes import make_faces

from ufr_edge.adaptation.camera_pairs import (
    CameraModel,
    camera_source,
    degrade_all,
    estimate_from_fingerprint,
)
from ufr_edge.adaptation.earlier_cameras import CAMERAS, MOST, earlier_cameras, lineage_text, replay_source
from ufr_edge.adaptation.faces import FaceSet
from ufr_edge.adaptation.finetune import kept_source, mixed_pairs
from ufr_edge.adaptation.readapt_gate import Outputs, ReadaptLimits, compare, judge
from ufr_edge.adaptation.restorer_task import PairSource
from ufr_edge.adaptation.sources import degrading_source
from ufr_edge.errors import InputFileError
from ufr_edge.runtime.bundle import Bundle, read_bundle
from ufr_edge.runtime.fingerprint import fingerprint

NIGHT = CameraModel(blur=0.5, shrink=2.0, noise=(9.0, 8.0, 7.0, 6.0, 5.0), chroma=1.25, quality=50)
DAY = CameraModel(blur=1.5)
DARK = CameraModel(noise=(250.0,) * 5)


def bundle(tmp_path: Path, lineage: dict[str, str]) -> Bundle:
    found = read_bundle(write_tiny_bundle(tmp_path / "tiny.ufr"))
    return replace(found, manifest=replace(found.manifest, lineage=lineage))


def test_the_last_cameras_of_a_lineage_are_known(tmp_path: Path) -> None:
    text = lineage_text([DARK, *[DAY] * (MOST - 1), NIGHT])
    assert len(json.loads(text)) == MOST
    parent = bundle(tmp_path, {CAMERAS: text})
    for name in ("work", "b"):
        (tmp_path / name).mkdir()
    found = earlier_cameras(parent, tmp_path / "nowhere", tmp_path / "work", seed=0)
    assert found == (*[DAY] * (MOST - 1), NIGHT)
    # The next call reads what this one wrote.
    bare = bundle(tmp_path / "b", {})
    assert earlier_cameras(bare, tmp_path / "nowhere", tmp_path / "work", seed=0) == found


def test_a_bundle_without_cameras_and_fingerprint_has_none(tmp_path: Path) -> None:
    assert earlier_cameras(bundle(tmp_path, {}), tmp_path / "nowhere", tmp_path, seed=0) == ()


@pytest.mark.parametrize("text", ["[", "7", "[{}]", '[{"blur": -1, "shrink": 1, "noise": [], "chroma": 0}]'])
def test_a_lineage_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputFileError, match="names cameras that cannot be read"):
        earlier_cameras(bundle(tmp_path, {CAMERAS: text}), tmp_path, tmp_path, seed=0)


def test_a_camera_is_estimated_from_its_fingerprint_alone() -> None:
    noisy = CameraModel(noise=(12.0,) * 5)
    seen = fingerprint(degrade_all(make_faces(6, seed=1), noisy, seed=0))
    clean = make_faces(6, seed=2)  # other faces than the camera saw
    found = estimate_from_fingerprint(seen, clean, probe=4)
    assert found.distance < 0.6 * found.before
    assert estimate_from_fingerprint(seen, clean, probe=4) == found


def test_replay_mixes_the_first_training_with_earlier_cameras() -> None:
    images = make_faces(6, seed=1)
    clean = FaceSet(images=images, names=tuple(f"{i}.png" for i in range(len(images))))
    everything = slice(None)
    alone = replay_source(clean, (), 4, 3)(0, everything)
    assert np.array_equal(alone[0], degrading_source(clean, {"classic": 1.0}, 4, 3)(0, everything)[0])
    draw = replay_source(clean, (DARK, DAY), 4, 3)
    lq, goal = (
        np.concatenate(side) for side in zip(*[draw(step, everything) for step in range(12)], strict=True)
    )
    again = draw(0, slice(1, 3))
    assert np.array_equal(again[0], lq[1:3]) and np.array_equal(again[1], goal[1:3])
    error = np.abs(lq.astype(float) - goal).mean((1, 2, 3))
    assert 0.1 < (error > 60).mean() < 0.6  # about a third has seen the dark camera
    originals = {face.tobytes() for face in (*images, *images[:, :, ::-1])}
    assert all(np.ascontiguousarray(face).tobytes() in originals for face in goal)


def counted(source: PairSource, asked: list[int]) -> PairSource:
    """The same source; every row it gives is noted in `asked`."""

    def draw(step: int, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        lq, goal = source(step, rows)
        asked.append(len(lq))
        return lq, goal

    return draw


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_every_pair_of_a_batch_is_drawn_once_in_however_many_parts(parts: int) -> None:
    images = make_faces(6, seed=1)
    clean = FaceSet(images=images, names=tuple(f"{i}.png" for i in range(len(images))))
    own, replayed, restored = list[int](), list[int](), list[int]()

    def before(faces: np.ndarray) -> np.ndarray:
        restored.append(len(faces))
        return np.asarray(255 - faces)

    kept = kept_source(counted(replay_source(clean, (DARK, DAY), 5, 3), replayed), before)
    pairs = counted(lambda _, rows: (images[rows], images[rows]), own)
    # The last three rows are of a camera of today, which no part but the last has any of.
    draw = mixed_pairs(pairs, [(5, kept), (3, degrading_source(clean, {"classic": 1.0}, 3, 4))], 12)
    whole = draw(2, slice(None))
    asked = [counts.copy() for counts in (own, replayed, restored)]
    assert asked == [[4], [5], [5]]
    for counts in (own, replayed, restored):
        counts.clear()
    size = 12 // parts
    cut = [draw(2, slice(i * size, (i + 1) * size)) for i in range(parts)]
    for side in (0, 1):
        assert np.array_equal(np.concatenate([part[side] for part in cut]), whole[side])
    assert (sum(own), sum(replayed), sum(restored)) == (4, 5, 5) and 0 not in own + replayed


def test_replay_asks_a_camera_for_its_own_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    images = make_faces(6, seed=1)
    clean = FaceSet(images=images, names=tuple(f"{i}.png" for i in range(len(images))))
    asked = list[int]()
    module = "ufr_edge.adaptation.earlier_cameras"
    monkeypatch.setattr(f"{module}.degrading_source", lambda *given: counted(degrading_source(*given), asked))
    monkeypatch.setattr(f"{module}.camera_source", lambda *given: counted(camera_source(*given), asked))
    draw = replay_source(clean, (DARK, DAY), 2, 3)  # two a batch, as the settings have it
    for step in range(8):
        asked.clear()
        draw(step, slice(0, 2))
        assert sum(asked) == 2
        draw(step, slice(1, 2))
        assert asked[-1] == 1 and sum(asked) == 3


def test_loss_on_an_earlier_camera_is_a_reason() -> None:
    clean = make_faces(4, seed=1)
    worse = np.clip(clean.astype(int) + 9, 0, 255).astype(np.uint8)
    old = Outputs(camera=clean, skill=clean, earlier=(worse, worse))
    new = Outputs(camera=clean, skill=clean, earlier=(worse, clean // 2))
    report = judge(old, new, lq=clean, truth=clean, clean=clean, limits=ReadaptLimits(better=0))
    (reason,) = report.reasons
    assert reason.startswith("PSNR in dB on clean faces degraded as by earlier camera 2: ")
    figures = report.figures["old"]
    assert compare(figures, dict(figures, earlier_camera_1_psnr_db=figures["earlier_camera_1_psnr_db"] - 0.29), ReadaptLimits(better=0)) == ()  # fmt: skip
