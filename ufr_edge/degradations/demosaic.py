"""GRBG Bayer mosaic and a linear demosaic at float precision."""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from ufr_edge.degradations.ops import FloatImage

Mosaic = NDArray[np.float32]

# Malvar, He and Cutler 2004, "High-quality linear interpolation for demosaicing of Bayer-patterned color images",
# figure 2: bilinear interpolation corrected by the known colour's Laplacian. All in eighths.
_GREEN = np.array(
    [[0, 0, -1, 0, 0], [0, 0, 2, 0, 0], [-1, 2, 4, 2, -1], [0, 0, 2, 0, 0], [0, 0, -1, 0, 0]], np.float32
) / np.float32(8)
_ALONG_ROW = np.array(
    [[0, 0, 0.5, 0, 0], [0, -1, 0, -1, 0], [-1, 4, 5, 4, -1], [0, -1, 0, -1, 0], [0, 0, 0.5, 0, 0]],
    np.float32,
) / np.float32(8)
_DIAGONAL = np.array(
    [[0, 0, -1.5, 0, 0], [0, 2, 0, 2, 0], [-1.5, 0, 6, 0, -1.5], [0, 2, 0, 2, 0], [0, 0, -1.5, 0, 0]],
    np.float32,
) / np.float32(8)


def mosaic_grbg(image: FloatImage) -> Mosaic:
    """Keep one colour per pixel of (H, W, 3), H and W even: rows G R G R, then B G B G."""
    mosaic = image[:, :, 1].copy()
    mosaic[0::2, 1::2] = image[0::2, 1::2, 0]
    mosaic[1::2, 0::2] = image[1::2, 0::2, 2]
    return mosaic


def demosaic_grbg(mosaic: Mosaic) -> FloatImage:
    """Interpolate a GRBG mosaic (H, W even, at least 4) to (H, W, 3) RGB; not clipped."""
    green, across, down, diagonal = (
        cast(Mosaic, cv2.filter2D(mosaic, -1, kernel, borderType=cv2.BORDER_REFLECT_101))
        for kernel in (_GREEN, _ALONG_ROW, np.ascontiguousarray(_ALONG_ROW.T), _DIAGONAL)
    )  # the mirrored border keeps the colour phase
    image = np.repeat(mosaic[:, :, None], 3, axis=2)
    red, blue = (slice(0, None, 2), slice(1, None, 2)), (slice(1, None, 2), slice(0, None, 2))
    green_red_row, green_blue_row = (slice(0, None, 2),) * 2, (slice(1, None, 2),) * 2
    for site, channels in (
        (red, (None, green, diagonal)),
        (blue, (diagonal, green, None)),
        (green_red_row, (across, None, down)),
        (green_blue_row, (down, None, across)),
    ):
        for channel, values in enumerate(channels):
            if values is not None:
                image[(*site, channel)] = values[site]
    return image
