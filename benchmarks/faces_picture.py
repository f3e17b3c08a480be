"""Draw docs/faces.jpg: what the shipped restorer makes of generated people that training has not seen.

    python benchmarks/faces_picture.py --first-stage runs/edge-m-first

The people are those of the demo (ufr_edge/demo/faces): four degraded lightly, the same heavily, and four more heavily.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import ufr_edge.demo
from ufr_edge.adaptation.faces import read_face
from ufr_edge.adaptation.pictures import sheet
from ufr_edge.adaptation.restorer_task import restore_batch
from ufr_edge.adaptation.training import pick_device
from ufr_edge.cli.border import script_border
from ufr_edge.degradations.presets import degrade
from ufr_edge.restorers.loading import load_any_restorer
from ufr_edge.runtime.images import write_image

Images = NDArray[np.uint8]
PEOPLE = Path(ufr_edge.demo.__file__).parent / "faces" / "camera"
FEW = ("a_faker_00004", "a_faker_00058", "a_faker_00122", "a_faker_00148")
MORE = ("a_t2i_00050", "a_t2i_00298", "a_t2i_00559", "a_t2i_00825")
PARTS = (("classic-light", FEW), ("classic-heavy", FEW), ("classic-heavy", MORE))
SHOWN = 156
GAP = 8


def part(preset: str, names: Sequence[str], restorers: Sequence[str]) -> Images:
    """One sheet: input, what each restorer makes of it, and the truth."""
    truth = np.stack([read_face(PEOPLE / f"{name}.jpg", 256) for name in names])
    bad = np.stack([degrade(face, preset, seed=i) for i, face in enumerate(truth)])
    device = pick_device("cpu")
    made = {
        Path(name).name: restore_batch(load_any_restorer(name).model.to(device), bad, device)
        for name in restorers
    }
    return sheet({"input": bad, **made, "truth": truth}, across=2, side=SHOWN)


def draw(restorers: Sequence[str]) -> Images:
    """The whole picture, uint8 (H, W, 3) RGB."""
    parts = [part(preset, names, restorers) for preset, names in PARTS]
    bar = np.full((GAP, parts[0].shape[1], 3), 255, np.uint8)
    return np.concatenate([piece for each in parts for piece in (each, bar)][:-1])


def main(argv: Sequence[str] | None = None) -> int:
    """Draw and write; an error is one line and its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--restorer", default="edge-m-256")
    parser.add_argument("--first-stage", help="run of its training without the sharp stage")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/faces.jpg"))
    args = parser.parse_args(argv)
    restorers = [name for name in (args.first_stage, args.restorer) if name]
    return script_border(lambda: write_image(args.output, draw(restorers)))


if __name__ == "__main__":
    sys.exit(main())
