"""One self-contained HTML report: text, tables, pictures and curves."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np
from numpy.typing import NDArray

from ufr_edge import __version__
from ufr_edge.files import atomic_file


@dataclass(frozen=True, kw_only=True)
class Section:
    """One part of a report; `picture` is a data URI."""

    title: str
    text: str = ""
    head: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    picture: str = ""


def write_report(path: Path, *, title: str, lead: str, sections: Sequence[Section]) -> None:
    """Write the report as one HTML file, pictures inside."""
    environment = jinja2.Environment(loader=jinja2.PackageLoader("ufr_edge", "adaptation"), autoescape=True)
    template = environment.get_template("report.html.j2")
    text = template.render(title=title, lead=lead, sections=sections, footer=f"ufr-edge {__version__}")
    with atomic_file(path) as beside:
        beside.write_text(text, encoding="utf-8")


def picture_uri(image: NDArray[np.uint8], *, quality: int = 90) -> str:
    """Return uint8 (H, W, 3) RGB as a JPEG data URI."""
    _, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


def curve_uri(log: Sequence[Mapping[str, Any]], keys: Sequence[str], *, width: int = 25) -> str:
    """Draw logged values against the step (smoothed over `width` entries) as a PNG data URI."""
    return "data:image/png;base64," + base64.b64encode(curves_png(log, keys, width=width)).decode()


def curves_png(
    log: Sequence[Mapping[str, Any]], keys: Sequence[str], *, width: int = 25, columns: int = 5
) -> bytes:
    """Draw logged values against the step (smoothed over `width` entries), `columns` beside each other, as PNG."""
    from matplotlib.figure import Figure

    present = [key for key in keys if any(key in entry for entry in log)]
    across, down = min(columns, max(1, len(present))), max(1, -(-len(present) // columns))
    figure = Figure(figsize=(4 * across, 2.8 * down), layout="constrained")
    for i, key in enumerate(present):
        points = np.array([(e["step"], e[key]) for e in log if key in e], dtype=np.float64)
        axes = figure.add_subplot(down, across, i + 1)
        axes.plot(points[:, 0], points[:, 1], color="#bbbbbb", linewidth=0.8)
        axes.plot(points[:, 0], _smooth(points[:, 1], width), color="#1f5fa8")
        axes.set_title(key)
        axes.set_xlabel("step")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def figures_table(columns: Mapping[str, Mapping[str, float]]) -> tuple[list[str], list[list[str]]]:
    """Lay measured figures out: one row per figure, one column per restorer. Returns (head, rows)."""
    names = list(dict.fromkeys(name for figures in columns.values() for name in figures))
    rows = [[name, *(_cell(figures.get(name)) for figures in columns.values())] for name in names]
    return ["", *columns], rows


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}" if abs(value) < 10 else f"{value:.2f}"


def _smooth(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    width = max(1, min(width, len(values)))
    padded = np.pad(values, (width // 2, width - 1 - width // 2), mode="edge")
    return np.convolve(padded, np.ones(width) / width, mode="valid")
