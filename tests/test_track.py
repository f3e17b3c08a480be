"""Faces followed through a stream: identities, motion between detections, cuts, outliers, limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from clips import textured
from face_fakes import PICTURE, POINTS, PlannedDetector, face_from

from ufr_edge.errors import ConfigError, ShapeError
from ufr_edge.runtime.faces.detect import Face
from ufr_edge.runtime.faces.limits import FaceLimits, reason_to_skip, yaw_degrees
from ufr_edge.runtime.faces.one_euro import OneEuro, OneEuroConfig
from ufr_edge.runtime.faces.track import FaceTracker, TrackConfig, TrackedFace, found_in_still, overlap
from ufr_edge.runtime.faces.warp import apply, compose, inverse
from ufr_edge.runtime.frame import FloatArray, Frame
from ufr_edge.runtime.motion_metrics import SpeakingScene
from ufr_edge.runtime.video.synthetic import Motion, SyntheticScene

RAW = TrackConfig(smooth=None)
GENTLE = Motion(zoom=(0.95, 1.1), pan=0.05, turn=5)


def scene_of(frames: int = 30, *, motion: Motion = GENTLE) -> SyntheticScene:
    return SyntheticScene([PICTURE], size=(240, 180), frames=frames, motion=motion)


def true_points(scene: SyntheticScene, index: int) -> FloatArray:
    return apply(scene.matrix(index), POINTS)


def plan_of(scene: SyntheticScene) -> list[list[Face]]:
    return [[face_from(true_points(scene, i))] for i in range(len(scene))]


def run(
    detector: PlannedDetector, frames: list[Frame], config: TrackConfig = RAW, *, rate: float = 30.0
) -> list[tuple[TrackedFace, ...]]:
    tracker = FaceTracker(detector, config, FaceLimits())
    out = []
    for index, frame in enumerate(frames):
        detector.at = index
        out.append(tracker.update(frame, index / rate))
    return out


class TestFollowing:
    def test_landmarks_go_along_between_detections(self) -> None:
        scene = scene_of(31)
        detector = PlannedDetector(plan_of(scene))
        seen = run(detector, [scene.frame(i) for i in range(31)], TrackConfig(detect_every=10, smooth=None))
        assert detector.calls == [0, 10, 20, 30]
        assert {face.identity for faces in seen for face in faces} == {1}
        assert {face.evidence for face in seen[5]} == {"followed"} and seen[10][0].evidence == "detected"
        travelled = np.abs(true_points(scene, 9) - true_points(scene, 0)).max()
        errors = [
            np.abs(faces[0].face.landmarks - true_points(scene, i)).max() for i, faces in enumerate(seen)
        ]
        assert travelled > 5 and max(errors) < 1.0

    def test_the_path_is_the_motion_of_the_picture(self) -> None:
        scene = scene_of(20)
        seen = run(PlannedDetector(plan_of(scene)), [scene.frame(i) for i in range(20)])
        moved = apply(seen[-1][0].path, true_points(scene, 0))
        assert np.abs(moved - true_points(scene, 19)).max() < 1.5

    def test_a_mouth_that_opens_does_not_carry_the_head_along(self) -> None:
        scene = SpeakingScene(PICTURE, POINTS, size=(240, 180), frames=14, motion=GENTLE)
        points = [apply(scene.matrix(i), POINTS) for i in range(14)]
        config = TrackConfig(detect_every=100, smooth=None)
        found = PlannedDetector([[face_from(points[0])]] * 14)
        paths = [faces[0].path for faces in run(found, [scene.frame(i) for i in range(14)], config)]
        steps = [compose(paths[i], inverse(paths[i - 1])) for i in range(1, 14)]
        errors = [np.abs(apply(step, points[i]) - points[i + 1]).max() for i, step in enumerate(steps)]
        assert np.mean(errors) < 0.11 and np.median(errors) < 0.05  # pixels; least squares: 0.18, 0.21

    def test_a_cut_is_a_new_face_at_once(self) -> None:
        pictures = [PICTURE, textured((240, 180), seed=9)]
        scene = SyntheticScene(pictures, size=(240, 180), frames=22, motion=GENTLE)
        detector = PlannedDetector(plan_of(scene))
        seen = run(detector, [scene.frame(i) for i in range(22)], TrackConfig(detect_every=5, smooth=None))
        assert 11 in detector.calls  # not 15, where it would have been due
        assert [faces[0].identity for faces in seen] == [1] * 11 + [2] * 11

    def test_a_face_that_is_gone_is_coasted_for_two_frames_at_most(self) -> None:
        frames = [PICTURE] * 4 + [np.full_like(PICTURE, 90)] * 6
        plan = [[face_from(POINTS)]] * 4 + [[]] * 6
        config = TrackConfig(smooth=None, cut_likeness=-1.0)
        counts = [len(faces) for faces in run(PlannedDetector(plan), frames, config)]
        assert counts[:4] == [1] * 4 and sum(counts[4:]) <= 2 and counts[6:] == [0] * 4

    def test_a_face_the_detector_misses_is_followed_for_some_detections(self) -> None:
        plan = [[face_from(POINTS)]] * 8 + [[]] * 30
        config = TrackConfig(smooth=None, detect_every=2, max_missed=3)
        counts = [len(faces) for faces in run(PlannedDetector(plan), [PICTURE] * 20, config)]
        assert (
            counts == [1] * 14 + [0] * 6
        )  # detections without it at 8, 10, 12 are borne, that at 14 ends it

    def test_what_was_found_only_once_is_not_followed_for_long(self) -> None:
        plan = [[face_from(POINTS)]] + [[]] * 9
        counts = [len(faces) for faces in run(PlannedDetector(plan), [PICTURE] * 9, RAW)]
        assert counts == [1] * 3 + [0] * 6

    def test_identities_do_not_depend_on_the_detectors_order(self) -> None:
        other = (POINTS * 0.8 + np.array([-30, 50], np.float32)).astype(np.float32)
        pair = [face_from(POINTS), face_from(other)]
        plan = [pair if i % 2 else pair[::-1] for i in range(8)]
        seen = run(PlannedDetector(plan), [PICTURE] * 8, TrackConfig(detect_every=1, smooth=None))
        places = {
            (face.identity, round(float(face.face.landmarks[0, 0]))) for faces in seen for face in faces
        }
        assert len(places) == 2

    def test_time_that_jumps_or_another_size_begins_anew(self) -> None:
        detector = PlannedDetector([[face_from(POINTS)]])
        tracker = FaceTracker(detector, RAW, FaceLimits())
        wide = np.ascontiguousarray(np.pad(PICTURE, ((0, 0), (0, 60), (0, 0)), mode="wrap"))
        steps = [(PICTURE, 5.0), (PICTURE, 5.1), (PICTURE, 4.0), (PICTURE, 9.0), (wide, 9.1)]
        assert [tracker.update(f, t)[0].identity for f, t in steps] == [1, 1, 2, 3, 4]

    def test_refuses_what_is_no_frame(self) -> None:
        tracker = FaceTracker(PlannedDetector([[]]), RAW, FaceLimits())
        with pytest.raises(ShapeError):
            tracker.update(np.zeros((8, 8), np.uint8), 0.0)
        with pytest.raises(ConfigError, match="detect_every"):
            TrackConfig(detect_every=0)
        with pytest.raises(ConfigError, match="max_jump"):
            TrackConfig(max_jump=0)


class TestOutliers:
    @pytest.mark.parametrize("kind", ["far", "large", "turned"])
    def test_an_unbelievable_detection_is_not_taken_at_first(self, kind: str) -> None:
        centre = POINTS.mean(axis=0)
        turn = math.radians(35)
        spin = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]], np.float32)
        wrong = {
            "far": POINTS + np.float32(25),
            "large": centre + (POINTS - centre) * np.float32(1.5),
            "turned": centre + (POINTS - centre) @ spin,
        }[kind]
        plan = [[face_from(POINTS)]] + [[face_from(wrong)]] * 5
        config = TrackConfig(detect_every=1, max_rejected=2, smooth=None)
        seen = run(PlannedDetector(plan), [PICTURE] * 5, config)
        errors = [float(np.abs(faces[0].face.landmarks - POINTS).max()) for faces in seen]
        assert max(errors[:3]) < 0.5  # two are rejected
        assert np.abs(seen[3][0].face.landmarks - wrong).max() < 0.5  # the third is believed
        assert {face.identity for faces in seen for face in faces} == {1}

    def test_a_small_difference_is_taken_over_little_by_little(self) -> None:
        plan = [[face_from(POINTS)]] + [[face_from(POINTS + np.float32(2))]] * 12
        seen = run(PlannedDetector(plan), [PICTURE] * 13, TrackConfig(detect_every=1, smooth=None))
        errors = [float((faces[0].face.landmarks - POINTS).mean()) for faces in seen]
        assert 0.2 < errors[1] < 1.0 and errors[-1] > 1.8 and sorted(errors) == errors


class TestOneEuro:
    def noisy(self, rate: float, seconds: float = 4.0) -> FloatArray:
        rng = np.random.default_rng(0)
        return rng.normal(100, 1, (round(rate * seconds), 5, 2)).astype(np.float32)

    def test_still_points_are_held_and_moving_ones_not_delayed(self) -> None:
        held = OneEuro(OneEuroConfig(min_cutoff=1.0, beta=12))
        values = self.noisy(30)
        out = np.stack([held.step(v, i / 30, unit=200) for i, v in enumerate(values)])
        assert np.diff(out[20:], axis=0).std() < 0.35 * np.diff(values[20:], axis=0).std()
        fast = OneEuro(OneEuroConfig(min_cutoff=1.0, beta=12))
        for i in range(60):
            moved = fast.step(np.full((5, 2), 4.0 * i, np.float32), i / 30, unit=200)
        lag = 4.0 * 59 - float(moved.mean())
        plain = OneEuro(OneEuroConfig(min_cutoff=1.0, beta=0))
        for i in range(60):
            slow = plain.step(np.full((5, 2), 4.0 * i, np.float32), i / 30, unit=200)
        assert lag < 0.2 * (4.0 * 59 - float(slow.mean()))

    def test_size_does_not_matter_in_face_units(self) -> None:
        one, other = OneEuro(OneEuroConfig()), OneEuro(OneEuroConfig())
        for i, value in enumerate(self.noisy(30, 1.0)):
            a, b = one.step(value, i / 30, unit=50), other.step(value * 4, i / 30, unit=200)
        np.testing.assert_allclose(b, a * 4, rtol=1e-5)

    def test_frame_rate_does_not_matter(self) -> None:
        ends = []
        for rate in (25, 100):
            filtered = OneEuro(OneEuroConfig())
            filtered.step(np.zeros((1, 2), np.float32), 0.0, unit=100)
            for i in range(1, rate // 5 + 1):  # a fifth of a second after a step of 1 % of the face
                out = filtered.step(np.ones((1, 2), np.float32), i / rate, unit=100)
            ends.append(float(out[0, 0]))
        assert abs(ends[0] - ends[1]) < 0.08 and 0.5 < ends[0] < 0.95

    def test_time_that_stands_still_changes_nothing(self) -> None:
        filtered = OneEuro(OneEuroConfig())
        filtered.step(np.zeros((1, 2), np.float32), 1.0)
        assert (filtered.step(np.ones((1, 2), np.float32), 1.0) == 0).all()
        with pytest.raises(ConfigError):
            OneEuroConfig(min_cutoff=0)


class TestLimits:
    def model(self, yaw: float, roll: float = 0.0) -> FloatArray:
        """Five points of a head in space, turned and seen from afar."""
        head = np.array([[-0.5, 0, 0], [0.5, 0, 0], [0, 0.55, 0.45], [-0.4, 1.1, 0], [0.4, 1.1, 0]])
        a, b = math.radians(yaw), math.radians(roll)
        x = head[:, 0] * math.cos(a) + head[:, 2] * math.sin(a)
        flat = np.stack([x, head[:, 1]], axis=1)
        spin = np.array([[math.cos(b), math.sin(b)], [-math.sin(b), math.cos(b)]])
        return np.asarray(100 + 60 * flat @ spin, np.float32)

    @pytest.mark.parametrize("yaw", [-70.0, -30.0, 0.0, 20.0, 50.0, 80.0])
    @pytest.mark.parametrize("roll", [0.0, 40.0])
    def test_yaw(self, yaw: float, roll: float) -> None:
        assert abs(yaw_degrees(self.model(yaw, roll)) - yaw) < 6

    def test_each_limit_gives_its_reason(self) -> None:
        limits = FaceLimits(min_side=100, max_yaw=40, min_score=0.5)
        good = face_from(self.model(0))
        assert reason_to_skip(good, limits) is None
        small = Face(box=np.array([0, 0, 95, 300], np.float32), score=0.9, landmarks=good.landmarks)
        assert "too small: 95 px, limit 100" in str(reason_to_skip(small, limits))
        assert reason_to_skip(small, limits, restored_before=True) is None  # it does not come and go
        assert "too unsure" in str(reason_to_skip(face_from(self.model(0), score=0.4), limits))
        turned = Face(box=good.box, score=0.9, landmarks=self.model(60))
        assert "turned away" in str(reason_to_skip(turned, limits))

    def test_the_largest_faces_go_first(self) -> None:
        faces = [face_from(POINTS * np.float32(k)) for k in (0.5, 1.5, 1.0)]
        seen = found_in_still(faces, FaceLimits(max_faces=2))
        sizes = [float(one.face.box[2] - one.face.box[0]) for one in seen]
        assert sizes == sorted(sizes, reverse=True)
        assert [one.skipped for one in seen] == [None, None, "one too many: limit 2"]
        assert {one.identity for one in seen} == {0}

    def test_refuses_limits_out_of_range(self) -> None:
        for bad in ({"min_side": -1}, {"max_yaw": 0}, {"min_score": 1}, {"max_faces": 0}):
            with pytest.raises(ConfigError):
                FaceLimits(**bad)


def test_overlap() -> None:
    a, b = np.array([0, 0, 10, 10], np.float32), np.array([5, 0, 15, 10], np.float32)
    assert overlap(a, a) == 1 and overlap(a, b) == pytest.approx(1 / 3) and overlap(a, b + 50) == 0
