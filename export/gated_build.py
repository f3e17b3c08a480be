"""Building one engine until it passes the gate: measured, and with its worst layers put back where needed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ufr_edge.calibration.accuracy_control import METHOD, AccuracyControl, float_layers
from ufr_edge.calibration.gate import GateConfig, over_limits
from ufr_edge.calibration.sensitivity import LayerCost, measure_layers, retreat_counts
from ufr_edge.errors import GateFailedError
from ufr_edge.export.engine_build import Measured, ParitySet, build_engine_files, measure_engine
from ufr_edge.export.requests import EngineRequest
from ufr_edge.export.sources import OnnxSources
from ufr_edge.export.tensorrt_export import Building
from ufr_edge.optional import require

_NAMED = 5
Retreat = Literal["measured", "nncf"]


@dataclass(frozen=True, kw_only=True)
class GatedEngine:
    """A built engine, what it was measured at, and what it took.

    kept: convolution node names of the layers left in higher precision; labels: their names in the network.
    costs: what each layer costs alone, when that had to be measured. builds: how often it was built.
    by: who chose the layers kept, "" = build_gated by those costs.
    """

    files: tuple[str, ...]
    measured: Measured
    kept: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    costs: tuple[LayerCost, ...] = ()
    builds: int = 1
    seconds: float = 0.0
    by: str = ""

    def record(self) -> dict[str, Any]:
        """A value for json.dumps: the drop, the layers kept, each layer's cost, builds and seconds."""
        return {
            "drop": None if self.measured.drop is None else self.measured.drop.to_json(),
            "measured_on": self.measured.measured_on,
            "kept_layers": list(self.labels),
            **({"kept_by": self.by} if self.by else {}),
            "layer_mse": {cost.label: cost.mse for cost in self.costs},
            "builds": self.builds,
            "seconds": round(self.seconds, 1),
        }


@dataclass(frozen=True, kw_only=True)
class GateRun:
    """What building an engine under the gate needs. config: None = measure, refuse nothing.

    retreat: who puts layers back, we by what each was measured to cost, or NNCF's accuracy control (OpenVINO only).
    building: how TensorRT builds; its progress goes to `note`.
    """

    folder: Path
    sources: OnnxSources
    parity: ParitySet
    config: GateConfig | None
    retreat: Retreat = "measured"
    building: Building = field(default_factory=Building)
    note: Callable[[str], None] = lambda text: None
    clock: Callable[[], float] = time.monotonic


def build_gated(request: EngineRequest, run: GateRun) -> GatedEngine:
    """Build an engine and measure the file. Over the limits, put an int8 engine's worst layers back to float, as
    measured one by one, and build again, until it passes or the gate's time is over.

    Raises GateFailedError saying by how much it misses and which layers are worst; and as build_engine_files.
    """
    started = run.clock()
    built = _build(request, run, ())
    if run.config is not None and _excess(built, run.config):
        if request.precision != "int8":
            raise _refusal(request, built, run, ended="")
        if run.retreat == "nncf" and request.format == "openvino":
            built = _controlled(request, run, run.config, started)
        else:
            built = _retreat(request, built, run, run.config, started)
    return replace(built, seconds=run.clock() - started)


def _retreat(
    request: EngineRequest, first: GatedEngine, run: GateRun, config: GateConfig, started: float
) -> GatedEngine:
    layers, until = run.sources.layers(request.format), started + config.time_s
    run.note("measuring its layers")
    gate = run.parity.gate
    # Half of the time at most: what is found out must still be built.
    costs = measure_layers(
        layers, gate.faces, gate.expected, time_s=(until - run.clock()) / 2, clock=run.clock
    )
    worst = first.measured.drop
    counts = retreat_counts(
        costs,
        drop_db=worst.mean_db if worst is not None else 0.0,
        limit_db=config.max_drop_db,
        most=int(config.max_kept * len(layers.names)),
    )
    built = replace(first, costs=costs)
    for builds, count in enumerate(counts, start=2):
        if run.clock() >= until:
            raise _refusal(request, built, run, ended=f" The time of {config.time_s:g} s is over.")
        kept = tuple(cost.name for cost in costs[:count])
        run.note(f"{count} of {len(layers.names)} layers in float")
        labels = tuple(cost.label for cost in costs[:count])
        built = replace(_build(request, run, kept), costs=costs, builds=builds, labels=labels)
        if not _excess(built, config):
            return built
    raise _refusal(request, built, run, ended="")


def _controlled(request: EngineRequest, run: GateRun, config: GateConfig, started: float) -> GatedEngine:
    run.note("NNCF's accuracy control")
    layers = run.sources.layers(request.format)
    control = AccuracyControl(
        gate=run.parity.gate,
        max_drop_db=config.max_drop_db,
        time_s=started + config.time_s - run.clock(),
        most=int(config.max_kept * len(layers.names)),
        clock=run.clock,
    )
    files = build_engine_files(request, run.folder, sources=run.sources, control=control)
    model = require("openvino", extra="openvino").Core().read_model(run.folder / files[0])
    kept = float_layers(model, layers.names)
    built = GatedEngine(
        files=files,
        measured=measure_engine(run.folder, files, request, run.parity),
        kept=kept,
        labels=tuple(layers.label(name) for name in kept),
        builds=2,
        by=METHOD,
    )
    if _excess(built, config):
        raise _refusal(request, built, run, ended=" NNCF's accuracy control found nothing better.")
    return built


def _build(request: EngineRequest, run: GateRun, kept: Sequence[str]) -> GatedEngine:
    building = replace(run.building, note=run.note)
    files = build_engine_files(request, run.folder, sources=run.sources, kept=kept, building=building)
    measured = measure_engine(run.folder, files, request, run.parity)
    half = request.precision == "fp16" and request.format != "openvino"
    labels = run.sources.kept_in_fp32().words if half else ()
    return GatedEngine(files=files, measured=measured, kept=tuple(kept), labels=labels)


def _excess(built: GatedEngine, config: GateConfig) -> tuple[str, ...]:
    return () if built.measured.drop is None else over_limits(built.measured.drop, config)


def _refusal(request: EngineRequest, built: GatedEngine, run: GateRun, *, ended: str) -> GateFailedError:
    reasons = "; ".join(_excess(built, run.config or GateConfig()))
    tried = ""
    if built.kept:
        tried = f", with {len(built.kept)} of {len(run.sources.layers(request.format).names)} layers in float"
    worst = ", ".join(f"{cost.label} ({cost.mse:.2g})" for cost in built.costs[:_NAMED])
    layers = f" Worst layers (squared error each adds): {worst}." if worst else ""
    advice = (
        "Give more faces of the camera to --calibration, another precision, a higher --max-drop or more --gate-time."
        if request.precision == "int8"
        else "Give another precision, or a higher --max-drop."
    )
    return GateFailedError(
        f"{request.name} fails the gate on {run.parity.gate.origin}{tried}: {reasons}.{ended}{layers} {advice}"
    )
