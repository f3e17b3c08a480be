"""The quick ways of the face stages give what the plain ones give, within one level, and do no more than they should."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
import pytest
from clips import textured
from face_fakes import sensor_noise

from ufr_edge.runtime.faces.align import similarity, template
from ufr_edge.runtime.faces.paste import face_box, feather_mask, match_colour, paste_face
from ufr_edge.runtime.faces.warp import inverse, refined, scale_of, warp, warp_mask
from ufr_edge.runtime.frame import Affine, Box, Frame

FRAME = sensor_noise(4)(textured((360, 270), seed=7), 0)


def turned(scale: float, degrees: float, shift: tuple[float, float]) -> Affine:
    a = math.radians(degrees)
    c, s = scale * math.cos(a), scale * math.sin(a)
    return np.array([[c, -s, shift[0]], [s, c, shift[1]]])


def plain_warp(picture: Frame, matrix: Affine, size: tuple[int, int], border: int) -> Frame:
    """Three channels, the whole picture, every mean taken by INTER_AREA."""
    k = max(1, math.ceil(1 / scale_of(matrix) - 0.05))
    fine = cv2.warpAffine(
        picture, refined(matrix, k), (size[0] * k, size[1] * k), flags=cv2.INTER_LINEAR, borderMode=border
    )
    return np.asarray(fine if k == 1 else cv2.resize(fine, size, interpolation=cv2.INTER_AREA), np.uint8)


def plain_paste(frame: Frame, face: Frame, matrix: Affine, box: Box, fidelity: float) -> Frame:
    """Whole numbers only at the very end."""
    back = inverse(matrix)
    back[:, 2] -= box[:2]
    size = (box[2] - box[0], box[3] - box[1])
    alpha = warp_mask(feather_mask(len(face)), back, size)[..., None] * (1 - fidelity)
    above = plain_warp(face, back, size, cv2.BORDER_REPLICATE).astype(np.float64)
    out = frame.astype(np.float64)
    out[box[1] : box[3], box[0] : box[2]] += alpha * (above - out[box[1] : box[3], box[0] : box[2]])
    return np.rint(out).astype(np.uint8)


def decomposed(source: Affine, target: Affine) -> Affine:
    """Umeyama's similarity as he wrote it, eq. 40-42."""
    s, t = source - source.mean(axis=0), target - target.mean(axis=0)
    u, d, vt = np.linalg.svd(t.T @ s)
    signs = np.array([1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    linear = float(d @ signs) / float((s**2).sum()) * (u * signs) @ vt
    return np.column_stack([linear, target.mean(axis=0) - linear @ source.mean(axis=0)])


class TestSameAsPlain:
    @pytest.mark.parametrize("scale", [0.19, 0.34, 0.45, 0.8, 1.3, 2.5])
    @pytest.mark.parametrize("shift", [(-30.0, -40.0), (-300.0, 10.0), (20.0, -5.0)])
    @pytest.mark.parametrize("border", [cv2.BORDER_REFLECT_101, cv2.BORDER_REPLICATE])
    def test_a_warp(self, scale: float, shift: tuple[float, float], border: int) -> None:
        matrix = turned(scale, 9, shift)
        got = warp(FRAME, matrix, (96, 80), border=border)
        wanted = plain_warp(FRAME, matrix, (96, 80), border)
        assert got.shape == wanted.shape and got.flags.c_contiguous
        difference = np.abs(got.astype(int) - wanted)
        assert difference.max() <= 1 and difference.mean() < 0.05

    @pytest.mark.parametrize("fidelity", [0.0, 0.4])
    @pytest.mark.parametrize(
        ("scale", "shift"), [(1.1, (-60.0, -80.0)), (2.2, (-90.0, -150.0)), (1.0, (40.0, 20.0))]
    )
    def test_a_paste(self, fidelity: float, scale: float, shift: tuple[float, float]) -> None:
        matrix, face = turned(scale, -6, shift), textured((160, 160), seed=2)
        box = face_box(matrix, 160, FRAME.shape[1], FRAME.shape[0])
        assert box is not None
        got = paste_face(FRAME, face, matrix, fidelity=fidelity, colour_match=False)
        wanted = plain_paste(FRAME, face, matrix, box, fidelity)
        assert np.abs(got.astype(int) - wanted).max() <= 1

    @pytest.mark.parametrize(("light", "side"), [(-20, 128), (35, 256), (-150, 128), (140, 127)])
    def test_colours(self, light: int, side: int) -> None:
        face = textured((side, side), seed=5)
        ramp = np.linspace(0.4, 1, side)[None, :, None] * light  # not the same everywhere
        crop = np.clip(np.rint(face + ramp), 0, 255).astype(np.uint8)
        low = [cv2.resize(p, (8, 8), interpolation=cv2.INTER_AREA).astype(np.float32) for p in (crop, face)]
        shift = cv2.resize(low[0] - low[1], (side, side), interpolation=cv2.INTER_CUBIC)
        wanted = np.clip(np.rint(face + shift), 0, 255)
        most = 1 if abs(light) < 90 else 2  # a great shift is kept in steps of two levels
        assert np.abs(match_colour(face, crop) - wanted).max() <= most

    @pytest.mark.parametrize("mirrored", [False, True])
    def test_a_similarity(self, mirrored: bool) -> None:
        rng = np.random.default_rng(3)
        target = template(256).astype(np.float64)
        sign = -1.0 if mirrored else 1.0
        source = target * np.array([0.6 * sign, 0.6]) + rng.normal(0, 4, (5, 2)) + 90
        np.testing.assert_allclose(similarity(source, target), decomposed(source, target), atol=1e-9)


class TestNoMoreThanItMust:
    def test_a_crop_reads_only_its_part_of_the_frame(self, monkeypatch: pytest.MonkeyPatch) -> None:
        given: list[int] = []
        real = cv2.warpAffine

        def counted(picture: Any, *args: Any, **options: Any) -> Any:
            given.append(picture.size)
            return real(picture, *args, **options)

        monkeypatch.setattr("ufr_edge.runtime.faces.warp.cv2.warpAffine", counted)
        large = np.zeros((1080, 1920, 3), np.uint8)
        warp(large, turned(1.2, 5, (-900, -500)), (128, 128))
        assert len(given) == 1 and given[0] < 4 * 140 * 140

    def test_bytes_are_enlarged_and_not_floats(self, monkeypatch: pytest.MonkeyPatch) -> None:
        kinds: set[str] = set()
        real = cv2.resize

        def noted(picture: Any, *args: Any, **options: Any) -> Any:
            kinds.add(str(picture.dtype))
            return real(picture, *args, **options)

        monkeypatch.setattr("ufr_edge.runtime.faces.paste.cv2.resize", noted)
        match_colour(textured((128, 128), seed=1), textured((128, 128), seed=2))
        assert kinds == {"uint8"}
