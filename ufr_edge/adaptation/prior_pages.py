"""The pages of a prior report: index.html and the curve beside it, from the record alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ufr_edge.adaptation.report import Section, write_report
from ufr_edge.files import atomic_file
from ufr_edge.weights.cards import command_block, markdown_table

LOWEST_PSNR_CHANGE = -0.3
"""dB: a target may lie so far below the restorer's output."""

DETAIL_WITHIN = 0.2
"""Share by which a target's fine detail may differ from that of clean faces."""

FRECHET_FACES = 64
"""Faces a set below which a Fréchet distance tells nothing: with 16, clean faces lie further apart than resampled ones."""

VARIANCES = (
    "The same targets from the same noise under each variance of the sampler's steps: the posterior's, beta, and learned "
    "where the prior predicts its own (ours do not):"
)

Row = Sequence[str]


def write_pages(out: Path, record: Mapping[str, Any]) -> None:
    """Write epsilon.png and index.html into `out`. Pictures are linked: they lie beside the page."""
    figures = record["figures"]
    draw_epsilon(out / "epsilon.png", figures["epsilon"])
    sections = [_epsilon(figures["epsilon"]), _identity(figures["identity"])]
    if "targets" in figures:
        sections += _targets(figures["targets"], record["config"])
    if "variances" in figures:
        head, rows = target_table(figures["variances"])
        sections.append(Section(title="The sampler's variance", text=VARIANCES, head=head, rows=rows))
    sections += _samples(figures["frechet"])
    lead = f"{record['parameters']:,} parameters, {record['faces']} held-out faces. Made by: {record['command']}"
    write_report(out / "index.html", title=f"Report on {record['config']['prior']}", lead=lead, sections=sections)


def prior_markdown(record: Mapping[str, Any]) -> str:
    """All tables of a report as Markdown under the command that made it, for cards and docs."""
    figures, config = record["figures"], record["config"]
    calls = f" in {config['fast_steps']} calls of the prior" if config.get("fast_steps") else ""
    once = (
        f"Clean faces passed once through the paper's sampler (start 150 of 250, hold to 90, N = 8 at 512 px){calls}; "
        "distances on the prior's own features of the inner face, no face recogniser was asked:"
    )
    parts = [
        command_block(record["command"]),
        f"{record['faces']} held-out faces. Mean squared error of the noise estimate by noise level:",
        markdown_table(*epsilon_table(figures["epsilon"])),
        once,
        markdown_table(*identity_table(figures["identity"])),
    ]
    if "targets" in figures:
        made = f"{config['restorer']} on {config['degrade']}"
        said = f"The output of {made}, passed through the sampler{calls} (detail: share of that of the clean faces):"
        parts += [said, markdown_table(*target_table(figures["targets"]))]
    if "variances" in figures:
        parts += [VARIANCES, markdown_table(*target_table(figures["variances"]))]
    head, rows = frechet_table(figures["frechet"])
    parts += [frechet_note(figures["frechet"]), *([markdown_table(head, rows)] if rows else [])]
    return "\n\n".join(parts)


def draw_epsilon(path: Path, figures: Mapping[str, Mapping[str, float]]) -> None:
    """Draw the epsilon loss over the base timestep, both axes logarithmic, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    levels = sorted(map(int, figures))  # JSON sorts them as text
    lines = (("linear", "linear filter alone", "#999999"), ("prior", "prior", "#1f5fa8"))
    for key, label, colour in lines:
        axes.plot(levels, [figures[str(t)][key] for t in levels], "o-", color=colour, label=label)
    axes.set(xscale="log", yscale="log", xlabel="base timestep (of 1000)", ylabel="mean squared error of the noise")
    axes.set_xticks(levels, [str(t) for t in levels])
    axes.minorticks_off()
    axes.legend(frameon=False)
    with atomic_file(path) as beside:
        figure.savefig(beside, dpi=110)


def epsilon_table(figures: Mapping[str, Mapping[str, float]]) -> tuple[list[str], list[list[str]]]:
    """Return (head, rows): loss of the linear filter, of the prior, and what share of it is left."""
    rows = [
        [t, f"{v['linear']:.5f}", f"{v['prior']:.5f}", f"{100 * v['prior'] / v['linear']:.0f} %"]
        for t, v in sorted(figures.items(), key=lambda item: int(item[0]))
    ]
    return ["timestep", "linear filter", "prior", "left"], rows


def identity_table(figures: Mapping[str, float]) -> tuple[list[str], list[list[str]]]:
    """Return (head, rows) of the figures of a face passed once through the sampler."""
    rows = [
        [f"nearest of all {figures['faces']:.0f} originals is its own", f"{100 * figures['own_is_nearest']:.0f} %"],
        ["distance to its own original", f"{figures['own_distance']:.3f}"],
        ["distance to the nearest other", f"{figures['nearest_other_distance']:.3f}"],
        ["faces detected before and after", f"{figures['faces_detected']:.0f} of {figures['faces']:.0f}"],
    ]
    if "landmarks_px" in figures:
        moved = f"{figures['landmarks_px']:.1f} px (95 %: {figures['landmarks_px_p95']:.1f} px)"
        rows.append(["landmarks moved, at 512 px", moved])
    return ["", "value"], rows


def target_table(figures: Mapping[str, Mapping[str, float]]) -> tuple[list[str], list[list[str]]]:
    """Return (head, rows), one row per sampler, with what is held to the limits."""
    rows = [
        [
            name,
            f"{v['restored_psnr_db']:.2f}",
            f"{v['psnr_db']:.2f}",
            f"{v['psnr_change_db']:+.2f}",
            kept(v["psnr_change_db"] >= LOWEST_PSNR_CHANGE),
            f"{v['restored_detail_ratio']:.2f}",
            f"{v['detail_ratio']:.2f}",
            kept(abs(v["detail_ratio"] - 1) <= DETAIL_WITHIN),
        ]
        for name, v in figures.items()
    ]
    head = ["sampler", "PSNR restored", "PSNR target", "change dB", f"{LOWEST_PSNR_CHANGE:g} dB or more"]
    return [*head, "detail restored", "detail target", f"1 ± {DETAIL_WITHIN:g}"], rows


def prior_limits(record: Mapping[str, Any]) -> list[str]:
    """What the figures of a report say against a prior: samplers whose targets miss a limit, few faces."""
    limits = []
    for name, v in record["figures"].get("targets", {}).items():
        made = f"drawn with the {name} sampler from {record['config']['restorer']} on {record['config']['degrade']}"
        if abs(v["detail_ratio"] - 1) > DETAIL_WITHIN:
            limits.append(f"Targets {made} have {100 * v['detail_ratio']:.0f} % of the clean faces' fine detail.")
        if v["psnr_change_db"] < LOWEST_PSNR_CHANGE:
            limits.append(f"Targets {made} lie {-v['psnr_change_db']:.2f} dB below the restorer's output.")
    if record["faces"] < FRECHET_FACES:
        limits.append(f"The figures are of {record['faces']} faces: too few for tails, or for people unlike these.")
    return limits


def frechet_table(figures: Mapping[str, float]) -> tuple[list[str], list[list[str]]]:
    """Return (head, rows) of the Fréchet distances; no rows with fewer than FRECHET_FACES faces a set."""
    named = (("unconditional samples", "samples"), ("resampled faces", "resampled"), ("clean faces (the floor)", "floor"))
    enough = figures["count"] >= FRECHET_FACES
    rows = [[label, f"{figures[key]:.4f}"] for label, key in named if enough and key in figures]
    return ["against as many other held-out faces", "Fréchet distance"], rows


def frechet_note(figures: Mapping[str, float]) -> str:
    """Say what the Fréchet distances are on, or why there are none."""
    if figures["count"] >= FRECHET_FACES:
        return (
            f"Fréchet distances on the prior's own pooled features, {figures['count']:.0f} faces a set: no FID, and "
            "comparable at this count and on this prior's features only."
        )
    return (
        f"No Fréchet distances: they need {FRECHET_FACES} faces a set and as many others (--count), "
        f"here there were {figures['count']:.0f}."
    )


def kept(holds: bool) -> str:
    """Say whether a limit holds."""
    return "holds" if holds else "missed"


def _epsilon(figures: Mapping[str, Mapping[str, float]]) -> Section:
    head, rows = epsilon_table(figures)
    text = "Mean squared error of the noise estimate on held-out faces, beside Wiener's filter under the spectrum of faces."
    return Section(title="Knowing noise", text=text, head=head, rows=rows, picture="epsilon.png")


def _identity(figures: Mapping[str, float]) -> Section:
    head, rows = identity_table(figures)
    text = (
        "Clean faces passed once through the paper's sampler (start 150 of 250, hold to 90, N = 8 at 512 px). Distances "
        "are on the prior's own features of the inner face; no face recogniser is asked."
    )
    return Section(title="The same person?", text=text, head=head, rows=rows, picture="resampled.jpg")


def _targets(figures: Mapping[str, Mapping[str, float]], config: Mapping[str, Any]) -> list[Section]:
    head, rows = target_table(figures)
    text = (
        f"{config['degrade']} restored by {config['restorer']}, then passed through the sampler. PSNR in RGB, no border crop. "
        "Detail is the energy above a quarter of a cycle per pixel, as a share of the clean faces'."
    )
    title = "Targets for a restorer"
    sheets = [Section(title=f"{title}: {name}", picture=f"targets-{name}.jpg") for name in figures]
    return [Section(title=title, text=text, head=head, rows=rows), *sheets]


def _samples(figures: Mapping[str, float]) -> list[Section]:
    head, rows = frechet_table(figures)
    drawn = "The whole chain from noise; the levels above those it was trained on are extrapolated."
    return [
        Section(title="Unconditional samples", text=drawn, picture="samples.jpg"),
        Section(title="Distances between sets", text=frechet_note(figures), head=head, rows=rows),
    ]
