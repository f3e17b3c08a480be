"""`--rebuild`: engines that do not fit this machine are built again before anything runs, in a child process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from ufr_edge.cli.options import F
from ufr_edge.errors import BuildError, EngineMisfitError, ExitCode, GateFailedError, UfrEdgeError
from ufr_edge.runtime.bundle import Bundle, Wanted, choose_engine, rank_engines, read_bundle
from ufr_edge.runtime.device import device_fingerprint
from ufr_edge.runtime.engines import installed_backends
from ufr_edge.runtime.lock import own_folder
from ufr_edge.runtime.version_link import linked_number
from ufr_edge.runtime.versions import install_version

Run = Callable[[Sequence[str]], None]
"""Runs `ufr-edge ARGUMENTS`. Raises UfrEdgeError with what it said when it fails."""


def rebuild_option(function: F) -> F:
    """`--rebuild`."""
    return click.option(
        "--rebuild",
        is_flag=True,
        help="First build the engines that do not fit this machine; may take minutes.",
    )(function)


def rebuild_misfits(path: Path, wanted: Wanted, *, run: Run | None = None) -> bool:
    """Build the engines of a bundle that do not fit this machine; of a folder of versions as a new version of it.

    Returns whether there was anything to build. When the build fails and another engine is what is wanted, that is
    said on standard error and nothing else. Raises InputFileError, BundleError, BuildError, GateFailedError,
    OutputError.
    """
    bundle = read_bundle(path)
    misfits = _misfits(bundle)
    if not misfits:
        return False
    click.echo(f"building for this machine: {', '.join(misfits)} (ufr-edge bundle rebuild)", err=True)
    try:
        _rebuild(path, run or _child)
    except UfrEdgeError as exc:
        if not _fits(read_bundle(path), wanted):
            raise
        click.echo(f"note: not rebuilt, another engine runs: {exc}", err=True)
    return True


def _misfits(bundle: Bundle) -> list[str]:
    _, refusals = rank_engines(
        bundle.manifest, fingerprint=device_fingerprint(), backends=installed_backends()
    )
    return [
        name
        for name, error in refusals
        if isinstance(error, EngineMisfitError) and bundle.manifest.engine(name).format != "onnx"
    ]


def _fits(bundle: Bundle, wanted: Wanted) -> bool:
    try:
        choose_engine(
            bundle.manifest, fingerprint=device_fingerprint(), backends=installed_backends(), wanted=wanted
        )
    except UfrEdgeError:
        return False
    return True


def _rebuild(path: Path, run: Run) -> None:
    command = ["bundle", "rebuild", str(path), "--all-misfits", "--no-progress"]
    if linked_number(path) is None:
        run(command)
        return
    # An installed version never changes: the new one is installed beside it.
    with own_folder(path, ".rebuild-") as folder:
        fresh = folder / "new.ufr"
        run([*command, "-o", str(fresh)])
        if fresh.is_dir():  # else there was nothing that a build here mends
            install_version(path, fresh)


def _child(arguments: Sequence[str]) -> None:
    """Building takes memory and libraries that the loop does without: they go with the child."""
    done = subprocess.run(
        [sys.executable, "-m", "ufr_edge", *arguments], capture_output=True, text=True, check=False
    )
    click.echo(done.stdout, err=True, nl=False)
    if done.returncode == int(ExitCode.STOPPED):
        raise KeyboardInterrupt
    if done.returncode:
        told = done.stderr.strip().rpartition("error: ")[2]
        msg = told or f"ufr-edge bundle rebuild ended with {done.returncode}."
        raise (GateFailedError if done.returncode == int(ExitCode.GATE_FAILED) else BuildError)(msg)
