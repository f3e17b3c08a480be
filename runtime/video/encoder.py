"""How frames are coded: which codec, which pixels, and a restored face laid into the decoder's own picture."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import cv2
import numpy as np

from ufr_edge.errors import ConfigError
from ufr_edge.runtime.frame import Box, Frame
from ufr_edge.runtime.video.planes import EXACT, Plane, converted, layout_of, padded, planes
from ufr_edge.runtime.video.source import SourceFrame, VideoInfo

CODECS = {"h264": "libx264", "h265": "libx265"}
PRESETS = (
    "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"
)  # fmt: skip
_DEPTHS = {"h264": (8, 10), "h265": (8, 10, 12)}
_BT709, _RGB = 1, 0


@dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """`crf` 0 (H.264: lossless) to 51, lower is better; `preset` trades time for size.

    codec: h264 or h265. depth: bits per sample, None keeps the source's. extra: further encoder options, such as
    (("tune", "zerolatency"),).
    """

    crf: int = 18
    preset: str = "veryfast"
    threads: int | None = None
    extra: tuple[tuple[str, str], ...] = ()
    codec: str = "h264"
    depth: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.crf <= 51:
            msg = f"crf must be 0 (best) to 51 (smallest), not {self.crf}."
            raise ConfigError(msg)
        if self.codec not in CODECS:
            msg = f"Codec {self.codec} is not known. Known are {', '.join(CODECS)}."
            raise ConfigError(msg)
        if self.preset not in PRESETS:
            msg = f"Preset {self.preset} is not known. Known are {', '.join(PRESETS)}."
            raise ConfigError(msg)
        if self.depth is not None and self.depth not in _DEPTHS[self.codec]:
            msg = f"{self.codec} holds {_DEPTHS[self.codec]} bits per sample, not {self.depth}."
            raise ConfigError(msg)


def coded_format(info: VideoInfo, config: EncodeConfig) -> str:
    """The pixel format that is written: the source's, unless `config.depth` says less.

    Raises ConfigError when the codec cannot hold the source's depth: tone is not thrown away unasked.
    """
    layout = layout_of(info.pix_fmt)
    depths = _DEPTHS[config.codec]
    wanted = config.depth or min((d for d in depths if d >= layout.bits), default=None)
    if wanted is None:
        mend = "--codec h265, or " if config.codec == "h264" and layout.bits <= 12 else ""
        msg = (
            f"{info.name} has {layout.bits} bits per sample, and {config.codec} holds {depths[-1]} at most. "
            f"Give {mend}--depth {depths[-1]} if the loss is fine."
        )
        raise ConfigError(msg)
    return f"yuv{layout.chroma}p" + ("" if wanted == 8 else f"{wanted}le")


def coded_size(size: tuple[int, int], pix_fmt: str) -> tuple[int, int]:
    """(width, height) grown to what the chroma needs: halved chroma needs even sides."""
    chroma = layout_of(pix_fmt).chroma
    width = size[0] + (size[0] % 2 if chroma != "444" else 0)
    return width, size[1] + (size[1] % 2 if chroma == "420" else 0)


def configure(
    context: Any, info: VideoInfo, size: tuple[int, int], pix_fmt: str, threads: int | None
) -> None:
    """Set up an encoder's context; size: (width, height) as coded."""
    context.width, context.height = size
    context.pix_fmt = pix_fmt
    context.time_base = info.time_base
    context.thread_count = threads or 0
    if info.aspect:
        context.sample_aspect_ratio = info.aspect
    context.colorspace, context.color_range = _space(info), info.colour.range
    context.color_primaries, context.color_trc = info.colour.primaries, info.colour.transfer
    if context.codec.name == "libx265":
        context.codec_tag = "hvc1"  # what QuickTime asks for


def encoder_options(config: EncodeConfig) -> dict[str, str]:
    """The encoder's private options."""
    out = {"crf": str(config.crf), "preset": config.preset}
    if config.codec == "h265":
        pools = f":pools={config.threads}" if config.threads else ""
        out["x265-params"] = f"log-level=error{pools}"
    return out | dict(config.extra)


def open_encoder(info: VideoInfo, size: tuple[int, int], pix_fmt: str, config: EncodeConfig) -> Any:
    """An encoder of its own, its headers apart from its packets; size: (width, height) as coded."""
    context: Any = av.CodecContext.create(CODECS[config.codec], "w")
    configure(context, info, size, pix_fmt, config.threads)
    context.framerate = info.rate or Fraction(25)
    context.options = encoder_options(config)
    context.flags |= int(av.codec.context.Flags.global_header)
    context.open()
    return context


class FrameCoder:
    """Makes of each `SourceFrame` the picture that the encoder gets."""

    def __init__(self, info: VideoInfo, size: tuple[int, int], pix_fmt: str) -> None:
        """size: (width, height) of the frames' images."""
        self._info, self._pix_fmt = info, pix_fmt
        self.size = coded_size(size, pix_fmt)
        self._layout = layout_of(pix_fmt)

    def coded(self, frame: SourceFrame) -> Any:
        """The picture, with its time. Of a frame with `native`, only the touched boxes come from its image."""
        native = frame.native
        fits = native is not None and self.size == coded_size((native.width, native.height), self._pix_fmt)
        out = self._patched(frame) if fits else self._from_rgb(frame.image)
        out.pts, out.time_base = frame.pts, self._info.time_base
        out.pict_type = 0  # the encoder chooses, whatever the source had
        return out

    def _patched(self, frame: SourceFrame) -> Any:
        out = padded(converted(frame.native, self._pix_fmt), self.size)
        if frame.touched and out is frame.native:
            out.make_writable()  # the decoder may still refer to its picture
        for box in frame.touched:
            self._patch(out, frame, box)
        return out

    def _patch(self, out: Any, frame: SourceFrame, box: Box) -> None:
        height, width = frame.image.shape[:2]
        x0, y0 = box[0] - box[0] % 2, box[1] - box[1] % 2
        x1, y1 = min(width, box[2] + box[2] % 2), min(height, box[3] + box[3] % 2)
        fresh = planes(self._from_rgb(frame.image[y0:y1, x0:x1]))
        before = None if frame.before is None else planes(self._from_rgb(frame.before[y0:y1, x0:x1]))
        for number, target in enumerate(planes(out)):
            right = int(number > 0 and self._layout.chroma != "444")
            down = int(number > 0 and self._layout.chroma == "420")
            part = target[y0 >> down : (y1 + down) >> down, x0 >> right : (x1 + right) >> right]
            new = fresh[number][: part.shape[0], : part.shape[1]]
            part[:] = new if before is None else self._changed(part, new, before[number])

    def _changed(self, part: Plane, new: Plane, old: Plane) -> Plane:
        """`part` plus what changed from `old` to `new`: what did not change keeps its exact value."""
        change = cv2.subtract(new, old[: new.shape[0], : new.shape[1]], dtype=cv2.CV_16S)
        if self._layout.bits == 8:
            return np.asarray(cv2.add(part, change, dtype=cv2.CV_8U), np.uint8)
        out = cv2.add(part, change, dtype=cv2.CV_16U)
        return np.minimum(np.asarray(out, np.uint16), np.uint16((1 << self._layout.bits) - 1))

    def _from_rgb(self, image: Frame) -> Any:
        width, height = coded_size((image.shape[1], image.shape[0]), self._pix_fmt)
        right, below = width - image.shape[1], height - image.shape[0]
        if right or below:
            image = np.asarray(cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_REPLICATE))
        rgb: Any = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        rgb.colorspace = _space(self._info)
        return rgb.reformat(
            format=self._pix_fmt,
            src_color_range=2,
            dst_color_range=self._info.colour.range or 1,
            interpolation=EXACT,
            threads=1,
        )


def _space(info: VideoInfo) -> int:
    return _BT709 if info.colour.space == _RGB else info.colour.space
