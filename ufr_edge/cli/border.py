"""The border between library errors and the person at the terminal: one line, one exit code, no traceback."""

from __future__ import annotations

import errno
import logging
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

import click

from ufr_edge.errors import ExitCode, UfrEdgeError

_LESS_MEMORY = "End what else uses it, take smaller batches or pictures, or use the CPU (--device cpu, where there is one)."


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived; unwinds like Ctrl-C so that half-written files are removed."""


@contextmanager
def error_border(
    *, debug: bool, extra: Callable[[], str | None], stopped: Callable[[], str], memory: Callable[[], str | None]
) -> Iterator[None]:
    """Turn whatever a command raises into one line and click's Exit; click's own errors and a closed pipe pass.

    Of the command that ran, `extra` gives the pip extra, for the message about a missing package, `stopped` what
    becomes of its work when a signal stops it, and `memory` what makes it take less of a GPU's memory.
    """
    try:
        with _terminate_as_interrupt():
            yield
    except (click.ClickException, click.exceptions.Exit):
        raise
    except BrokenPipeError:
        raise  # the reader left (`| head`): click ends quietly
    except (KeyboardInterrupt, click.Abort) as exc:
        word = "SIGTERM" if isinstance(exc, Terminated) else "Ctrl-C"
        _fail(f"stopped by {word}. {stopped()}", exc, debug=debug)
    except Exception as exc:  # noqa: BLE001 - the border: every error ends here, --debug shows where it came from
        _fail(explain(exc, extra=extra(), memory=memory()), exc, debug=debug)


def script_border(work: Callable[[], None]) -> int:
    """Do the work of a script (benchmarks/) and return its exit code: an error of ours is one line.

    Others keep their traceback: scripts are for those who can read it.
    """
    try:
        work()
    except UfrEdgeError as exc:
        click.echo(f"error: {exc}", err=True)
        return int(exc.exit_code)
    return 0


def _fail(message: str, exc: BaseException, *, debug: bool) -> NoReturn:
    if debug:
        click.echo("".join(traceback.format_exception(exc)), err=True, nl=False)
    # A build log may follow the first line of a message; it stays below it.
    click.echo("error: " + message.strip().replace("\n", "\n    "), err=True)
    raise click.exceptions.Exit(int(_code(exc))) from exc


def _code(exc: BaseException) -> ExitCode:
    if isinstance(exc, (KeyboardInterrupt, click.Abort)):
        return ExitCode.STOPPED
    return exc.exit_code if isinstance(exc, UfrEdgeError) else ExitCode.ERROR


def explain(exc: Exception, *, extra: str | None = None, memory: str | None = None) -> str:
    """Return one line for any error: what was wrong and what to do."""
    if isinstance(exc, UfrEdgeError):
        return str(exc)
    full = isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or "No space left on device" in str(exc):  # safetensors and torch have errors of their own
        where = f" while writing {name}" if (name := getattr(exc, "filename", None)) else ""
        return f"The disk is full{where}. Free some space and run the command again."
    if isinstance(exc, ImportError) and "libGL" in str(exc):
        return f"OpenCV misses a system library ({exc}). On Debian: apt-get install libgl1 libglib2.0-0"
    if isinstance(exc, ModuleNotFoundError) and not str(exc.name).startswith("ufr_edge"):
        return f'{exc.name} is not installed. Run: pip install "ufr-edge[{extra or "all"}]"'
    if type(exc).__name__ == "OutOfMemoryError" or "CUDA error: out of memory" in str(exc):  # torch is not imported here
        asked = re.search(r"Tried to allocate [\d.]+ \w+", str(exc))
        what = f" ({asked[0]})" if asked else ""
        return f"The GPU is out of memory{what}. {memory or _LESS_MEMORY}"
    if isinstance(exc, MemoryError):
        return f"Out of memory ({exc}). Use a smaller batch or a smaller picture."
    what = f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
    return f"{what} (unexpected: run again with --debug, as `ufr-edge --debug COMMAND ...`)"


def set_log_level(level: str) -> None:
    """Send the log of `ufr_edge` from `level` on to standard error."""
    logger = logging.getLogger("ufr_edge")
    logger.setLevel(level.upper())
    if not any(isinstance(handler, _StderrHandler) for handler in logger.handlers):
        logger.addHandler(_StderrHandler())


def quiet_warnings() -> None:
    """Silence Python warnings of libraries, unless the user asked for them with -W or PYTHONWARNINGS."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


class _StderrHandler(logging.Handler):
    """Writes to what sys.stderr is at the moment of the message, not when the handler was made."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(f"{record.levelname.lower()}: {self.format(record)}", err=True)


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
