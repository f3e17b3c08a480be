"""`v4l2:///dev/video9`: a virtual camera (the v4l2loopback kernel module) that other programs read."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

import cv2
import numpy as np

from ufr_edge.errors import BackendUnavailableError, OutputError
from ufr_edge.runtime.frame import Frame
from ufr_edge.runtime.video.uri import Uri

if TYPE_CHECKING:
    from ufr_edge.runtime.live.sinks import LiveFrame, SinkContext

# videodev2.h, 64 bit: VIDIOC_S_FMT = _IOWR('V', 5, struct v4l2_format of 208 bytes)
_SET_FORMAT = 0xC0D05605
_FORMAT_BYTES = 208
_VIDEO_OUTPUT, _YU12, _PROGRESSIVE, _SRGB = 2, 0x32315559, 1, 8


class LoopbackSink:
    """Writes YUV 4:2:0 pictures into a V4L2 output device; an odd side loses its last line."""

    def __init__(self, uri: Uri) -> None:
        """Raises BackendUnavailableError when there is no such device."""
        self.name = uri.masked
        self._path = f"/dev/video{uri.target}" if uri.target.isdecimal() else uri.target
        self._handle: int | None = None
        self._size = (0, 0)
        if not os.path.exists(self._path):  # noqa: PTH110 - a device, not a path of ours
            number = self._path.removeprefix("/dev/video")
            msg = (
                f"{self._path} does not exist. Make a virtual camera with: "
                f"sudo modprobe v4l2loopback video_nr={number} exclusive_caps=1"
            )
            raise BackendUnavailableError(msg)

    def open(self, context: SinkContext) -> None:
        """Set the device's format. Raises OutputError when it is no output device."""
        import fcntl  # POSIX only

        self._size = (context.info.width // 2 * 2, context.info.height // 2 * 2)
        try:
            self._handle = os.open(self._path, os.O_WRONLY)
            fcntl.ioctl(self._handle, _SET_FORMAT, v4l2_format(*self._size))
        except OSError as exc:
            self.close()
            msg = f"{self._path} takes no pictures ({exc.strerror}). It must be a v4l2loopback device."
            raise OutputError(msg) from exc

    def write(self, frame: LiveFrame) -> None:
        """Write one picture."""
        from ufr_edge.runtime.live.sinks import fitted

        if self._handle is None:
            msg = f"{self.name} is not open. Call open() first."
            raise OutputError(msg)
        try:
            os.write(self._handle, planar(fitted(frame.frame, self._size).image))
        except OSError as exc:
            msg = f"{self._path} takes no more pictures: {exc.strerror}."
            raise OutputError(msg) from exc

    def close(self) -> None:
        """Close the device; twice is fine."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)


def v4l2_format(width: int, height: int) -> bytes:
    """`struct v4l2_format` of an output of YU12 pictures, as a 64-bit kernel reads it."""
    size = width * height * 3 // 2
    pixels = struct.pack("<8I", width, height, _YU12, _PROGRESSIVE, width, size, _SRGB, 0)
    return (struct.pack("<II", _VIDEO_OUTPUT, 0) + pixels).ljust(_FORMAT_BYTES, b"\0")


def planar(image: Frame) -> bytes:
    """RGB (H, W, 3) with even sides to the bytes of YUV 4:2:0 (Y, U, V planes; BT.601, limited range)."""
    return np.ascontiguousarray(cv2.cvtColor(image, cv2.COLOR_RGB2YUV_I420)).tobytes()
