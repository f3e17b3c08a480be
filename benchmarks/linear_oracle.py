"""How much a linear filter that knows everything would gain on the classic degradations: what a gain in dB is worth.

    python benchmarks/linear_oracle.py --faces VAL

Wiener's filter for each face apart, given that very face's power spectrum in colours turned apart (eigenvectors of its own
covariance), the blur's exact kernel, the sensor's size and the noise's strength, on pictures without JPEG. No restorer is
told any of this, and all have JPEG to undo; none is linear either, so it is a yardstick, no bound. Beside it: the truth cut
off at the sensor's pixels, which is all that blur, noise and JPEG undone to the last would give. Writes
docs/measured/linear_oracle.json, which benchmarks/quality.py takes in.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measured import KEPT
from numpy.typing import NDArray

from ufr_edge.adaptation.faces import load_faces
from ufr_edge.cli.border import script_border
from ufr_edge.degradations.classic import REFERENCE_SIDE, Classic, ClassicParams, low_resolution
from ufr_edge.degradations.presets import degrade, get_preset
from ufr_edge.files import write_json
from ufr_edge.metrics.quality import psnr
from ufr_edge.runtime.frame import Frame
from ufr_edge.weights.cards import command_block, markdown_table

RESULT = "linear_oracle.json"
COMMAND = "python benchmarks/linear_oracle.py --faces VAL"
PRESETS = ("classic", "classic-light", "classic-heavy")
_ROUNDING = 1 / 12  # of 8-bit levels, squared
Spectrum = NDArray[np.float64]


def power(face: Frame) -> Spectrum:
    """|FFT|^2, orthonormal, of uint8 (S, S, 3) in its own decorrelated colours: (3, S, S), levels squared."""
    pixels = face.reshape(-1, 3).astype(np.float64)
    centred = pixels - pixels.mean(axis=0)
    turned = (pixels @ np.linalg.eigh(centred.T @ centred)[1]).reshape(face.shape)
    return np.asarray(np.abs(np.fft.fft2(turned, axes=(0, 1), norm="ortho")) ** 2).transpose(2, 0, 1)


def errors(face: Frame, params: ClassicParams) -> tuple[float, float]:
    """Mean squared error, in levels, of what is left of a face: cut off at the sensor's pixels; by Wiener's filter."""
    side = face.shape[0]
    pixels = low_resolution(side, side, params.scale)[0]
    across, down = np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side))
    seen = np.maximum(np.abs(across), np.abs(down)) <= min(1.0, pixels / side) / 2
    spectrum, noise = power(face), params.noise**2 * (side / pixels) ** 2
    passed = blur_response(params, across, down, side) ** 2
    left = spectrum * noise / (passed * spectrum + noise + 1e-9)
    cut = np.where(seen, 0.0, spectrum).sum() / face.size
    return float(cut), float(np.where(seen, left, spectrum).sum() / face.size)


def blur_response(params: ClassicParams, across: Spectrum, down: Spectrum, side: int) -> Spectrum:
    """The Gaussian's frequency response, at cycles per pixel."""
    along = across * math.cos(params.angle) + down * math.sin(params.angle)
    beside = down * math.cos(params.angle) - across * math.sin(params.angle)
    sigma_x, sigma_y = (sigma * side / REFERENCE_SIDE for sigma in (params.sigma_x, params.sigma_y))
    return np.asarray(np.exp(-2 * np.pi**2 * ((sigma_x * along) ** 2 + (sigma_y * beside) ** 2)))


def measure(faces: NDArray[np.uint8], preset: str) -> dict[str, float]:
    """Mean PSNR of the degraded faces, and mean gains over it, in dB; face i with seed i, as `ufr-edge eval` does."""
    camera = get_preset(preset)
    assert isinstance(camera, Classic)
    rows = []
    for i, face in enumerate(faces):
        before = psnr(degrade(face, preset, seed=i), face)
        after = [decibels(error) for error in errors(face, camera.sample(np.random.default_rng(i)))]
        rows.append([before, *(value - before for value in after)])
    names = ("psnr_db", "gain_sensor_db", "gain_wiener_db")
    return dict(zip(names, np.mean(rows, axis=0).tolist(), strict=True))


def decibels(error: float) -> float:
    """PSNR of a mean squared error in levels, rounded to 8 bit."""
    return 10 * math.log10(255**2 / (error + _ROUNDING))


def section(record: Mapping[str, Any]) -> list[str]:
    """The table for docs/quality.md."""
    rows = [
        [preset, f"{v['psnr_db']:.2f}", f"{v['gain_wiener_db']:+.2f}", f"{v['gain_sensor_db']:+.2f}"]
        for preset in PRESETS
        if (v := record["figures"].get(preset))
    ]
    said = (
        f"{record['faces']} held-out faces at {record['side']} px. Wiener's filter is told each face's own spectrum and "
        "colours, the blur's kernel, the sensor's size and the noise, and has no JPEG to undo; restorers are told nothing "
        "and have. It is linear and they are not: a yardstick, no bound."
    )
    head = [
        "degradation",
        "PSNR of the input",
        "Wiener's filter that knows all, dB",
        "the truth, cut off at the sensor's pixels, dB",
    ]
    return [
        "## What a linear filter that knows everything would gain",
        command_block(record["command"]),
        said,
        markdown_table(head, rows),
    ]


def run(args: argparse.Namespace) -> None:
    """Measure and write."""
    faces = load_faces(args.faces, args.side).images
    figures = {preset: measure(faces, preset) for preset in PRESETS}
    record = {"command": COMMAND, "faces": len(faces), "side": args.side, "figures": figures}
    write_json(args.output / RESULT, record)
    print("\n\n".join(section(record)))


def main(argv: Sequence[str] | None = None) -> int:
    """Run; an error is one line and its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faces", type=Path, required=True, help="held-out clean aligned faces (VAL)")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("-o", "--output", type=Path, default=KEPT)
    args = parser.parse_args(argv)
    return script_border(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
