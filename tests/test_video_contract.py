"""The contract of a video file: what goes in comes out, frame by frame, track by track, tone by tone."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
from av.stream import Disposition
from clips import StubDetector, StubEngine, copy_packets, picture, read_clip, sound_packets, write_clip

from ufr_edge.errors import ConfigError, InputFileError, OutputError
from ufr_edge.runtime.report import RunReport
from ufr_edge.runtime.run import RunConfig, run_path
from ufr_edge.runtime.video.encoder import EncodeConfig, coded_format
from ufr_edge.runtime.video.parts import coding_times
from ufr_edge.runtime.video.planes import layout_of
from ufr_edge.runtime.video.reader import VideoReader

FAST = EncodeConfig(crf=4, preset="ultrafast", threads=1)
LOSSLESS = EncodeConfig(crf=0, preset="ultrafast", threads=1)
NTSC = Fraction(30000, 1001)


def run(clip: Path, out: Path, *, faces: int = 1, encode: EncodeConfig = FAST, **settings: Any) -> RunReport:
    config = RunConfig(encode=encode, threads=1, **settings)
    return run_path(clip, out, StubEngine(), config, detector=StubDetector([faces]))


def times(path: Path) -> list[Fraction]:
    return [seconds for seconds, _ in read_clip(path)]


def luma(path: Path) -> list[npt.NDArray[np.uint16]]:
    """The luma of every frame at its full depth."""
    with av.open(str(path)) as container:
        out = []
        for frame in container.decode(video=0):
            plane: Any = frame.planes[0]
            kind = np.uint8 if layout_of(frame.format.name).bits == 8 else np.uint16
            rows = np.frombuffer(plane, kind).reshape(plane.height, -1)[:, : plane.width]
            out.append(rows.astype(np.uint16))
        return out


class TestTime:
    @pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
    @pytest.mark.parametrize("segment_s", [10.0, 0.2], ids=["whole", "in parts"])
    def test_a_variable_frame_rate_is_kept_to_the_tick(
        self, tmp_path: Path, suffix: str, segment_s: float
    ) -> None:
        stamps = [0, 40, 95, 100, 300, 301, 340, 700, 733, 1500, 1502, 1540]
        clip = write_clip(tmp_path / f"in{suffix}", pts=stamps)
        out = tmp_path / f"out{suffix}"
        b_frames = EncodeConfig(crf=10, preset="medium", threads=1)  # coded out of order
        report = run(clip, out, encode=b_frames, segment_s=segment_s)
        assert times(out) == times(clip) == [Fraction(t, 1000) for t in stamps]
        assert report.frames_in == report.frames_out == len(stamps)
        for number, (_, frame) in enumerate(read_clip(out)):
            assert abs(float(frame[60:, :, 0].mean()) - (20 + 6 * number)) < 4

    @pytest.mark.parametrize("segment_s", [10.0, 0.3], ids=["whole", "in parts"])
    def test_29_97_stays_30000_over_1001(self, tmp_path: Path, segment_s: float) -> None:
        clip = write_clip(tmp_path / "in.mp4", 40, rate=NTSC, time_base=Fraction(1, 30000))
        out = tmp_path / "out.mp4"
        run(clip, out, segment_s=segment_s, encode=EncodeConfig(preset="medium", threads=1))
        assert times(out) == [n / NTSC for n in range(40)]
        with av.open(str(out)) as container:
            assert container.streams.video[0].average_rate == NTSC

    @pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
    def test_the_last_picture_is_shown_as_long_as_it_was(self, tmp_path: Path, suffix: str) -> None:
        made = write_clip(tmp_path / "made.mkv", pts=[0, 40, 80, 500, 1000])
        clip = tmp_path / f"in{suffix}"
        with av.open(str(made)) as source, av.open(str(clip), "w") as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.pts is not None and packet.time_base is not None:
                    packet.duration = round(3 / packet.time_base)  # of the others, their successor decides
                    packet.stream = stream
                    target.mux(packet)
        run_path(clip, tmp_path / f"out{suffix}", StubEngine(), RunConfig(), detector=StubDetector())
        with av.open(str(tmp_path / f"out{suffix}")) as written:
            assert written.duration == pytest.approx(4_000_000, abs=50_000)

    def test_a_clip_that_begins_late_begins_late(self, tmp_path: Path) -> None:
        clip = write_clip(tmp_path / "in.mkv", pts=[2000, 2040, 2080, 2500])
        run(clip, tmp_path / "out.mkv", segment_s=0.3)
        assert times(tmp_path / "out.mkv") == times(clip)

    def test_coding_times_grow_and_never_pass_the_time_of_showing(self) -> None:
        shown = [0, 30, 10, 20, 60, 40, 50, 61, 300, 100, 200]
        packets = []
        for pts in shown:
            packet = av.Packet(b"x")
            packet.pts = pts
            packets.append(packet)
        decoded = [packet.dts for packet in coding_times(packets, reorder=2, step=10)]
        known = [when for when in decoded if when is not None]
        assert known == sorted(set(known)) and len(known) == len(shown)
        assert all(dts <= pts for dts, pts in zip(known, shown, strict=True))


class TestTracks:
    @pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
    @pytest.mark.parametrize("segment_s", [10.0, 0.5], ids=["whole", "in parts"])
    def test_two_tracks_of_sound_are_copied(self, tmp_path: Path, suffix: str, segment_s: float) -> None:
        clip = write_clip(tmp_path / f"in{suffix}", 50, sound="aac", tracks=2)
        out = tmp_path / f"out{suffix}"
        run(clip, out, segment_s=segment_s)
        for track in (0, 1):
            before, after = sound_packets(clip, track), sound_packets(out, track)
            assert len(before) > 40 and [d for _, d in before] == [d for _, d in after]
            assert max(abs(a - b) for (a, _), (b, _) in zip(before, after, strict=True)) < Fraction(2, 1000)
        with av.open(str(out)) as container:
            assert [s.metadata["language"] for s in container.streams.audio] == ["eng", "deu"]

    def test_a_silent_clip_stays_silent(self, tmp_path: Path) -> None:
        clip = write_clip(tmp_path / "in.mp4")
        run(clip, tmp_path / "out.mp4")
        with av.open(str(tmp_path / "out.mp4")) as container:
            assert [stream.type for stream in container.streams] == ["video"]

    @pytest.mark.parametrize(("suffix", "codec"), [(".mkv", "subrip"), (".mp4", "mov_text")])
    def test_subtitles_are_copied(self, tmp_path: Path, suffix: str, codec: str) -> None:
        clip = write_clip(tmp_path / f"in{suffix}", 80, sound="aac", subtitles=codec)
        out = tmp_path / f"out{suffix}"
        report = run(clip, out)
        before, after = (sound_packets(path, kind="subtitles") for path in (clip, out))
        lines = [data for _, data in before if b"line" in data]
        assert len(lines) == 3 and [data for _, data in after if b"line" in data] == lines
        assert report.notes == ()

    def test_subtitles_that_the_container_does_not_take_are_named(self, tmp_path: Path) -> None:
        clip = write_clip(tmp_path / "in.mkv", 30, subtitles="subrip")
        report = run(clip, tmp_path / "out.mp4")
        assert any("srt, eng" in note and "left out" in note and ".mkv" in note for note in report.notes)
        assert len(times(tmp_path / "out.mp4")) == 30

    def test_sound_that_the_container_does_not_take_is_refused(self, tmp_path: Path) -> None:
        clip = write_clip(tmp_path / "in.mkv", 30, sound="libopus")
        with pytest.raises(OutputError, match=r"opus.*\.mkv"):
            run(clip, tmp_path / "out.mov")
        assert {path.name for path in tmp_path.iterdir()} == {"in.mkv"}
        run(clip, tmp_path / "out.mkv")
        assert sound_packets(tmp_path / "out.mkv") == sound_packets(clip)

    def test_a_cover_picture_is_no_film_and_is_named(self, tmp_path: Path) -> None:
        plain, clip = write_clip(tmp_path / "plain.mp4", 12), tmp_path / "in.mp4"
        with av.open(str(plain)) as a, av.open(str(clip), "w") as b:
            cover: Any = b.add_stream("mjpeg", rate=1)
            cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
            cover.disposition = Disposition.attached_pic
            stream = b.add_stream_from_template(a.streams.video[0])
            still: Any = av.VideoFrame.from_ndarray(picture(1, size=(64, 64)), format="rgb24")
            b.mux(cover.encode(still.reformat(format="yuvj420p")))
            b.mux(cover.encode(None))
            copy_packets(a, a.streams.video[0], b, stream)
        report = run(clip, tmp_path / "out.mp4")
        assert report.frames_out == 12 and times(tmp_path / "out.mp4") == times(plain)
        assert any("mjpeg" in note and "left out" in note for note in report.notes)

    def test_fonts_of_subtitles_are_kept(self, tmp_path: Path) -> None:
        plain, clip = write_clip(tmp_path / "plain.mkv", 5), tmp_path / "in.mkv"
        with av.open(str(plain)) as a, av.open(str(clip), "w") as b:
            stream: Any = b.add_stream_from_template(a.streams.video[0])
            b.add_attachment("font.ttf", "application/x-truetype-font", b"font" * 20)
            copy_packets(a, a.streams.video[0], b, stream)
        run(clip, tmp_path / "out.mkv")
        with av.open(str(tmp_path / "out.mkv")) as container:
            assert [s.type for s in container.streams] == ["video", "attachment"]

    def test_title_and_chapters_are_kept(self, tmp_path: Path) -> None:
        plain = write_clip(tmp_path / "plain.mkv", 30)
        clip = tmp_path / "in.mkv"
        with av.open(str(plain)) as a, av.open(str(clip), "w") as b:
            stream: Any = b.add_stream_from_template(a.streams.video[0])
            b.metadata["title"] = "a name"
            chapter: Any = {"id": 1, "start": 0, "end": 500, "time_base": Fraction(1, 1000)}
            b.set_chapters([chapter | {"metadata": {"title": "one"}}])
            copy_packets(a, a.streams.video[0], b, stream)
        run(clip, tmp_path / "out.mkv")
        with av.open(str(tmp_path / "out.mkv")) as container:
            assert container.metadata["title"] == "a name"
            assert [c["metadata"]["title"] for c in container.chapters()] == ["one"]


class TestTone:
    @pytest.mark.parametrize(("codec", "suffix"), [("h264", ".mp4"), ("h265", ".mkv")])
    @pytest.mark.parametrize("faces", [0, 1])
    def test_ten_bits_stay_ten_bits(self, tmp_path: Path, codec: str, suffix: str, faces: int) -> None:
        clip = write_clip(tmp_path / "in.mkv", 4, codec="ffv1", pix_fmt="yuv420p10le", size=(128, 64))
        out = tmp_path / f"out{suffix}"
        run(clip, out, faces=faces, encode=EncodeConfig(crf=1, preset="ultrafast", threads=1, codec=codec))
        with av.open(str(out)) as container:
            assert container.streams.video[0].codec_context.pix_fmt == "yuv420p10le"
        for before, after in zip(luma(clip), luma(out), strict=True):
            away = (slice(None), slice(60, None)) if faces else (slice(None), slice(None))
            assert len(np.unique(before[away])) > 60  # steps of one in 1024
            assert np.abs(before[away].astype(int) - after[away]).max() <= 3
            assert np.abs(before[away].astype(int) - after[away]).mean() < 0.8
            if faces:
                assert np.abs(before[:, :50].astype(int) - after[:, :50]).max() > 20

    def test_within_the_face_box_what_the_mask_leaves_keeps_its_tone(self, tmp_path: Path) -> None:
        clip = write_clip(tmp_path / "in.mkv", 3, codec="ffv1", pix_fmt="yuv420p10le", size=(128, 64))
        out = tmp_path / "out.mkv"
        run(clip, out, encode=EncodeConfig(crf=1, preset="ultrafast", threads=1))
        before, after = luma(clip)[1][10:12, 12:16], luma(out)[1][10:12, 12:16]  # a corner of the face's box
        assert np.abs(before.astype(int) - after).max() <= 3

    def test_more_bits_than_the_codec_has_are_refused_or_asked_for(self, tmp_path: Path) -> None:
        clip = write_clip(tmp_path / "in.mkv", 3, codec="ffv1", pix_fmt="yuv420p12le")
        with pytest.raises(ConfigError, match="12 bits.*--codec h265, or --depth 10"):
            run(clip, tmp_path / "out.mp4")
        assert {path.name for path in tmp_path.iterdir()} == {"in.mkv"}
        report = run(clip, tmp_path / "out.mp4", encode=EncodeConfig(depth=10, threads=1))
        assert "12 bits per sample were written as 10." in report.notes
        with VideoReader(clip) as reader:
            assert coded_format(reader.info, EncodeConfig(codec="h265")) == "yuv420p12le"

    def test_chroma_is_not_thinned(self, tmp_path: Path) -> None:
        for name in ("yuv422p", "yuv444p"):
            clip = write_clip(tmp_path / f"{name}.mkv", 3, pix_fmt=name)
            run(clip, tmp_path / f"{name}.mp4")
            with av.open(str(tmp_path / f"{name}.mp4")) as container:
                assert container.streams.video[0].codec_context.pix_fmt == name

    @pytest.mark.parametrize("rotation", [90, 180, -90])
    def test_a_turned_clip_loses_nothing(self, tmp_path: Path, rotation: int) -> None:
        clip = write_clip(tmp_path / "in.mp4", 5, rotation=rotation)
        out = tmp_path / "out.mp4"
        run(clip, out, faces=0, encode=LOSSLESS)
        for before, after in zip(luma(clip), luma(out), strict=True):
            np.testing.assert_array_equal(np.rot90(before, rotation // 90), after)

    def test_layouts_are_understood(self) -> None:
        assert layout_of("yuvj420p").plain and layout_of("yuv422p10le").name == "yuv422p10le"
        assert not layout_of("nv12").plain and layout_of("p010le").name == "yuv420p10le"
        assert layout_of("rgba").rgb and layout_of("rgba").alpha and layout_of("yuva420p").alpha
        assert layout_of("gray10le").name == "yuv420p10le"

    @pytest.mark.parametrize(
        ("codec", "pix_fmt", "word"), [("ffv1", "bgra", "transparency"), ("ffv1", "bgr0", "RGB")]
    )
    def test_what_a_codec_cannot_hold_is_said(
        self, tmp_path: Path, codec: str, pix_fmt: str, word: str
    ) -> None:
        clip = write_clip(tmp_path / "in.mkv", 3, codec=codec, pix_fmt=pix_fmt)
        report = run(clip, tmp_path / "out.mp4")
        assert any(word in note for note in report.notes)
        assert len(times(tmp_path / "out.mp4")) == 3


class TestCodec:
    def test_h265_is_tagged_for_all_players(self, tmp_path: Path) -> None:
        clip = write_clip(tmp_path / "in.mp4", 12)
        out = tmp_path / "out.mp4"
        run(clip, out, encode=EncodeConfig(codec="h265", preset="ultrafast", threads=1), segment_s=0.2)
        with av.open(str(out)) as container:
            context: Any = container.streams.video[0].codec_context
            assert context.name == "hevc" and context.codec_tag == "hvc1"
        assert times(out) == times(clip)

    def test_crf_and_preset_reach_the_encoder(self, tmp_path: Path) -> None:
        clip = write_clip(tmp_path / "in.mp4", 12)
        sizes = []
        for crf in (4, 40):
            out = tmp_path / f"{crf}.mp4"
            run(clip, out, encode=EncodeConfig(crf=crf, threads=1))
            sizes.append(out.stat().st_size)
        assert sizes[0] > 1.5 * sizes[1]
        for wrong in ({"codec": "vp8"}, {"preset": "best"}, {"depth": 9}):
            with pytest.raises(ConfigError):
                EncodeConfig(**wrong)


class TestDamage:
    def test_a_file_cut_in_the_middle_of_a_gop(self, tmp_path: Path) -> None:
        clip = write_clip(tmp_path / "whole.mkv", 60)
        cut = tmp_path / "cut.mkv"
        cut.write_bytes(clip.read_bytes()[: clip.stat().st_size * 6 // 10])
        with pytest.raises(InputFileError, match="cut short.*--partial"):
            run(cut, tmp_path / "out.mp4")
        report = run(cut, tmp_path / "out.mp4", partial=True)
        assert 20 < report.frames_out == len(times(tmp_path / "out.mp4")) < 50
        assert any("cut short" in note for note in report.notes)

    def test_two_recordings_one_after_the_other_in_one_file(self, tmp_path: Path) -> None:
        first = write_clip(tmp_path / "a.ts", 30, sound="aac")
        second = write_clip(tmp_path / "b.ts", 20, sound="aac")
        clip, out = tmp_path / "in.ts", tmp_path / "out.mp4"
        clip.write_bytes(first.read_bytes() + second.read_bytes())
        report = run(clip, out, segment_s=0.5)
        assert report.frames_out == 50 and any("jump back after frame 30" in note for note in report.notes)
        shown = times(out)
        steps = {round(float(b - a), 3) for a, b in pairwise(shown)}
        assert steps == {0.04}
        sound = [when for when, _ in sound_packets(out)]
        assert sound == sorted(sound) and abs(float(sound[-1] - shown[-1])) < 0.2

    def test_a_recording_that_begins_in_mid_gop(self, tmp_path: Path) -> None:
        whole = write_clip(tmp_path / "a.ts", 60, gop=15)
        clip = tmp_path / "in.ts"
        clip.write_bytes(whole.read_bytes()[188 * (whole.stat().st_size // 188 // 3) :])
        report = run(clip, tmp_path / "out.mp4")
        assert 25 <= report.frames_out <= 45 and report.frames_out % 15 == 0

    def test_what_is_not_kept_is_told(self, tmp_path: Path) -> None:
        clip = write_clip(tmp_path / "in.mp4", 3, rotation=45)
        assert any("turned by 45 degrees" in note for note in run(clip, tmp_path / "out.mp4").notes)

    def test_nothing_at_all(self, tmp_path: Path) -> None:
        empty = tmp_path / "in.mp4"
        empty.touch()
        with pytest.raises(InputFileError, match=r"in\.mp4 cannot be opened as a video \(it is empty\)"):
            run(empty, tmp_path / "out.mp4")

    def test_sound_without_a_picture(self, tmp_path: Path) -> None:
        song = tmp_path / "song.mp4"
        with_picture = write_clip(tmp_path / "in.mp4", 30, sound="aac")
        with av.open(str(with_picture)) as a, av.open(str(song), "w") as b:
            stream = b.add_stream_from_template(a.streams.audio[0])
            copy_packets(a, a.streams.audio[0], b, stream)
        with pytest.raises(InputFileError, match="no picture stream beside its sound"):
            run(song, tmp_path / "out.mp4", partial=True)
        assert {path.name for path in tmp_path.iterdir()} == {"song.mp4", "in.mp4"}
