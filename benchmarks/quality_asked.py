"""The table "What was asked, and what is" at the top of docs/quality.md, from what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from adaptation import GAPS, RESULT, WANTED_CLASSIC, WANTED_GAP, as_asked, spreads
from dial_curve import asked as dial_asked
from loop_claims import rows as loop_rows
from measured import earlier
from target_ways import rows as ways_rows

from ufr_edge.adaptation.prior_pages import DETAIL_WITHIN, LOWEST_PSNR_CHANGE, kept
from ufr_edge.files import read_json
from ufr_edge.weights import list_weights

UNSEEN = "raw-iso3000-x4"
BUDGET_MB = 40
CHEAPER = 3  # times fewer calls of the prior than the paper's chain
GAINS = MappingProxyType({"classic-light": 2.5, "classic-heavy": 1.5})
"""dB of PSNR that a restorer should gain over its degraded input."""
FLAT = MappingProxyType({"colour_cast_common": 1.0, "grid_levels": 0.5, "flat_energy_ratio": 1.2})
"""Ours, for "no colour cast, grid or ringing": about the least of a cast that is seen, levels, share of the truth's."""


def asked(
    results: Mapping[str, Mapping[str, Any]],
    adapted: Sequence[Path] = (),
    *,
    costs: Sequence[Path] = (),
    pairs: Sequence[Path] = (),
    loop: Mapping[str, Any] | None = None,
    ways: Mapping[str, Any] | None = None,
) -> list[list[str]]:
    """The numbers the weights, and adapting them, were to reach, beside those measured.

    adapted, costs: folders as adaptation.py wrote them, the latter of the same adaptation by more and by fewer calls of
    the prior; pairs: the same with and without extra pairs of the estimated camera. loop, ways: as loop_claims.py and
    target_ways.py wrote them.
    """
    size = sum(model.size for model in list_weights()) / 1e6
    return [
        *_restorers(results.get("classic", {}).get("figures", {})),
        *_sharper(results.get("first-stage", {}).get("figures", {})),
        *(
            row
            for result in results.values()
            if result.get("kind") == "prior-report"
            for row in _prior(result)
        ),
        [f"all shipped weights together at most {BUDGET_MB} MB", f"{size:.1f} MB", kept(size <= BUDGET_MB)],
        *(row for folder in adapted for row in _adapted(read_json(folder / RESULT))),
        *_cheaper([read_json(folder / RESULT) for folder in costs]),
        *_extra_pairs([read_json(folder / RESULT) for folder in pairs]),
        *(dial_asked(results["dial"]) if "dial" in results else ()),
        *(ways_rows(ways) if ways else ()),
        *(loop_rows(loop) if loop else ()),
    ]


def _restorers(figures: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Iterator[list[str]]:
    for preset, wanted in GAINS.items():
        columns = figures.get(preset, {})
        for name in sorted(columns.keys() - {"input"}):
            gain = columns[name]["psnr_db"] - columns["input"]["psnr_db"]
            said = f"{name}, {preset}: at least {wanted:+.1f} dB over the input"
            yield [said, f"{gain:+.2f} dB", kept(gain >= wanted)]
    for name in sorted({name for columns in figures.values() for name in columns} - {"input"}):
        yield from _flat(name, [columns[name] for columns in figures.values() if name in columns])


def _flat(name: str, measured: Sequence[Mapping[str, float]]) -> Iterator[list[str]]:
    """The worst of all presets."""
    if not all(key in values for values in measured for key in FLAT):  # measured by an earlier release
        return
    worst = [max(values[key] for values in measured) for key in FLAT]
    said = f"{name}, on flat areas of the same: no colour cast (CIELAB units that all faces share), no grid (levels), no "
    said += "ringing (share of the truth's fine energy); limits are ours: " + ", ".join(
        f"{v:g}" for v in FLAT.values()
    )
    good = all(value <= limit for value, limit in zip(worst, FLAT.values(), strict=True))
    yield [said, ", ".join(f"{value:.2f}" for value in worst), kept(good)]


def _sharper(figures: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Iterator[list[str]]:
    for preset, columns in figures.items():
        shipped = {model.name for model in list_weights()}
        own, first = sorted(columns.keys() - {"input"}, key=lambda name: name not in shipped)
        now, before = columns[own], columns[first]
        said = f"{own}, {preset}: sharper than {first}, its training without perceptual and adversarial terms (detail; feature "
        said += "distance; Fréchet)"
        keys = ("hf_energy_ratio", "prior_feature_distance", "prior_frechet_distance")
        good = now[keys[0]] > before[keys[0]] and all(now[key] < before[key] for key in keys[1:])
        yield [said, "; ".join(f"{before[key]:.3g} → {now[key]:.3g}" for key in keys), kept(good)]


def _prior(report: Mapping[str, Any]) -> Iterator[list[str]]:
    nearest = report["figures"].get("identity", {}).get("own_is_nearest")
    if nearest is not None:
        said = f"{report['config']['prior']}: a clean face stays the same person over one pass of the paper's sampler (nearest "
        yield [
            said + "of all by the prior's features; limit ours: 95 %)",
            f"{nearest:.0%}",
            kept(nearest >= 0.95),
        ]
    for sampler, values in report["figures"].get("targets", {}).items():
        name = f"{report['config']['prior']}, {sampler} sampler"
        change, detail = values["psnr_change_db"], values["detail_ratio"]
        said = f"{name}: targets of {UNSEEN} at most {-LOWEST_PSNR_CHANGE:g} dB below the restorer's output"
        yield [said, f"{change:+.2f} dB", kept(change >= LOWEST_PSNR_CHANGE)]
        said = f"{name}: their fine detail within {100 * DETAIL_WITHIN:.0f} % of the clean faces'"
        yield [said, f"{100 * (detail - 1):+.0f} %", kept(abs(detail - 1) <= DETAIL_WITHIN)]


def _adapted(result: Mapping[str, Any]) -> Iterator[list[str]]:
    for row in result["summary"]:
        features, frechet, psnr, classic = spreads(row)
        said = f"{result['restorer']} adapted to {row['camera']} ({len(row['seeds'])} seeds): at least {WANTED_GAP:.0%} of "
        said += f"the gap to true pairs (features; Fréchet), PSNR no lower, at most {-WANTED_CLASSIC:g} dB lost before it"
        said += _age(result)
        yield [said, f"{features}; {frechet}; {psnr} dB; {classic} dB", kept(as_asked(row))]


def _age(*results: Mapping[str, Any]) -> str:
    """Words where any of them was measured with other weights than those shipped now."""
    old = any(earlier(result.get("weights", {})) for result in results)
    return " (measured with earlier weights)" if old else ""


def _cheaper(results: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    """The dearest of some runs of one camera and seed against the best of those of at most a third of its calls."""
    cells = sorted((result["cells"][0] for result in results), key=lambda cell: float(cell["calls_per_target"]))
    if not cells:
        return
    dear = cells[-1]
    most = int(dear["calls_per_target"])
    cheap = [cell for cell in cells if cell["calls_per_target"] <= most / CHEAPER]
    if not cheap:
        return
    best = min(cheap, key=lambda cell: float(cell["figures"]["adapted"][GAPS[0]]))
    said = f"a third of the paper's {most} calls a target at most, for the same final quality (features; Fréchet; PSNR; of "
    said += f"{dear['camera']}, seed {dear['seed']})" + _age(*results)
    told = [_final(cell) for cell in (best, dear)]
    good = all(ours <= theirs for ours, theirs in zip(*(values for values, _ in told), strict=True))
    yield [said, f"{best['calls_per_target']} calls: {told[0][1]}, against {told[1][1]}", kept(good)]


def _extra_pairs(results: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    """For each number of faces: what an adaptation with extra pairs gives beside the same without."""
    by_faces: dict[int, dict[float, Mapping[str, Any]]] = {}
    for result in results:
        by_faces.setdefault(result["cells"][0]["faces"], {})[result.get("camera_pairs", 0.0)] = result
    for faces, shares in sorted(by_faces.items()):
        if len(shares) < 2 or 0.0 not in shares:
            continue
        without, with_ = shares[0.0], shares[max(shares)]
        plain, extra = (_final(result["cells"][0]) for result in (without, with_))
        said = f"extra pairs of the estimated camera, at {faces} faces: do they help (features; Fréchet; PSNR; of "
        said += f"{with_['cells'][0]['camera']}, seed {with_['cells'][0]['seed']})?" + _age(without, with_)
        better = sum(ours < theirs for ours, theirs in zip(extra[0], plain[0], strict=True))
        verdict = {0: "no", len(plain[0]): "yes"}.get(better, "in part")
        yield [said, f"with {extra[1]}, without {plain[1]}", verdict]


def _final(cell: Mapping[str, Any]) -> tuple[list[float], str]:
    """Figures of what came out, the lower the better, and in words."""
    found = cell["figures"]["adapted"]
    distances = [float(found[name]) for name in GAPS if name in found]
    psnr = float(found["psnr_db"])
    return [*distances, -psnr], "; ".join([*(f"{value:.3g}" for value in distances), f"{psnr:.2f} dB"])
