"""The error tree. Each error is also the fitting builtin; only the CLI turns them into exit codes."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of the command line (design.md, "Contracts")."""

    DONE = 0
    ERROR = 1
    USAGE = 2
    GATE_FAILED = 3
    STOPPED = 4
    ENGINE_MISFIT = 5
    SOURCE_LOST = 6


class UfrEdgeError(Exception):
    """Base of every error this package raises on purpose."""

    exit_code: ExitCode = ExitCode.ERROR


class ConfigError(UfrEdgeError, ValueError):
    """A setting is unknown, out of range or does not fit another one."""


class ShapeError(UfrEdgeError, ValueError):
    """An array has the wrong shape or dtype."""


class InputFileError(UfrEdgeError, ValueError):
    """An input file or folder is missing, damaged, empty or of the wrong kind."""


class ModelFileError(UfrEdgeError, ValueError):
    """A model file is damaged or not of the expected network."""


class BundleError(UfrEdgeError, ValueError):
    """A bundle is damaged: a file is missing or its checksum does not match the manifest."""


class OutputError(UfrEdgeError, OSError):
    """The output cannot be written (exists already, disk full, no permission)."""


class BackendUnavailableError(UfrEdgeError, ImportError):
    """An optional package or device is not available here."""


class InferenceError(UfrEdgeError, RuntimeError):
    """An engine failed while running."""


class BuildError(UfrEdgeError, RuntimeError):
    """An engine could not be built."""


class TrainingError(UfrEdgeError, RuntimeError):
    """Training cannot go on (NaN loss, nothing left to train on)."""


class CalibrationError(UfrEdgeError, ValueError):
    """Calibration data is missing, too little, or not from a camera."""


class GateFailedError(UfrEdgeError, RuntimeError):
    """A quality gate refused the result."""

    exit_code = ExitCode.GATE_FAILED


class DownloadError(UfrEdgeError, ConnectionError):
    """A download broke off or the server refused it."""


class EngineMisfitError(UfrEdgeError, RuntimeError):
    """An engine was built for another device or version."""

    exit_code = ExitCode.ENGINE_MISFIT


class SourceLostError(UfrEdgeError, ConnectionError):
    """A video source ended or broke before it should."""

    exit_code = ExitCode.SOURCE_LOST
