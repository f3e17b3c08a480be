"""`ufr-edge eval`: restorers side by side on degraded or given faces."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from ufr_edge.cli.options import FOLDER, echo_skipped, licence_option, stack, tell_licences
from ufr_edge.cli.tables import print_table

if TYPE_CHECKING:
    from ufr_edge.adaptation.eval_run import EvalReport

_COUNTS = ("faces", "landmark_none")

_what = stack(
    click.option("-i", "--input", "faces", type=FOLDER, help="Aligned faces to measure, as they are."),
    click.option("--truth", type=FOLDER, help="Clean faces, of the same names where -i is given."),
    click.option(
        "--degrade",
        multiple=True,
        metavar="PRESET",
        help="Degrade the clean faces so instead of -i; repeatable.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="Face i is degraded with seed + i.",
    ),
    click.option(
        "--restorer", "restorers", multiple=True, help="Name, run folder or checkpoint; repeatable."
    ),
    click.option("--prior", help="Prior for the distances on its own features, such as prior-256."),
    click.option("--side", type=int, help="Side of the faces. [default: the restorer's own, or 256]"),
)
_how = stack(
    click.option(
        "--border",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="Pixels cut off for PSNR, SSIM.",
    ),
    click.option(
        "--colour", type=click.Choice(["rgb", "y"]), default="rgb", show_default=True, help="For PSNR, SSIM."
    ),
    click.option(
        "--match-mean-std", is_flag=True, help="Match each channel to the truth first; not comparable."
    ),
    click.option(
        "--lpips",
        type=click.Choice(["alex", "vgg"]),
        default="alex",
        show_default=True,
        help="Backbone of LPIPS.",
    ),
    click.option("--lpips-backbone", type=FOLDER, help="Its ImageNet weights, if not in torch hub's cache."),
    click.option("--fid-backbone", type=FOLDER, help="FID's Inception weights, if not in torch hub's cache."),
    click.option(
        "--download", is_flag=True, help="Fetch the weights of LPIPS and FID where they are missing."
    ),
    click.option(
        "--landmarks/--no-landmarks", default=True, show_default=True, help="Measure landmark distance."
    ),
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda:0."),
)
_out = stack(
    click.option("-o", "--output", "report", type=FOLDER, help="Write the report as JSON."),
    click.option("--per-image", type=FOLDER, help="Write the figures of every face as CSV."),
    click.option("--sheet", type=FOLDER, help="Write up to 64 faces side by side, one picture per preset."),
    click.option(
        "--by-source", is_flag=True, help="Show means by source too (file name up to the last underscore)."
    ),
    click.option("--json", "as_json", is_flag=True, help="Print the report as JSON."),
    click.option("--overwrite", is_flag=True, help="Replace files of an earlier call."),
    click.option("--no-progress", is_flag=True, help="Draw no progress bar."),
)


@click.command("eval")
@_what
@_how
@licence_option
@_out
def command(
    by_source: bool, as_json: bool, overwrite: bool, no_progress: bool, accept_licence: bool, **given: Any
) -> None:
    """Measure restorers side by side: faces of -i, or clean faces degraded on the fly.

    LPIPS and FID are measured when their published weights are here; the report says so when not. Distances on the
    prior's features carry their own names, as does the share of faces whose nearest truth is their own. Colour cast,
    grid and energy on flat areas stand beside those of the clean faces.
    """
    from ufr_edge.adaptation.eval_run import EvalConfig, EvalOutputs, evaluate
    from ufr_edge.metrics.quality import QualitySettings

    outputs = EvalOutputs(**{name: given.pop(name) for name in ("report", "per_image", "sheet")})
    quality = QualitySettings(**{name: given.pop(name) for name in ("border", "colour", "match_mean_std")})
    config = EvalConfig(quality=quality, **given)
    tell_licences(config.restorers, accept=accept_licence, priors=filter(None, [config.prior]))
    report = evaluate(config, outputs, overwrite=overwrite, show=not (no_progress or as_json))
    echo_skipped(report.skipped)
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=2))
    else:
        _print(report, by_source=by_source)


def _print(report: EvalReport, *, by_source: bool) -> None:
    for preset, columns in report.figures.items():
        print_table(f"{preset}, {report.settings['faces']} faces", *_lines(columns))
    for preset, sources in report.by_source.items() if by_source else ():
        groups = {
            f"{source} {label}": found
            for source, columns in sources.items()
            for label, found in columns.items()
        }
        print_table(f"{preset}, by source", *_transposed(*_lines(groups)))
    for name, value in report.settings.items():
        if value not in (None, [], {}):
            click.echo(f"{name}: {_words(value)}")
    for name, reason in report.not_measured.items():
        click.echo(f"not measured: {name}: {reason}")


def _lines(columns: Mapping[str, Mapping[str, float]]) -> tuple[list[str], list[list[str]]]:
    from ufr_edge.adaptation.report import figures_table

    head, rows = figures_table(columns)
    return head, [[c.removesuffix(".00") for c in row] if row[0] in _COUNTS else row for row in rows]


def _transposed(head: list[str], rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """One line per column: sources are more than figures."""
    turned = [list(line) for line in zip(head, *rows, strict=True)]
    return turned[0], turned[1:]


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_words(part)}" for name, part in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return {True: "on", False: "off"}.get(value, str(value)) if isinstance(value, bool) else str(value)
