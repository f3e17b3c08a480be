"""Restoring pictures, folders and videos: every frame in, every frame out, nothing half-written."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from clips import (
    StubDetector,
    StubEngine,
    copy_packets,
    picture,
    read_clip,
    sound_packets,
    textured,
    write_clip,
    write_picture,
)

from ufr_edge.errors import ConfigError, InputFileError, OutputError
from ufr_edge.runtime.faces.limits import FaceLimits
from ufr_edge.runtime.faces.track import TrackConfig
from ufr_edge.runtime.frame import Frame
from ufr_edge.runtime.images import read_image
from ufr_edge.runtime.pipeline import FacePipeline, PipelineConfig
from ufr_edge.runtime.run import RunConfig, run_path
from ufr_edge.runtime.video.opening import open_source
from ufr_edge.runtime.video.prefetch import prefetch
from ufr_edge.runtime.video.reader import VideoReader
from ufr_edge.runtime.video.source import SourceFrame
from ufr_edge.runtime.video.writer import EncodeConfig

CRISP = RunConfig(encode=EncodeConfig(crf=4, preset="ultrafast", threads=1), threads=1)


@pytest.fixture(autouse=True)
def no_threads_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def leftovers(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


class TestPipeline:
    def test_a_frame_without_a_face_is_the_very_same_picture(self) -> None:
        frame = picture(0)
        engine = StubEngine()
        done = FacePipeline(engine, StubDetector([0]), PipelineConfig()).restore(frame)
        assert done.image is frame and done.count == 0 and engine.batches == []

    def test_several_faces_go_through_the_engine_together(self) -> None:
        engine = StubEngine()
        frame = picture(0, size=(160, 64))
        done = FacePipeline(engine, StubDetector([3]), PipelineConfig(batch=2)).restore(frame)
        assert done.count == 3 and engine.batches == [2, 1]
        changed = (done.image != frame).any(axis=(0, 2))
        assert all(changed[12 + 40 * n + 16] for n in range(3))
        assert done.touched is not None and len(done.touched) == 3

    def test_detection_may_be_left_out_between_frames(self) -> None:
        detector = StubDetector([1])
        pipeline = FacePipeline(StubEngine(), detector, PipelineConfig())
        frame = textured((96, 64))  # something to follow
        assert [pipeline.process(frame, time_s=n / 30).count for n in range(7)] == [1] * 7
        assert detector.calls == 3

    def test_refuses_settings_out_of_range(self) -> None:
        with pytest.raises(ConfigError, match="Fidelity"):
            PipelineConfig(fidelity=2)
        with pytest.raises(ConfigError):
            TrackConfig(detect_every=0)
        with pytest.raises(ConfigError):
            EncodeConfig(crf=99)


class TestVideo:
    def test_every_frame_in_is_a_frame_out_with_its_time(self, tmp_path: Path) -> None:
        times = [0, 40, 95, 100, 300, 301, 340, 1000, 1033]  # variable frame rate
        clip = write_clip(tmp_path / "in.mkv", pts=times)
        out = tmp_path / "out.mkv"
        report = run_path(clip, out, StubEngine(), CRISP, detector=StubDetector([0, 2]))
        frames = read_clip(out)
        assert [seconds for seconds, _ in frames] == [Fraction(t, 1000) for t in times]
        assert (report.frames_in, report.frames_out, report.faces) == (9, 9, 6 * 2)
        assert report.frames_without_face == 3  # until faces are looked for again
        for number, (_, frame) in enumerate(frames):  # in order: away from the faces the red tells the number
            assert abs(float(frame[60:, :, 0].mean()) - (20 + 6 * number)) < 3
        assert {stage.name for stage in report.stages} == {
            "decode", "detect", "track", "warp", "restore", "stabilise", "paste", "encode"
        }  # fmt: skip
        json.dumps(report.to_json())

    @pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
    def test_sound_is_copied_byte_for_byte(self, tmp_path: Path, suffix: str) -> None:
        clip = write_clip(tmp_path / f"in{suffix}", 30, sound="aac")
        out = tmp_path / f"out{suffix}"
        run_path(clip, out, StubEngine(), CRISP, detector=StubDetector([0]))
        before, after = sound_packets(clip), sound_packets(out)
        assert len(before) > 20
        assert [data for _, data in after] == [data for _, data in before]
        shift = [abs(float(a - b)) for (a, _), (b, _) in zip(after, before, strict=True)]
        assert max(shift) < 0.002

    def test_frames_without_a_face_reach_the_encoder_as_decoded(self, tmp_path: Path) -> None:
        clip = write_clip(tmp_path / "in.mkv")
        out = tmp_path / "out.mkv"
        lossless = RunConfig(encode=EncodeConfig(crf=0, preset="ultrafast"))
        run_path(clip, out, StubEngine(), lossless, detector=StubDetector([0]))
        with av.open(str(clip)) as a, av.open(str(out)) as b:
            for before, after in zip(a.decode(video=0), b.decode(video=0), strict=True):
                np.testing.assert_array_equal(after.to_ndarray(), before.to_ndarray())

    def test_away_from_the_face_the_picture_is_as_decoded(self, tmp_path: Path) -> None:
        clip = write_clip(tmp_path / "in.mkv")
        out = tmp_path / "out.mkv"
        lossless = RunConfig(encode=EncodeConfig(crf=0, preset="ultrafast"))
        run_path(clip, out, StubEngine(), lossless, detector=StubDetector([1]))
        for (_, before), (_, after) in zip(read_clip(clip), read_clip(out), strict=True):
            assert (after[:, 50:] == before[:, 50:]).all()
            assert (after[26, 28] != before[26, 28]).any()

    @pytest.mark.parametrize(
        "tags", [(1, 1, 1, 1), (5, 1, 6, 6), (6, 2, 6, 6)], ids=["bt709", "bt601", "full"]
    )
    def test_colours_and_their_tags_are_kept(self, tmp_path: Path, tags: tuple[int, int, int, int]) -> None:
        clip = write_clip(tmp_path / "in.mp4", colour=tags)
        out = tmp_path / "out.mp4"
        same = RunConfig(
            encode=CRISP.encode, pipeline=PipelineConfig(fidelity=0.999)
        )  # whole boxes, no change
        run_path(clip, out, StubEngine(), same, detector=StubDetector([2]))
        with VideoReader(clip) as a, VideoReader(out) as b:
            assert a.info.colour == b.info.colour
            assert a.info.colour.range == tags[1]
        for (_, before), (_, after) in zip(read_clip(clip), read_clip(out), strict=True):
            error = after.astype(float) - before
            assert abs(error.mean()) < 0.5 and np.abs(error).mean() < 2.5

    def test_an_odd_size_grows_by_one_pixel_and_says_so(self, tmp_path: Path) -> None:
        clip = write_clip(tmp_path / "in.mkv", size=(95, 63), codec="ffv1")
        out = tmp_path / "out.mp4"
        report = run_path(clip, out, StubEngine(), CRISP, detector=StubDetector([1]))
        assert read_clip(out)[0][1].shape == (64, 96, 3)
        assert report.frames_out == 12 and "95x63 has an odd side, which 4:2:0" in report.notes[0]

    def test_an_odd_size_is_kept_where_chroma_is_whole(self, tmp_path: Path) -> None:
        clip = write_clip(tmp_path / "in.mkv", size=(95, 63), codec="ffv1", pix_fmt="yuv444p")
        out = tmp_path / "out.mp4"
        report = run_path(clip, out, StubEngine(), CRISP, detector=StubDetector([1]))
        assert read_clip(out)[0][1].shape == (63, 95, 3) and report.notes == ()

    @pytest.mark.parametrize("rotation", [90, 180, -90])
    def test_a_phone_held_upright_gives_an_upright_clip(self, tmp_path: Path, rotation: int) -> None:
        clip = write_clip(tmp_path / "in.mp4", rotation=rotation)
        out = tmp_path / "out.mp4"
        run_path(clip, out, StubEngine(), CRISP, detector=StubDetector([0]))
        frame = read_clip(out)[3][1]
        wanted = np.rot90(picture(3), rotation // 90)  # counter-clockwise, as FFmpeg's display matrix says
        assert frame.shape == wanted.shape
        assert np.abs(frame.astype(float) - wanted).mean() < 4

    def test_aligned_video_has_the_engines_side(self, tmp_path: Path) -> None:
        clip = write_clip(tmp_path / "in.mp4", size=(96, 96))
        out = tmp_path / "out.mp4"
        report = run_path(clip, out, StubEngine(), RunConfig(aligned=True, encode=CRISP.encode))
        frame = read_clip(out)[0][1]
        assert frame.shape == (64, 64, 3) and report.detector is None
        assert abs(float(frame[:, :, 0].mean()) - (20 + 30)) < 4

    def test_the_synthetic_camera_is_a_source(self, tmp_path: Path) -> None:
        uri = "synthetic://?frames=4&size=96x64&seed=3&rate=25"
        report = run_path(uri, tmp_path / "out.mp4", StubEngine(), CRISP, detector=StubDetector([1]))
        assert report.frames_out == len(read_clip(tmp_path / "out.mp4")) == 4


class TestBadVideo:
    @pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
    def test_a_file_cut_short_says_how_much_was_read(self, tmp_path: Path, suffix: str) -> None:
        clip = write_clip(tmp_path / f"whole{suffix}", 60)
        cut = tmp_path / f"cut{suffix}"
        with av.open(str(clip)) as a, av.open(str(cut), "w", options={"movflags": "faststart"}) as b:
            stream = b.add_stream_from_template(a.streams.video[0])
            copy_packets(a, a.streams.video[0], b, stream)
        cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 6 // 10])
        clip.unlink()
        with pytest.raises(InputFileError, match=r"cut short.* \d+ frames"):
            run_path(cut, tmp_path / "out.mp4", StubEngine(), CRISP, detector=StubDetector([1]))
        assert leftovers(tmp_path) == {cut.name}

    @pytest.mark.parametrize("content", [b"", b"no video at all" * 100])
    def test_no_video(self, tmp_path: Path, content: bytes) -> None:
        clip = tmp_path / "in.mp4"
        clip.write_bytes(content)
        with pytest.raises(InputFileError, match=r"in\.mp4 cannot be opened"):
            run_path(clip, tmp_path / "out.mp4", StubEngine(), CRISP, detector=StubDetector())
        assert leftovers(tmp_path) == {"in.mp4"}

    def test_an_engine_that_fails_leaves_nothing_behind(self, tmp_path: Path) -> None:
        class Failing(StubEngine):
            def infer(self, batch: Frame) -> Frame:
                if len(self.batches) == 5:
                    msg = "engine gone"
                    raise RuntimeError(msg)
                return super().infer(batch)

        clip = write_clip(tmp_path / "in.mp4", 40)
        with pytest.raises(RuntimeError, match="engine gone"):
            run_path(clip, tmp_path / "out.mp4", Failing(), CRISP, detector=StubDetector())
        assert leftovers(tmp_path) == {"in.mp4"}

    def test_ctrl_c_leaves_the_old_output_alone(self, tmp_path: Path) -> None:
        def stop(done: int, total: int | None) -> None:
            if done == 3:
                raise KeyboardInterrupt

        clip = write_clip(tmp_path / "in.mp4", 40)
        out = tmp_path / "out.mp4"
        out.write_bytes(b"old")
        config = RunConfig(overwrite=True, encode=CRISP.encode)
        with pytest.raises(KeyboardInterrupt):
            run_path(clip, out, StubEngine(), config, detector=StubDetector(), watch=stop)
        assert out.read_bytes() == b"old" and leftovers(tmp_path) == {"in.mp4", "out.mp4"}

    def test_output_that_exists_or_cannot_be(self, tmp_path: Path) -> None:
        clip = write_clip(tmp_path / "in.mp4", 2)
        (tmp_path / "out.mp4").write_bytes(b"old")
        for out, reason in (("out.mp4", "--overwrite"), ("out.xyz", "no video name")):
            with pytest.raises(OutputError, match=reason):
                run_path(clip, tmp_path / out, StubEngine(), CRISP, detector=StubDetector())
        with pytest.raises(OutputError, match="input itself"):
            run_path(clip, clip, StubEngine(), RunConfig(overwrite=True), detector=StubDetector())
        assert leftovers(tmp_path) == {"in.mp4", "out.mp4"}

    def test_missing_input_and_unknown_scheme(self, tmp_path: Path) -> None:
        with pytest.raises(InputFileError, match="does not exist"):
            run_path(tmp_path / "none.mp4", tmp_path / "o.mp4", StubEngine(), detector=StubDetector())
        with pytest.raises(ConfigError, match="rtsp://"):
            open_source("rtsp://user:secret@camera/1")


class TestFacesLeftAlone:
    def test_a_video_says_which_faces_were_left_alone(self, tmp_path: Path) -> None:
        clip = write_clip(tmp_path / "in.mkv", 5)
        limited = PipelineConfig(limits=FaceLimits(max_faces=1))
        config = RunConfig(encode=CRISP.encode, pipeline=limited)
        report = run_path(clip, tmp_path / "out.mkv", StubEngine(), config, detector=StubDetector([2]))
        assert (report.frames_out, report.faces) == (5, 5)
        assert report.notes == ("Faces left alone: 5 one too many.",)


class TestPictures:
    def test_one_picture(self, tmp_path: Path) -> None:
        source = write_picture(tmp_path / "in.png", picture(1))
        report = run_path(source, tmp_path / "out.png", StubEngine(), detector=StubDetector())
        assert (report.kind, report.frames_in, report.frames_out, report.faces) == ("image", 1, 1, 1)
        out = read_image(tmp_path / "out.png")
        np.testing.assert_array_equal(out[:, 50:], picture(1)[:, 50:])
        assert (out[26, 28] != picture(1)[26, 28]).any()

    def test_aligned_picture_must_be_square(self, tmp_path: Path) -> None:
        config = RunConfig(aligned=True)
        source = write_picture(tmp_path / "in.png", picture(1, size=(80, 80)))
        run_path(source, tmp_path / "out.png", StubEngine(), config)
        assert read_image(tmp_path / "out.png").shape == (64, 64, 3)
        wide = write_picture(tmp_path / "wide.png", picture(1))
        with pytest.raises(InputFileError, match="square"):
            run_path(wide, tmp_path / "out2.png", StubEngine(), config)

    def test_a_grey_picture_is_taken(self, tmp_path: Path) -> None:
        assert cv2.imwrite(str(tmp_path / "in.png"), np.full((64, 96), 80, np.uint8))
        run_path(tmp_path / "in.png", tmp_path / "out.jpg", StubEngine(), detector=StubDetector([0]))
        assert abs(float(read_image(tmp_path / "out.jpg").mean()) - 80) < 1

    def test_folder_keeps_names_and_a_damaged_picture_stops_no_other(self, tmp_path: Path) -> None:
        folder, out = tmp_path / "in", tmp_path / "out"
        folder.mkdir()
        for number in range(3):
            write_picture(folder / f"{number}.png", picture(number))
        report = run_path(folder, out, StubEngine(), detector=StubDetector())
        assert leftovers(out) == {"0.png", "1.png", "2.png"} and report.frames_out == 3
        (folder / "1.png").write_bytes(b"no picture")
        again = tmp_path / "again"
        with pytest.raises(InputFileError, match=r"1 of 3 pictures were left out.*1\.png is no picture"):
            run_path(folder, again, StubEngine(), detector=StubDetector())
        assert leftovers(again) == {"0.png", "2.png"}

    def test_empty_folder_and_output_in_the_way(self, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()
        with pytest.raises(InputFileError, match="holds no picture"):
            run_path(tmp_path / "in", tmp_path / "out", StubEngine(), detector=StubDetector())
        write_picture(tmp_path / "in" / "a.png", picture(0))
        for out in (tmp_path / "in", tmp_path / "in" / "a.png"):
            with pytest.raises(OutputError):
                run_path(tmp_path / "in", out, StubEngine(), detector=StubDetector())

    def test_no_picture(self, tmp_path: Path) -> None:
        (tmp_path / "in.jpg").write_text("hello")
        with pytest.raises(InputFileError, match="is no picture"):
            run_path(tmp_path / "in.jpg", tmp_path / "out.jpg", StubEngine(), detector=StubDetector())


class TestPrefetch:
    def test_keeps_order_and_passes_errors_after_the_items(self) -> None:
        def numbers() -> Iterator[int]:
            yield from range(20)
            msg = "broken"
            raise ValueError(msg)

        ahead = prefetch(numbers(), depth=2)
        assert [next(ahead) for _ in range(20)] == list(range(20))
        with pytest.raises(ValueError, match="broken"):
            next(ahead)

    def test_closing_stops_the_thread_and_closes_the_iterator(self) -> None:
        closed = threading.Event()

        def endless() -> Iterator[int]:
            try:
                while True:
                    yield 1
            finally:
                closed.set()

        ahead = prefetch(endless(), depth=2)
        assert next(ahead) == 1
        ahead.close()
        assert closed.is_set()

    def test_runs_only_so_far_ahead(self) -> None:
        made = 0

        def counted() -> Iterator[int]:
            nonlocal made
            for number in range(100):
                made += 1
                yield number

        ahead = prefetch(counted(), depth=3)
        for _ in range(10):
            next(ahead)
        assert made <= 10 + 3 + 1
        ahead.close()


def test_reader_hands_out_time_stamps_that_grow(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "in.mkv", 8)
    with VideoReader(clip) as reader:
        frames = [item for item in reader.items() if isinstance(item, SourceFrame)]
    assert [frame.index for frame in frames] == list(range(8))
    assert [round(frame.seconds, 3) for frame in frames] == [round(n / 25, 3) for n in range(8)]
