"""The tables "asked, measured, met" at the top of docs/engines.md and docs/performance.md, from what was measured."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ufr_edge.files import atomic_file, write_json
from ufr_edge.weights.cards import markdown_table

Json = Mapping[str, Any]
SHIPPED_DROP_DB, SHIPPED_WORST_DB = 0.2, 1.0
EXPORT_S = 120.0


@dataclass(frozen=True)
class Asked:
    """One figure asked for: `measured` None where this run did not take it. least: it must be reached, not kept under."""

    words: str
    limit: float
    measured: float | None
    unit: str = "ms"
    least: bool = False
    strict: bool = False

    def row(self) -> list[str]:
        """As the table's cells."""
        sign = ("≥" if self.least else "≤") if not self.strict else ("<" if not self.least else ">")
        asked = f"{sign} {self.limit:g} {self.unit}"
        if self.measured is None:
            return [self.words, asked, "not measured", "-"]
        near = self.measured == self.limit
        met = (near and not self.strict) or (not near and (self.measured > self.limit) == self.least)
        return [self.words, asked, f"{self.measured:.3g} {self.unit}", "yes" if met else "**no**"]


def asked_section(machine: str, asked: Sequence[Asked]) -> list[str]:
    """The table as Markdown lines."""
    amx = "has AMX" if "amx" in machine.lower() else "has no AMX"
    return [
        "## Asked and measured",
        "",
        f"This machine {amx} ({machine}). Figures in ms were asked for on a quiet CPU with AMX.",
        "",
        markdown_table(["", "asked", "measured", "met"], [item.row() for item in asked]),
        "",
    ]


def engines_asked(records: Sequence[Json]) -> list[Asked]:
    """What was asked of engines. records: as benchmarks/engines.py writes them to engines.json."""
    large, small = _times(records, "edge-l", 512), _times(records, "edge-m", 256)
    base, int8 = large.get("onnx-fp32"), large.get("openvino-int8")
    ours = [record for record in records if not record.get("adapted")]
    adapted = [record for record in records if record.get("adapted")]
    return [
        Asked("edge-l 512, OpenVINO int8", 10, int8),
        Asked(
            "the same, against ONNX Runtime fp32", 9, base / int8 if base and int8 else None, "x", least=True
        ),
        Asked("edge-l 512, OpenVINO bf16", 20, large.get("openvino-bf16")),
        Asked("edge-l 512, ONNX Runtime int8", 50, large.get("onnx-int8")),
        Asked("edge-m 256, OpenVINO int8", 4, small.get("openvino-int8")),
        Asked("int8's mean drop, shipped restorers", SHIPPED_DROP_DB, _most_lost(ours, ""), "dB"),
        Asked("int8's worst image, shipped restorers", SHIPPED_WORST_DB, _most_lost(ours, "worst_"), "dB"),
        Asked("int8's mean drop, an adapted restorer", SHIPPED_DROP_DB, _most_lost(adapted, ""), "dB"),
        Asked(
            "int8's worst image, an adapted restorer", SHIPPED_WORST_DB, _most_lost(adapted, "worst_"), "dB"
        ),
        Asked(
            "longest export", EXPORT_S, max((r["export_s"] for r in records), default=None), "s", strict=True
        ),
    ]


def performance_asked(
    results: Sequence[Json],
    growth_mib: Sequence[float],
    faces: Sequence[Json] = (),
    ratio: float | None = None,
) -> list[Asked]:
    """What was asked of files and streams. results: as in performance.json; growth_mib: of each one's live run.

    faces: the bundles of faces.json; ratio: how many times faster than the networks in PyTorch, from comparison.json.
    The worst is told of 512 px bundles for files and live streams, and of all for the rest.
    """
    large = [item for item in results if _side(item) == 512] or list(results)
    rates = {
        size: _least(item["files"].get(size, {}).get("frames_per_second") for item in large)
        for size in ("720p", "1080p")
    }
    p95 = _greatest(_percentile(item["live"]["ages_ms"], 95) for item in large)
    drops = _greatest(item["live"]["stats"].get("dropped_total") for item in large)
    scenes = [
        (name, scene)
        for item in results
        for name, scene in item["motion"].items()
        if {"with", "without"} <= set(scene)
    ]
    pairs = [scene for _, scene in scenes]
    less, still = _less_flicker(pairs), _less_flicker(scene for name, scene in scenes if name == "still")
    lost = _greatest(s["without"]["psnr_db"] - s["with"]["psnr_db"] for s in pairs)
    further = _greatest(
        item["further_ms"][key] / item["engine_ms"] for item in faces for key in item.get("further_ms", {})
    )
    growth = None if not growth_mib else max(growth_mib) * (1 << 20) / 1e6
    return [
        Asked("720p file at 512", 30, rates["720p"], "frames/s", least=True),
        Asked("1080p file at 512", 15, rates["1080p"], "frames/s", least=True),
        Asked("live 720p30, glass to glass, p95", 100, p95),
        Asked("live 720p30, frames dropped", 0, drops, "frames"),
        Asked("a further face, against the engine's own time", 1.3, further, "x"),
        Asked("memory growth of a live run", 20, growth, "MB", strict=True),
        Asked("faster than the networks in PyTorch", 30, ratio, "x", least=True),
        Asked("less flicker with the stabiliser, still face", 50, still, "%", least=True),
        Asked("the same, worst scene (moving, speaking; not asked)", 50, less, "%", least=True),
        Asked("PSNR lost by it, worst scene", 0.3, lost, "dB"),
    ]


def performance_section(
    machine: str, results: Sequence[Json], growth_mib: Sequence[float], taken: Sequence[Path]
) -> list[str]:
    """The table of docs/performance.md. taken: folders of other benchmarks; faces.json is looked for there."""
    found = [folder / "faces.json" for folder in taken if (folder / "faces.json").is_file()]
    faces = json.loads(found[0].read_text(encoding="utf-8"))["bundles"] if found else ()
    return asked_section(machine, performance_asked(results, growth_mib, faces, _ratio(taken)))


def _ratio(taken: Sequence[Path]) -> float | None:
    """Our slowest bundle at 512 px (else of all) against the fastest network in PyTorch, of comparison.json."""
    found = [folder / "comparison.json" for folder in taken if (folder / "comparison.json").is_file()]
    if not found:
        return None
    record = json.loads(found[0].read_text(encoding="utf-8"))
    ours = [item for item in record["ours"] if item["side"] == 512] or record["ours"]
    slowest = min(rate for item in ours for rate in item["frames_per_second"])
    return float(slowest / max(item["frames_per_second"] for item in record["theirs"]))


def _less_flicker(scenes: Iterable[Json]) -> float | None:
    """The least of all scenes, in percent."""
    return _least(
        100 * (1 - s["with"]["flicker"] / s["without"]["flicker"]) for s in scenes if s["without"]["flicker"]
    )


def _times(records: Sequence[Json], arch: str, side: int) -> dict[str, float]:
    for record in records:
        info = record["manifest"]["restorer"]
        if (info["arch"], info["side"]) == (arch, side) and not record.get("adapted"):
            return {report["name"]: report["p50_ms"] for report in record["reports"] if report["batch"] == 1}
    return {}


def _most_lost(records: Sequence[Json], which: str) -> float | None:
    engines = [e for record in records for e in record["manifest"]["engines"] if e["precision"] == "int8"]
    return _greatest(e["quality"].get(f"reference_{which}drop_db") for e in engines)


def _side(item: Json) -> int | None:
    sides = [report["engine"].get("side") for report in item["files"].values() if "engine" in report]
    return sides[0] if sides else None


def _percentile(values: Sequence[float], share: int) -> float | None:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * share // 100)] if ordered else None


def _least(values: Any) -> float | None:
    return min((value for value in values if value is not None), default=None)


def _greatest(values: Any) -> float | None:
    return max((value for value in values if value is not None), default=None)


def write_found(folder: Path, name: str, found: Json, text: str) -> None:
    """Write what a benchmark found as `name`, and its Markdown as section.md. Raises OutputError."""
    write_json(folder / name, found)
    with atomic_file(folder / "section.md") as beside:
        beside.write_text(text, encoding="utf-8")
    print(f"written: {folder / 'section.md'}")
