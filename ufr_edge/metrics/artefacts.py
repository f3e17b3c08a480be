"""What PSNR hides and the eye does not: a colour cast, and a grid or ringing on areas that are flat in the truth."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from ufr_edge.errors import ShapeError

Image = NDArray[np.uint8]
Values = NDArray[np.float64]
Flags = NDArray[np.bool_]

PERIOD = 8
"""Pixels: the longest period of a grid; 2 and 4 divide it."""
TILE = 16
"""Pixels: side of the tiles that are flat or not."""
FLAT_SHARE = 0.25
"""Share of a face's tiles that count as flat: those in which the truth varies least."""

_BOX = np.convolve(np.full(PERIOD, 1 / PERIOD), np.full(PERIOD, 1 / PERIOD))


def colour_shift(image: Image, truth: Image) -> Values:
    """Mean a* and b* (CIELAB, D65) of `image` minus those of `truth`, float64 (2,).

    Both uint8 (H, W, 3) sRGB. Its length is the colour cast in CIELAB units: about 2 can just be seen side by side. A
    picture that is only darker or brighter has none. Raises ShapeError when the shapes differ.
    """
    from skimage.color import rgb2lab  # OpenCV's is off by up to 0.3

    if image.shape != truth.shape:
        msg = f"A colour shift needs two images of one shape; got {image.shape} and {truth.shape}."
        raise ShapeError(msg)
    own, other = (rgb2lab(picture / 255.0)[..., 1:].mean((0, 1)) for picture in (image, truth))
    return np.asarray(own - other)


def flat_tiles(truth: Image) -> Flags:
    """Tell which tiles of a clean face uint8 (H, W, 3) are flat: bool (H // 16, W // 16), a quarter of them true.

    They are those in which the smoothed (Gaussian, sigma 2 px) picture has the least standard deviation, so that its own
    noise chooses none; two at least. Raises ShapeError below 32 px.
    """
    if min(truth.shape[:2]) < 2 * TILE:
        msg = f"Flat areas are looked for in tiles of {TILE} px, two each way at least; got a picture of {truth.shape[1]}x{truth.shape[0]}."
        raise ShapeError(msg)
    smooth = cv2.GaussianBlur(truth.astype(np.float64), (0, 0), 2)
    spread = _tiles(smooth).std((2, 3)).mean(-1)
    flat = np.zeros(spread.size, np.bool_)
    flat[np.argsort(spread, axis=None, kind="stable")[: max(2, round(FLAT_SHARE * spread.size))]] = True
    return flat.reshape(spread.shape)


def grid_energy(image: Image, flat: Flags) -> float:
    """Energy of what repeats every 2, 4 or 8 px at a fixed place, in 8-bit levels squared, mean of R, G and B.

    image: uint8 (H, W, 3). flat: as from `flat_tiles`; only these are looked at, two at least. Each tile, without its
    shading (as in `flat_energy`), is laid over itself every 8 px; then the 8x8 patterns of all pairs of different tiles
    are multiplied and meaned. A pattern bound to the pixels of a network or of JPEG is the same in every tile and stays:
    stripes of +2 and -2 levels give 4. Noise and texture differ from tile to tile and cancel out, so that without a grid
    the value lies about 0, on both sides.
    """
    tiles = _flat_detail(image, flat)
    folded = tiles.reshape(-1, TILE // PERIOD, PERIOD, TILE // PERIOD, PERIOD, 3).mean((1, 3))
    folded -= folded.mean((1, 2), keepdims=True)
    products = folded.sum(0) ** 2 - (folded**2).sum(0)
    return float(products.mean() / (len(folded) * (len(folded) - 1)))


def flat_energy(image: Image, flat: Flags) -> float:
    """Energy finer than about 16 px in flat tiles, in 8-bit levels squared, mean of R, G and B.

    image: uint8 (H, W, 3). Ringing, noise and invented texture all add to it, blur takes from it. What is left out is the
    mean over a triangle of 15 px, which follows every slope and is zero at periods of 8, 4 and 2 px.
    """
    return float((_flat_detail(image, flat) ** 2).mean())


def _flat_detail(image: Image, flat: Flags) -> Values:
    """The flat tiles without their shading, float64 (tiles, 16, 16, 3)."""
    x = image.astype(np.float64)
    detail = x - cv2.sepFilter2D(x, -1, _BOX, _BOX, borderType=cv2.BORDER_REFLECT_101)
    return np.asarray(_tiles(detail)[flat])


def _tiles(x: Values) -> Values:
    """Cut (H, W, 3) into tiles, (rows, columns, 16, 16, 3); what is left over at the right and below is dropped."""
    rows, columns = x.shape[0] // TILE, x.shape[1] // TILE
    cut = x[: rows * TILE, : columns * TILE].reshape(rows, TILE, columns, TILE, 3)
    return cut.swapaxes(1, 2)
