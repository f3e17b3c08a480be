"""Scores of targets, and the limits by which they are kept, weighed down or rejected."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from training_fakes import SIDE, make_faces

from ufr_edge.adaptation.qa import (
    LEAST,
    Embedder,
    Examiner,
    QaConfig,
    colour_shift,
    counts,
    drift,
    judge,
    noise_scores,
    weight_of,
    worst,
)
from ufr_edge.errors import ConfigError, ModelFileError
from ufr_edge.runtime.engines.base import EngineInfo
from ufr_edge.runtime.faces.align import template
from ufr_edge.runtime.faces.detect import Face

Image = NDArray[np.uint8]


class Points:
    """A detector that answers with points moved by the next of `shifts`, None for no face."""

    def __init__(self, shifts: Sequence[float | None]) -> None:
        self.shifts = list(shifts)

    @property
    def info(self) -> EngineInfo:
        raise NotImplementedError

    def detect(self, frame: Image) -> list[Face]:
        shift = self.shifts.pop(0)
        points = template(frame.shape[0])
        box = np.array([0, 0, 10, 10], np.float32)
        return [] if shift is None else [Face(box=box, score=0.9, landmarks=points + np.float32(shift))]


def test_weights_fall_from_good_to_bad_whichever_way_that_is() -> None:
    assert [weight_of(v, 4, 8) for v in (0, 4, 8, 8.01)] == [1, 1, LEAST, 0]
    assert [weight_of(v, 0.5, 0.2) for v in (0.9, 0.5, 0.2, 0.1)] == [1, 1, LEAST, 0]
    assert weight_of(float("nan"), 4, 8) == 0
    assert LEAST < weight_of(6, 4, 8) < 1


def test_a_target_is_judged_by_all_its_scores() -> None:
    config = QaConfig(drift=(4, 8), colour=(2, 6))
    assert judge({"drift": 1.0, "colour": 1.0}, config).verdict == "kept"
    less = judge({"drift": 6.0, "colour": 4.0}, config)
    assert less.verdict == "down-weighted" and less.weight == pytest.approx((1 - 0.75 / 2) ** 2, abs=1e-3)
    assert len(less.reasons) == 2 and "drift 6 (limit 4)" in less.reasons
    gone = judge({"drift": 9.0, "colour": 1.0}, config)
    assert (gone.verdict, gone.weight) == ("rejected", 0)
    assert judge({"landmarks_lost": 1.0}, config).verdict == "rejected"
    assert judge({"drift": 99.0}, QaConfig(judge=False)).weight == 1
    with pytest.raises(ConfigError, match="colour"):
        QaConfig(colour=(3, 3))


def test_drift_sees_blotches_and_colour_but_not_noise() -> None:
    face = make_faces(1)[0]
    rng = np.random.default_rng(0)
    noisy = np.clip(face + rng.normal(0, 12, face.shape), 0, 255).astype(np.uint8)
    warm = np.clip(face.astype(int) + [10, 0, 0], 0, 255).astype(np.uint8)
    assert drift(face, face) == 0
    assert drift(noisy, face) < 3 < drift(warm, face)
    assert colour_shift(warm, face) == pytest.approx(10, abs=0.5) and colour_shift(noisy, face) < 1


def test_noise_is_scored_on_luma_and_on_chroma() -> None:
    rng = np.random.default_rng(1)
    flat = np.full((128, 128, 3), 120, np.uint8)
    grey = np.clip(flat + rng.normal(0, 6, (128, 128, 1)), 0, 255).round().astype(np.uint8)
    coloured = np.clip(flat + rng.normal(0, 6, flat.shape), 0, 255).round().astype(np.uint8)
    assert noise_scores(grey)["noise"] == pytest.approx(6, rel=0.15)
    assert noise_scores(grey)["noise_chroma"] < 0.5
    assert noise_scores(coloured)["noise_chroma"] == pytest.approx(6 * 2**0.5, rel=0.15)


def test_points_that_move_or_vanish_are_scored() -> None:
    faces = make_faces(3)
    # Targets first, then references: moved by 1 px across and down, lost, never there.
    detector = Points([1.0, None, None, 0.0, 0.0, None])
    scores = Examiner(QaConfig(), detector).scores(faces, faces, faces)
    assert scores[0]["landmark_px512"] == pytest.approx(2**0.5 * 512 / SIDE, rel=1e-3)
    assert scores[1]["landmarks_lost"] == 1 and judge(scores[1], QaConfig()).verdict == "rejected"
    assert "landmark_px512" not in scores[2] and "landmarks_lost" not in scores[2]


def test_clipping_and_disagreement_with_the_input_count_beyond_the_restorers() -> None:
    face = make_faces(1)[0]
    burnt = face.copy()
    burnt[:20] = 255
    (scores,) = Examiner(QaConfig(), None).scores(burnt[None], face[None], face[None])
    assert scores["clipped"] == pytest.approx(20 / SIDE, abs=0.02)
    assert scores["drift_input"] == pytest.approx(scores["drift"], abs=1e-3)
    (same,) = Examiner(QaConfig(), None).scores(burnt[None], burnt[None], face[None])
    assert same["clipped"] == 0 and same["drift_input"] == 0


def embedding_network(path: Path, shape: tuple[int, ...]) -> Path:
    """The mean of each channel, for (1, 3, S, S)."""
    node = helper.make_node("ReduceMean", ["x"], ["y"], axes=[2, 3], keepdims=0)
    graph = helper.make_graph(
        [node],
        "mean",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, str(path))
    return path


def test_identity_is_the_cosine_of_embeddings(tmp_path: Path) -> None:
    path = embedding_network(tmp_path / "net.onnx", (1, 3, 112, 112))
    red, blue = np.zeros((2, SIDE, SIDE, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    embed = Embedder(path)
    assert embed(red) == pytest.approx(np.array([1, -1, -1]) / 3**0.5, abs=1e-2)
    (scores,) = Examiner(QaConfig(embedder=path), None).scores(red[None], blue[None], red[None])
    assert scores["identity"] == pytest.approx(-1 / 3, abs=0.02)
    with pytest.raises(ModelFileError, match=r"1, 3, S, S"):
        Embedder(embedding_network(tmp_path / "other.onnx", (1, 4, 112, 112)))


def test_the_worst_come_first() -> None:
    entries = [
        {"face": "a", "weight": 1.0, "verdict": "kept", "scores": {"drift": 1.0}},
        {"face": "b", "weight": 0.0, "verdict": "rejected", "scores": {"drift": 20.0}},
        {"face": "c", "weight": 1.0, "verdict": "kept", "scores": {"drift": 3.0}},
    ]
    assert [entry["face"] for entry in worst(entries, 2)] == ["b", "c"]
    assert counts(entries) == {"kept": 2, "down-weighted": 0, "rejected": 1}
