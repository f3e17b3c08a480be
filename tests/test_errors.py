"""The error tree is public: names, builtins and exit codes are pinned."""

from __future__ import annotations

import inspect

import pytest

from ufr_edge import errors
from ufr_edge.errors import ExitCode, UfrEdgeError

TREE: dict[str, tuple[type[Exception], ExitCode]] = {
    "BackendUnavailableError": (ImportError, ExitCode.ERROR),
    "BuildError": (RuntimeError, ExitCode.ERROR),
    "BundleError": (ValueError, ExitCode.ERROR),
    "CalibrationError": (ValueError, ExitCode.ERROR),
    "ConfigError": (ValueError, ExitCode.ERROR),
    "DownloadError": (ConnectionError, ExitCode.ERROR),
    "EngineMisfitError": (RuntimeError, ExitCode.ENGINE_MISFIT),
    "GateFailedError": (RuntimeError, ExitCode.GATE_FAILED),
    "InferenceError": (RuntimeError, ExitCode.ERROR),
    "InputFileError": (ValueError, ExitCode.ERROR),
    "ModelFileError": (ValueError, ExitCode.ERROR),
    "OutputError": (OSError, ExitCode.ERROR),
    "ShapeError": (ValueError, ExitCode.ERROR),
    "SourceLostError": (ConnectionError, ExitCode.SOURCE_LOST),
    "TrainingError": (RuntimeError, ExitCode.ERROR),
}


def test_the_tree_is_whole() -> None:
    found = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, UfrEdgeError) and value is not UfrEdgeError
    }
    assert found == set(TREE)


@pytest.mark.parametrize("name", sorted(TREE))
def test_each_error_is_also_a_builtin_and_has_an_exit_code(name: str) -> None:
    builtin, code = TREE[name]
    error = getattr(errors, name)
    assert issubclass(error, UfrEdgeError)
    assert issubclass(error, builtin)
    assert error.exit_code is code
    assert str(error("what and where")) == "what and where"
    assert error.__doc__


def test_exit_codes_are_those_of_the_documents() -> None:
    assert {code.name: int(code) for code in ExitCode} == {
        "DONE": 0,
        "ERROR": 1,
        "USAGE": 2,
        "GATE_FAILED": 3,
        "STOPPED": 4,
        "ENGINE_MISFIT": 5,
        "SOURCE_LOST": 6,
    }
