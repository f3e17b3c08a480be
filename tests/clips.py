"""Tiny clips, a face engine and a face detector for the tests of the video path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from ufr_edge.runtime.engines.base import EngineInfo
from ufr_edge.runtime.faces.align import template
from ufr_edge.runtime.faces.detect import Face
from ufr_edge.runtime.frame import Frame

STUB_INFO = EngineInfo("onnxruntime", "0", "cpu", "fp32", 64, Path("stub.onnx"))


def picture(number: int, *, size: tuple[int, int] = (96, 64)) -> Frame:
    """A smooth picture that says its own number: the mean of its red channel grows with it."""
    rows, columns = np.indices((size[1], size[0]))
    out = np.stack([np.full_like(rows, 20 + 6 * number), rows % 128 + 60, columns % 128 + 60], axis=2)
    return out.astype(np.uint8)


def textured(size: tuple[int, int], *, seed: int = 0) -> Frame:
    """A picture (width, height) of smooth spots, which optical flow can follow."""
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, 256, (size[1] // 6 + 2, size[0] // 6 + 2, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(cells, size, interpolation=cv2.INTER_CUBIC), dtype=np.uint8)


@dataclass
class StubEngine:
    """Returns every face with brighter stripes of 8 rows; keeps the sizes of the batches it was given."""

    info: EngineInfo = STUB_INFO
    batches: list[int] = field(default_factory=list)

    def infer(self, batch: Frame) -> Frame:
        self.batches.append(len(batch))
        stripes = np.where(np.indices(batch.shape)[1] % 16 < 8, 60, 0)
        return np.clip(batch + stripes, 0, 255).astype(np.uint8)


@dataclass
class StubDetector:
    """Says that each frame has the faces of the next entry of `plan` (the last one stays)."""

    plan: Sequence[int] = (1,)
    info: EngineInfo = STUB_INFO
    calls: int = 0

    def detect(self, frame: Frame) -> list[Face]:
        count = self.plan[min(self.calls, len(self.plan) - 1)]
        self.calls += 1
        return [face_at((12 + 40.0 * n, 10.0)) for n in range(count)]


def face_at(corner: tuple[float, float], side: int = 32) -> Face:
    """A face whose aligned crop is the square of `side` pixels at `corner`."""
    points = template(side) + np.array(corner, np.float32)
    box = np.array([*corner, corner[0] + side, corner[1] + side], np.float32)
    return Face(box=box, score=0.9, landmarks=points.astype(np.float32))


def write_clip(
    path: Path,
    frames: int = 12,
    *,
    size: tuple[int, int] = (96, 64),
    pts: Sequence[int] | None = None,
    time_base: Fraction = Fraction(1, 1000),
    sound: str | None = None,
    tracks: int = 1,
    subtitles: str | None = None,
    rate: Fraction = Fraction(25),
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    rotation: int | None = None,
    colour: tuple[int, int, int, int] | None = None,
    gop: int | None = None,
) -> Path:
    """Write `picture(0)`, `picture(1)`, ... at `pts` (default: at `rate`); sound: an encoder's name.

    tracks: of sound, each with its own tone and language. subtitles: a codec's name, one line a second.
    """
    times = list(pts) if pts is not None else [round(n / rate / time_base) for n in range(frames)]
    with av.open(str(path), "w") as container:
        video: Any = container.add_stream(codec, rate=rate)
        video.width, video.height, video.pix_fmt = *size, pix_fmt
        video.codec_context.time_base = video.time_base = time_base
        if codec == "libx264":
            video.options = {"crf": "4", "preset": "ultrafast"} | ({"g": str(gop)} if gop else {})
        if rotation is not None:
            video.set_display_rotation(rotation)
        if colour:
            context = video.codec_context
            context.colorspace, context.color_range, context.color_primaries, context.color_trc = colour
        voices = [container.add_stream(sound, rate=48000) for _ in range(tracks)] if sound else []
        for voice, language in zip(voices, ("eng", "deu", "fra"), strict=False):
            voice.metadata["language"] = language
        text: Any = container.add_mux_stream(subtitles) if subtitles else None
        if text is not None:
            text.time_base = Fraction(1, 1000)
            text.metadata["language"] = "eng"
        for number, when in enumerate(times):
            frame: Any = av.VideoFrame.from_ndarray(picture(number, size=size), format="rgb24")
            frame = frame.reformat(format=pix_fmt, dst_color_range=colour[1] if colour else 1)
            if "10le" in pix_fmt or "12le" in pix_fmt:
                _fine_ramp(frame)
            frame.pts, frame.time_base = when, time_base
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        seconds = float(times[-1] * time_base)
        for number, voice in enumerate(voices):
            _write_sound(container, voice, seconds=seconds, tone=440 * (number + 1))
        if text is not None:
            _write_text(container, text, seconds=seconds)
    return path


def _fine_ramp(frame: Any) -> None:
    """A luma ramp in steps finer than 8 bits can tell."""
    plane = frame.planes[0]
    rows = np.frombuffer(plane, np.uint16).reshape(plane.height, -1)
    rows[:, : plane.width] = 300 + np.arange(plane.width)


def _write_text(container: Any, stream: Any, *, seconds: float) -> None:
    for second in range(int(seconds)):
        line = f"line {second}".encode()
        packet = av.Packet(
            line if "mov" not in container.format.name else len(line).to_bytes(2, "big") + line
        )
        packet.stream, packet.time_base = stream, Fraction(1, 1000)
        packet.pts = packet.dts = 1000 * second
        packet.duration = 800
        container.mux(packet)


def _write_sound(container: Any, voice: Any, *, seconds: float, tone: float = 440) -> None:
    size = voice.codec_context.frame_size or 1024
    for start in range(0, int(seconds * 48000), size):
        wave = np.sin(np.arange(start, start + size, dtype=np.float32) / 48000 * 2 * np.pi * tone)
        stereo = np.stack([wave, wave]).astype(np.float32)
        frame: Any = av.AudioFrame.from_ndarray(stereo, format="fltp", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = 48000, start, Fraction(1, 48000)
        container.mux(voice.encode(frame))
    container.mux(voice.encode(None))


def read_clip(path: Path) -> list[tuple[Fraction, Frame]]:
    """(seconds, RGB) of every frame."""
    with av.open(str(path)) as container:
        return [
            (Fraction(f.pts) * Fraction(f.time_base), f.to_ndarray(format="rgb24"))
            for f in container.decode(video=0)
        ]


def sound_packets(path: Path, track: int = 0, *, kind: str = "audio") -> list[tuple[Fraction, bytes]]:
    """(seconds, bytes) of every packet of a stream of sound, or of another kind."""
    with av.open(str(path)) as container:
        stream = getattr(container.streams, kind)[track]
        return [
            (Fraction(p.pts) * Fraction(p.time_base), bytes(p))
            for p in container.demux(stream)
            if p.pts is not None and p.size
        ]


def copy_packets(source: Any, stream: Any, target: Any, into: Any) -> None:
    """Copy what is coded of one stream of an open container into a stream of another."""
    for packet in source.demux(stream):
        if packet.dts is not None:
            packet.stream = into
            target.mux(packet)


def write_picture(path: Path, frame: Frame) -> Path:
    """Write an RGB frame with OpenCV."""
    assert cv2.imwrite(str(path), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    return path
