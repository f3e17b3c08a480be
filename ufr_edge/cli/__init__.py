"""The command line: one file per command; each parses, calls one library function, prints.

Kept light on purpose: `ufr-edge --help` imports click and this package only. A command is imported when it
is called, from `ufr_edge.cli.<name>`, where it is found as `command`.
"""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass
from typing import Any

import click

from ufr_edge import __version__
from ufr_edge.cli.border import error_border, explain, quiet_warnings, set_log_level
from ufr_edge.errors import BackendUnavailableError

__all__ = ["COMMANDS", "CommandInfo", "main"]


@dataclass(frozen=True)
class CommandInfo:
    """One line of `ufr-edge --help`, and the extra (of `pip install "ufr-edge[EXTRA]"`) the command needs.

    goes_on: the same command, after Ctrl-C, goes on where it stopped. memory: what makes it take less of a GPU's.
    """

    help: str
    extra: str | None = None
    goes_on: bool = False
    memory: str | None = None


_TRAINS = "Raise --accumulate (each batch in more parts), or lower --batch."
_SAMPLES = "Lower --batch (faces at once)."


COMMANDS: dict[str, CommandInfo] = {
    "adapt": CommandInfo(
        "Adapt a restorer to a folder of your bad faces: targets, finetune, report.",
        "train",
        goes_on=True,
        memory=f"While targets are drawn: lower targets.batch (in a file for --config). In training: {_TRAINS}",
    ),
    "bench": CommandInfo("Measure what each engine of a bundle costs on this machine."),
    "bundle": CommandInfo("Look into bundles, check, rebuild, pack, install and roll them back."),
    "collect": CommandInfo("Gather aligned face crops from images, videos or a camera."),
    "degrade": CommandInfo("Make clean pictures bad with a named, seeded preset."),
    "demo": CommandInfo("The whole path on a synthetic camera: adapt, export, restore a clip.", "all"),
    "demo-onsite": CommandInfo("The loop on site, played: a camera changes, the stream adapts and swaps by itself.", "all"),
    "deploy": CommandInfo("Install a bundle's archive on a box, as a new version that its stream takes over."),
    "doctor": CommandInfo("Say what is installed, what works, and how to mend what does not."),
    "eval": CommandInfo("Measure faces, or a restorer on them, against their clean versions.", "train"),
    "export": CommandInfo("Turn a trained restorer into a bundle of device engines.", "export"),
    "faces": CommandInfo("Look into a folder of collected faces, measure its camera, and remove them."),
    "finetune": CommandInfo(
        "Train a restorer on pairs of bad faces and targets.", "train", goes_on=True, memory=_TRAINS
    ),
    "models": CommandInfo("List shipped weights and known checkpoints, fetch them, show their cards."),
    "pack-faces": CommandInfo("Write recorded faces as one file, to adapt on another machine."),
    "pretrain": CommandInfo(
        "Train a restorer or a diffusion prior on clean faces.", "train", goes_on=True, memory=_TRAINS
    ),
    "prior-report": CommandInfo(
        "Report on a diffusion prior: figures and sheets on held-out faces.", "train", goes_on=True, memory=_SAMPLES
    ),
    "readapt": CommandInfo(
        "Adapt a bundle again to its camera's own faces; install it where it is better.", "all", goes_on=True
    ),
    "readapt-all": CommandInfo(
        "Adapt the bundles of many cameras again: here, by accelerate or on Ray.", "all", goes_on=True
    ),
    "registry": CommandInfo("List, show and compare all adapted models, with where each comes from."),
    "run": CommandInfo("Restore the faces in an image, a folder, a video or a camera."),
    "stream": CommandInfo("Restore the faces of a live stream: camera, network, file; into any sink."),
    "targets": CommandInfo(
        "Draw training targets for bad faces with the diffusion prior.", "train", goes_on=True, memory=_SAMPLES
    ),
    "verify": CommandInfo("Check a bundle: every checksum, and each engine against its ONNX."),
    "watch": CommandInfo("A stream that notices when its camera changes, adapts again and swaps its engine."),
}


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports one only when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order of the help page."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import `ufr_edge.cli.<cmd_name>` and return its `command`; None when there is no such command."""
        return _load(cmd_name) if cmd_name in COMMANDS else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; an unknown one is a usage error that names the closest."""
        close = difflib.get_close_matches(args[0], COMMANDS, n=1)
        if args[0] not in COMMANDS and close and not ctx.resilient_parsing:
            ctx.fail(f"No such command {args[0]!r}. Did you mean {close[0]!r}?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name].help) for name in self.list_commands(ctx)])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command inside the one border that turns errors into a line and an exit code."""
        debug = bool(ctx.params.get("debug"))
        with error_border(
            debug=debug,
            extra=lambda: _extra(ctx.invoked_subcommand),
            stopped=lambda: _stopped(ctx.invoked_subcommand),
            memory=lambda: _memory(ctx.invoked_subcommand),
        ):
            return super().invoke(ctx)


def _load(name: str) -> click.Command:
    module = f"ufr_edge.cli.{name.replace('-', '_')}"
    try:
        command = importlib.import_module(module).command
    except ModuleNotFoundError as exc:
        if exc.name == module:
            msg = f"`ufr-edge {name}` is not part of this installation. Install a release that has it."
            raise BackendUnavailableError(msg) from exc
        raise BackendUnavailableError(explain(exc, extra=_extra(name))) from exc
    assert isinstance(command, click.Command), module  # our own code, not user input
    return command


def _extra(name: str | None) -> str | None:
    return COMMANDS[name].extra if name in COMMANDS else None


def _memory(name: str | None) -> str | None:
    return COMMANDS[name].memory if name in COMMANDS else None


def _stopped(name: str | None) -> str:
    if name in COMMANDS and COMMANDS[name].goes_on:
        return "What is finished is kept: the same command goes on from there."
    return "No half-written file is left."


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ufr-edge")
@click.option("--debug", is_flag=True, help="Show the traceback when something fails.")
@click.option(
    "--log-level",
    type=click.Choice(["error", "warning", "info", "debug"]),
    default="warning",
    show_default=True,
    help="How much to log on standard error.",
)
def main(debug: bool, log_level: str) -> None:
    """Adapt a face restorer to YOUR bad faces without ground truth, export it, run it live.

    Exit codes: 0 done, 1 error, 2 wrong usage, 3 a quality gate refused, 4 stopped by a signal,
    5 the engine does not fit this device, 6 the video source was lost.
    """
    set_log_level(log_level)
    if not debug:
        quiet_warnings()
