"""Where the figures of a training run go: the log, TensorBoard where it is installed, and a picture of the curves."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ufr_edge.adaptation.report import curves_png
from ufr_edge.adaptation.training import append_log, read_log, strip_path
from ufr_edge.errors import BackendUnavailableError
from ufr_edge.files import atomic_file
from ufr_edge.optional import require
from ufr_edge.runtime.images import read_image

CURVES = "curves.png"
TENSORBOARD = "tensorboard"
_logger = logging.getLogger("ufr_edge.adaptation")


class Journal:
    """The journal of one sitting. `writes` false (helper processes): nothing is written.

    `step`: steps done so far; what TensorBoard holds beyond it is of a sitting that was cut off, and is hidden.
    """

    def __init__(self, run: Path, *, step: int, writes: bool = True) -> None:
        self.run, self.writes = run, writes
        self.board = _board(run / TENSORBOARD, step) if writes else None

    def close(self) -> None:
        """Write what TensorBoard holds back."""
        if self.board is not None:
            self.board.close()

    def losses(self, step: int, figures: Mapping[str, float]) -> None:
        """Note a step's losses."""
        if self.writes:
            append_log(self.run, {"step": step, **figures})
            self._scalars("train", step, figures)

    def held_out(self, step: int, figures: Mapping[str, float]) -> None:
        """Note held-out figures with the strip that was drawn for them, and draw the curves anew."""
        if not self.writes:
            return
        append_log(self.run, {"step": step, **figures})
        self._scalars("held_out", step, figures)
        picture = strip_path(self.run, step)
        if self.board is not None and picture.is_file():
            self.board.add_image("held_out", read_image(picture), step, dataformats="HWC")
            self.board.flush()
        draw_curves(self.run)

    def _scalars(self, group: str, step: int, figures: Mapping[str, float]) -> None:
        if self.board is not None:
            for name, value in figures.items():
                self.board.add_scalar(f"{group}/{name}", value, step)


def draw_curves(run: Path) -> None:
    """Draw everything in the run's log against the step into `run`/curves.png."""
    log = read_log(run)
    names = list(dict.fromkeys(name for entry in log for name in entry if name not in ("step", "time")))
    if names:
        with atomic_file(run / CURVES) as beside:
            beside.write_bytes(curves_png(log, names))


def _board(folder: Path, step: int) -> Any:
    try:
        require("tensorboard", extra="train")
    except BackendUnavailableError as exc:
        _logger.warning("No TensorBoard log is written, only log.jsonl and curves.png: %s", exc)
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=step + 1)
