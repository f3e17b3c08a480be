"""Steady faces: noise is averaged, what moves leaves no trail, and the figures mean what they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from clips import STUB_INFO, textured
from face_fakes import PICTURE, POINTS, Denoiser, KnowingDetector, sensor_noise

from ufr_edge.errors import ConfigError, InputFileError, ShapeError
from ufr_edge.runtime.faces.detect import Face
from ufr_edge.runtime.faces.stabilise import FaceMemory, Sight, StabiliserConfig
from ufr_edge.runtime.frame import Affine, Frame
from ufr_edge.runtime.motion_metrics import (
    Filmed,
    MotionFigures,
    SpeakingScene,
    find_landmarks,
    flicker,
    jitter,
    measure_motion,
)
from ufr_edge.runtime.pipeline import PipelineConfig
from ufr_edge.runtime.video.synthetic import Motion, SyntheticScene

SIDE = 128
STILL = Motion(zoom=(1.2, 1.2), pan=0, turn=0)
BASE = textured((SIDE, SIDE), seed=3) // 2 + 60


def noisy(face: Frame, seed: int, sigma: float = 8.0) -> Frame:
    noise = np.random.default_rng(seed).normal(0, sigma, face.shape)
    return np.clip(np.rint(face + noise), 0, 255).astype(np.uint8)


def sight(crop: Frame, frame: int, *, rate: float = 30.0, stand: Affine | None = None) -> Sight:
    return Sight(identity=1, time_s=frame / rate, stand=np.eye(2, 3) if stand is None else stand, crop=crop)


class TestSteady:
    def test_noise_on_a_still_face_is_averaged(self) -> None:
        memory = FaceMemory(StabiliserConfig())
        given = [noisy(BASE, n) for n in range(30)]
        steady = [memory.steady(sight(face, n), face) for n, face in enumerate(given)]
        assert flicker(np.stack(steady[8:])) < 0.3 * flicker(np.stack(given[8:]))
        assert (
            np.abs(steady[-1].astype(float) - BASE).mean()
            < 0.6 * np.abs(given[-1].astype(float) - BASE).mean()
        )

    def test_what_changes_is_shown_at_once(self) -> None:
        memory = FaceMemory(StabiliserConfig())
        shut = BASE.copy()
        shut[50:70, 40:80] = 20  # an eye that shuts
        for n in range(12):
            memory.steady(sight(noisy(BASE, n, 3), n), BASE)
        now = memory.steady(sight(noisy(shut, 99, 3), 12), shut)
        assert np.abs(now[53:67, 43:77].astype(int) - 20).max() <= 2
        again = memory.steady(sight(noisy(BASE, 100, 3), 13), BASE)
        assert np.abs(again[53:67, 43:77].astype(int) - BASE[53:67, 43:77]).max() <= 2  # nor does it trail

    def test_a_moving_thing_leaves_no_trail(self) -> None:
        memory = FaceMemory(StabiliserConfig())
        worst = 0.0
        for n in range(20):
            crop = np.full_like(BASE, 120)
            crop[40:80, 10 + 4 * n : 30 + 4 * n] = 200
            out = memory.steady(sight(noisy(crop, n, 3), n), crop)
            worst = max(worst, float(np.abs(out.astype(int) - crop).mean(axis=2).max()))
        assert worst < 8  # of the 80 by which it stands out

    @pytest.mark.parametrize("rate", [15.0, 60.0])
    def test_the_past_fades_by_the_clock_not_by_the_frame(self, rate: float) -> None:
        memory = FaceMemory(StabiliserConfig(memory_s=0.2))
        crop = np.full_like(BASE, 100)
        memory.steady(sight(crop, 0, rate=rate), np.full_like(BASE, 100))
        for n in range(1, round(rate / 5) + 1):  # 0.2 s after the engine changed its mind by 100
            out = memory.steady(sight(crop, n, rate=rate), np.full_like(BASE, 200))
        assert abs(float(out.mean()) - (200 - 100 * math.exp(-1))) < 2

    def test_another_alignment_is_no_motion(self) -> None:
        memory = FaceMemory(StabiliserConfig())
        given, steady = [], []
        for n in range(24):
            shift = 2.0 * (n % 2)  # the alignment trembles by two pixels
            face = noisy(np.roll(BASE, int(shift), axis=1), n)
            stand = np.array([[1, 0, shift], [0, 1, 0]], float)
            out = memory.steady(sight(face, n, stand=stand), face)
            given.append(np.roll(face, -int(shift), axis=1))
            steady.append(np.roll(out, -int(shift), axis=1))
        assert flicker(np.stack(steady[8:])) < 0.4 * flicker(np.stack(given[8:]))

    def test_a_pause_a_jump_and_another_face_have_no_past(self) -> None:
        bright = np.full_like(BASE, 220)
        far = np.array([[1, 0, 0.5 * SIDE], [0, 1, 0]], float)
        later = Sight(identity=1, time_s=9.0, stand=np.eye(2, 3), crop=BASE)
        other = Sight(identity=2, time_s=0.1, stand=np.eye(2, 3), crop=BASE)
        for now in (later, other, sight(BASE, 1, stand=far), sight(BASE, 0)):
            memory = FaceMemory(StabiliserConfig())
            memory.steady(sight(BASE, 0), BASE)
            assert (memory.steady(now, bright) == bright).all()

    def test_memory_holds_only_the_faces_that_are_kept(self) -> None:
        memory = FaceMemory(StabiliserConfig())
        for identity in range(1, 6):
            memory.steady(Sight(identity=identity, time_s=0.0, stand=np.eye(2, 3), crop=BASE), BASE)
        memory.keep([2, 5, 9])
        assert len(memory) == 2

    def test_without_a_config_nothing_is_mixed(self) -> None:
        memory = FaceMemory(None)
        memory.steady(sight(BASE, 0), BASE)
        new = noisy(BASE, 1)
        assert memory.steady(sight(BASE, 1), new) is new
        with pytest.raises(ConfigError):
            StabiliserConfig(memory_s=0)

    def test_another_side_goes_on_with_the_same_past(self) -> None:
        memory = FaceMemory(StabiliserConfig())
        memory.steady(sight(np.full_like(BASE, 100), 0), np.full_like(BASE, 100))
        memory.resize(64)
        small = np.full((64, 64, 3), 100, np.uint8)
        half = np.array([[0.5, 0, -0.25], [0, 0.5, -0.25]])
        out = memory.steady(sight(small, 1, stand=half), np.full_like(small, 200))
        assert out.shape == small.shape and float(out.mean()) < 140


class TestCarry:
    def test_a_face_never_restored_is_not_carried(self) -> None:
        assert FaceMemory(None).carry(sight(BASE, 0)) is None

    def test_where_nothing_moved_the_last_face_and_elsewhere_its_change(self) -> None:
        memory = FaceMemory(None)
        brighter = BASE + 30
        memory.steady(sight(BASE, 0), brighter)
        same = memory.carry(sight(BASE, 1))
        assert same is not None and np.abs(same.astype(int) - brighter).max() <= 1
        moved = BASE.copy()
        moved[60:90, 60:90] = 100
        out = memory.carry(sight(moved, 2))
        assert out is not None and np.abs(out[65:85, 65:85].astype(int) - 130).max() <= 1

    def test_the_change_goes_along_with_the_face(self) -> None:
        memory = FaceMemory(None)
        restored = BASE.copy()
        restored[40:60, 40:60] += 40
        memory.steady(sight(BASE, 0), restored)
        out = memory.carry(sight(np.roll(BASE, 6, axis=1), 1, stand=np.array([[1.0, 0, 6], [0, 1, 0]])))
        assert out is not None
        wanted = np.roll(restored, 6, axis=1)
        assert np.abs(out[20:-20, 20:-20].astype(int) - wanted[20:-20, 20:-20]).mean() < 1


class TestFigures:
    def test_flicker_counts_noise_and_not_what_changes_evenly(self) -> None:
        ramp = np.stack([np.full((64, 64, 3), 50 + 4 * t, np.uint8) for t in range(10)])
        assert flicker(ramp) == 0
        rng = np.random.default_rng(0)
        white = np.clip(np.rint(rng.normal(128, 10, (40, 64, 64, 3))), 0, 255).astype(np.uint8)
        assert flicker(white) == pytest.approx(10 * math.sqrt(6) * math.sqrt(2 / math.pi), rel=0.02)
        assert flicker(white, white) == 0
        with pytest.raises(ShapeError):
            flicker(white[:2])

    def test_jitter_counts_trembling_and_not_drift(self) -> None:
        rng = np.random.default_rng(0)
        true: list[Affine] = [np.array([[2.0, 0, 3 * t], [0, 2.0, -t]]) for t in range(400)]
        drift: list[Affine] = [m + np.array([[0, 0, 0.1 * t], [0, 0, 5]]) for t, m in enumerate(true)]
        shaken: list[Affine] = [m + np.array([[0, 0, 1], [0, 0, 0]]) * rng.normal(0, 1.5) for m in true]
        assert jitter(drift, true) < 1e-3
        assert jitter(shaken, true) == pytest.approx(1.5 / math.sqrt(2), rel=0.1)  # x trembles, y does not
        with pytest.raises(ShapeError):
            jitter(true[:2], true[:2])


CONFIGS = {"off": PipelineConfig(stabilise=None), "on": PipelineConfig()}


def measured(scene: Filmed) -> dict[str, MotionFigures]:
    return measure_motion(scene, Denoiser(), KnowingDetector(scene), CONFIGS, landmarks=POINTS)


class TestExperiment:
    def test_half_the_flicker_is_gone_on_a_still_face_under_noise(self) -> None:
        noise = sensor_noise(8)
        scene = SyntheticScene([PICTURE], size=(240, 180), frames=24, sensor=noise, motion=STILL)
        got = measured(scene)
        assert got["on"].flicker < 0.5 * got["off"].flicker
        assert got["on"].psnr_db > got["off"].psnr_db - 0.1
        assert got["on"].restored == 1 and got["on"].identities == 1

    @pytest.mark.parametrize("sigma", [0.0, 6.0])
    def test_little_is_lost_in_motion(self, sigma: float) -> None:
        motion = Motion(zoom=(1.0, 1.2), pan=0.05, turn=6)
        noise = sensor_noise(sigma)
        scene = SyntheticScene([PICTURE], size=(240, 180), frames=40, sensor=noise, motion=motion)
        got = measured(scene)
        assert got["on"].psnr_db > got["off"].psnr_db - 0.3
        assert got["on"].jitter_px < 1.0

    def test_little_is_lost_when_the_face_speaks(self) -> None:
        noise = sensor_noise(4)
        scene = SpeakingScene(PICTURE, POINTS, size=(240, 180), frames=40, sensor=noise, motion=STILL)
        assert np.abs(scene.clean(2).astype(int) - scene.clean(9)).max() > 20  # it does speak
        got = measured(scene)
        assert got["on"].psnr_db > got["off"].psnr_db - 0.3
        assert got["on"].flicker < 0.7 * got["off"].flicker

    def test_smoothing_and_following_steady_the_alignment(self) -> None:
        from ufr_edge.runtime.faces.track import TrackConfig

        scene = SyntheticScene([PICTURE], size=(240, 180), frames=30, sensor=sensor_noise(4), motion=STILL)
        alone = PipelineConfig(track=TrackConfig(detect_every=1, smooth=None), stabilise=None)
        plain = PipelineConfig(track=TrackConfig(detect_every=1), stabilise=None)
        detector = KnowingDetector(scene, sigma=0.6)
        got = measure_motion(scene, Denoiser(), detector, {"alone": alone, "plain": plain}, landmarks=POINTS)
        assert got["plain"].jitter_px < 0.5 * got["alone"].jitter_px < 5

    def test_a_scene_without_a_face_says_so(self) -> None:
        class Blind:
            info = STUB_INFO

            def detect(self, frame: Frame) -> list[Face]:
                return []

        scene = SyntheticScene([PICTURE], size=(240, 180), frames=10)
        with pytest.raises(InputFileError, match="No face was found in the scene with setting 'off'"):
            measure_motion(scene, Denoiser(), Blind(), CONFIGS, landmarks=POINTS)
        with pytest.raises(InputFileError, match="No face"):
            find_landmarks(PICTURE, Blind())
