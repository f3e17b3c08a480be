"""The pipeline's stages: what each is given, what it leaves alone, and that they may run in threads."""

from __future__ import annotations

import threading
from dataclasses import replace
from queue import Queue

import numpy as np
import pytest
from clips import STUB_INFO, StubEngine
from face_fakes import PICTURE, POINTS, KnowingDetector, PlannedDetector, face_from, sensor_noise

from ufr_edge.errors import ConfigError
from ufr_edge.runtime.faces.grain import noise_level
from ufr_edge.runtime.faces.limits import FaceLimits
from ufr_edge.runtime.faces.track import TrackConfig, TrackedFace
from ufr_edge.runtime.frame import Frame
from ufr_edge.runtime.pipeline import FacePipeline, PipelineConfig, RestoredFaces
from ufr_edge.runtime.timing import StageClock
from ufr_edge.runtime.video.synthetic import Motion, SyntheticScene

OTHER = (POINTS * 0.5 + np.array([-20, 90], np.float32)).astype(np.float32)
PAIR = [face_from(OTHER), face_from(POINTS)]


def pipeline_of(config: PipelineConfig | None = None, engine: StubEngine | None = None) -> FacePipeline:
    return FacePipeline(engine or StubEngine(), PlannedDetector([PAIR]), config or PipelineConfig())


class TestStages:
    def test_faces_go_through_the_engine_together_and_the_frame_is_left_alone(self) -> None:
        engine, frame = StubEngine(), PICTURE.copy()
        done = pipeline_of(engine=engine).process(frame, time_s=0.0)
        assert engine.batches == [2] and done.count == 2
        np.testing.assert_array_equal(frame, PICTURE)
        assert (done.image != frame).any() and done.touched is not None and len(done.touched) == 2
        assert [face.identity for face in done.tracks] == [2, 1]  # the larger first

    def test_process_is_the_three_stages(self) -> None:
        scene = SyntheticScene([PICTURE], size=(240, 180), frames=8, sensor=sensor_noise(3))
        whole = FacePipeline(StubEngine(), KnowingDetector(scene), PipelineConfig())
        parts = FacePipeline(StubEngine(), KnowingDetector(scene), PipelineConfig())
        for i in range(8):
            frame = scene.frame(i)
            tracks = parts.detect_and_track(frame, time_s=i / 30)
            done = parts.paste(frame, parts.restore_faces(frame, tracks))
            np.testing.assert_array_equal(done.image, whole.process(frame, time_s=i / 30).image)

    def test_stages_may_run_in_three_threads(self) -> None:
        scene = SyntheticScene([PICTURE], size=(240, 180), frames=24, sensor=sensor_noise(3))
        frames = [scene.frame(i) for i in range(24)]
        alone = FacePipeline(StubEngine(), KnowingDetector(scene), PipelineConfig())
        wanted = [alone.process(frame, time_s=i / 30).image for i, frame in enumerate(frames)]
        pipeline = FacePipeline(StubEngine(), KnowingDetector(scene), PipelineConfig())
        found: Queue[tuple[Frame, tuple[TrackedFace, ...]]] = Queue(2)
        restored: Queue[tuple[Frame, RestoredFaces]] = Queue(2)

        def find() -> None:
            for i, frame in enumerate(frames):
                found.put((frame, pipeline.detect_and_track(frame, time_s=i / 30)))

        def restore() -> None:
            for _ in frames:
                frame, tracks = found.get()
                restored.put((frame, pipeline.restore_faces(frame, tracks)))

        threads = [threading.Thread(target=work, daemon=True) for work in (find, restore)]
        for thread in threads:
            thread.start()
        got = [pipeline.paste(*restored.get(timeout=60)).image for _ in frames]
        for thread in threads:
            thread.join()
        for one, other in zip(got, wanted, strict=True):
            np.testing.assert_array_equal(one, other)

    def test_frames_left_out_between_stages_do_no_harm(self) -> None:
        motion = Motion(zoom=(1, 1.1), pan=0.05, turn=4)
        scene = SyntheticScene([PICTURE], size=(240, 180), frames=30, motion=motion)
        both = [FacePipeline(StubEngine(), KnowingDetector(scene), c) for c in (PipelineConfig(),)]
        plain = FacePipeline(StubEngine(), KnowingDetector(scene), PipelineConfig(stabilise=None))
        for i in range(30):
            frame = scene.frame(i)
            tracks, bare = (p.detect_and_track(frame, time_s=i / 30) for p in (*both, plain))
            if i % 3 == 0:  # two of three frames are dropped before the engine
                steady = both[0].paste(frame, both[0].restore_faces(frame, tracks)).image
                raw = plain.paste(frame, plain.restore_faces(frame, bare)).image
        assert np.abs(steady.astype(int) - raw).mean() < 1

    def test_a_carried_frame_needs_no_engine_and_looks_like_a_restored_one(self) -> None:
        engine = StubEngine()
        pipeline = pipeline_of(PipelineConfig(stabilise=None), engine)
        first = pipeline.process(PICTURE, time_s=0.0)
        tracks = pipeline.detect_and_track(PICTURE, time_s=0.03)
        carried = pipeline.paste(PICTURE, pipeline.carry_faces(PICTURE, tracks))
        assert engine.batches == [2] and carried.count == 2
        assert np.abs(carried.image.astype(int) - first.image).max() <= 2

    def test_a_face_never_restored_cannot_be_carried(self) -> None:
        pipeline = pipeline_of()
        tracks = pipeline.detect_and_track(PICTURE, time_s=0.0)
        done = pipeline.paste(PICTURE, pipeline.carry_faces(PICTURE, tracks))
        assert done.image is PICTURE and done.count == 0 and len(done.tracks) == 2

    def test_another_engine_takes_over_in_mid_stream(self) -> None:
        pipeline = pipeline_of()
        pipeline.process(PICTURE, time_s=0.0)
        larger = StubEngine(info=replace(STUB_INFO, side=128))
        pipeline.use_engine(larger)
        done = pipeline.process(PICTURE, time_s=0.03)
        assert larger.batches == [2] and done.count == 2

    def test_after_a_reset_faces_are_others(self) -> None:
        pipeline = pipeline_of()
        before = pipeline.process(PICTURE, time_s=0.0)
        pipeline.reset()
        after = pipeline.process(PICTURE, time_s=0.03)
        assert {t.identity for t in before.tracks}.isdisjoint({t.identity for t in after.tracks})

    def test_each_stage_is_timed_once_a_frame(self) -> None:
        clock = StageClock()
        pipeline = FacePipeline(StubEngine(), PlannedDetector([PAIR]), PipelineConfig(), clock=clock)
        for i in range(6):
            pipeline.process(PICTURE, time_s=i / 30)
        counts = {timing.name: timing.count for timing in clock.timings()}
        assert counts == {"detect": 2, "track": 6, "warp": 6, "restore": 6, "stabilise": 6, "paste": 6}


class TestLeftAlone:
    @pytest.mark.parametrize(
        ("limits", "reason"),
        [
            (FaceLimits(min_side=30), "too small"),
            (FaceLimits(max_faces=1), "one too many"),
        ],
    )
    def test_a_face_left_alone_is_named_with_its_reason(self, limits: FaceLimits, reason: str) -> None:
        engine = StubEngine()
        done = pipeline_of(PipelineConfig(limits=limits), engine).process(PICTURE, time_s=0.0)
        assert engine.batches == [1] and done.count == 1 and len(done.tracks) == 2
        assert done.tracks[0].skipped is None and reason in str(done.tracks[1].skipped)
        still = pipeline_of(PipelineConfig(limits=limits)).restore(PICTURE)
        assert still.count == 1 and reason in str(still.tracks[1].skipped)

    def test_all_left_alone_is_the_very_same_picture(self) -> None:
        engine = StubEngine()
        limits = FaceLimits(min_score=0.95)
        done = pipeline_of(PipelineConfig(limits=limits), engine).process(PICTURE, time_s=0.0)
        assert done.image is PICTURE and engine.batches == [] and len(done.tracks) == 2

    def test_stills_have_nothing_to_do_with_each_other(self) -> None:
        detector = PlannedDetector([PAIR, []])
        pipeline = FacePipeline(StubEngine(), detector, PipelineConfig(track=TrackConfig(detect_every=5)))
        assert pipeline.restore(PICTURE).count == 2
        detector.at = 1
        assert pipeline.restore(PICTURE).count == 0


class TestGrain:
    class Smooth(StubEngine):
        def infer(self, batch: Frame) -> Frame:
            return np.full_like(batch, 128)

    def grainy(self, grain: float) -> Frame:
        flat = np.full_like(PICTURE, 120)
        frame = sensor_noise(9)(flat, 0)
        config = PipelineConfig(grain=grain)
        detector = PlannedDetector([[face_from(POINTS)]])
        return FacePipeline(self.Smooth(), detector, config).process(frame, time_s=0.0).image

    def test_the_restored_face_gets_the_noise_it_lacks(self) -> None:
        inside = (slice(75, 105), slice(105, 135))
        before = noise_level(sensor_noise(9)(np.full_like(PICTURE, 120), 0))
        assert noise_level(self.grainy(0.0)[inside]) < 0.2 * before
        assert noise_level(self.grainy(1.0)[inside]) == pytest.approx(before, rel=0.25)
        np.testing.assert_array_equal(self.grainy(1.0), self.grainy(1.0))

    def test_refuses_settings_out_of_range(self) -> None:
        for bad in ({"grain": 3.0}, {"grain": -1.0}, {"fidelity": 2.0}, {"batch": 0}):
            with pytest.raises(ConfigError):
                PipelineConfig(**bad)


def test_noise_level_is_that_of_the_grey_picture_and_blind_to_edges() -> None:
    edges = np.repeat(np.repeat(np.indices((16, 16)).sum(axis=0) % 2 * 100 + 60, 10, axis=0), 10, axis=1)
    picture = np.repeat(edges[:, :, None], 3, axis=2).astype(np.uint8)
    assert noise_level(picture) < 0.5
    noise = np.random.default_rng(0).normal(0, 6, picture.shape[:2])[..., None]
    assert noise_level(np.clip(np.rint(picture + noise), 0, 255).astype(np.uint8)) == pytest.approx(
        6, rel=0.2
    )
