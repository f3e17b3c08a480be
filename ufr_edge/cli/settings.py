"""`--config FILE` for commands whose settings are their flags: the file's values take the place of defaults."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from ufr_edge.cli.options import FOLDER, F
from ufr_edge.config import load_config
from ufr_edge.errors import ConfigError


def settings_option(function: F) -> F:
    """Add `--config`: a TOML or JSON file that mirrors flags and arguments; what the command line says wins."""
    return click.option(
        "--config",
        type=FOLDER,
        is_eager=True,  # before the others look up their defaults
        expose_value=False,
        callback=_read,
        help="TOML or JSON with the same settings, source and sink too; flags win.",
    )(function)


def _read(ctx: click.Context, option: click.Parameter, path: Path | None) -> None:
    if path is not None:
        ctx.default_map = read_settings(ctx, path)


def read_settings(ctx: click.Context, path: Path) -> dict[str, Any]:
    """The settings of a file for the command of `ctx`, by the names of its parameters.

    Raises InputFileError (no such file, not parsable), ConfigError (unknown setting, unfit value).
    """
    params = {_name(param): param for param in ctx.command.params if param.name not in ("config", "help")}
    known = dataclasses.make_dataclass("Settings", [(name, Any, None) for name in params])
    given = {name: value for name, value in vars(load_config(known, path)).items() if value is not None}
    for name, value in given.items():
        if isinstance(value, (list, dict)):
            msg = f"{path}: {name}: expected one value."
            raise ConfigError(msg)
        _check(ctx, params[name], value, where=f"{path}: {name}")
    return {str(params[name].name): value for name, value in given.items()}


def _check(ctx: click.Context, param: click.Parameter, value: Any, *, where: str) -> None:
    """Raise ConfigError naming the setting; click would name the flag, which nobody wrote."""
    flag = isinstance(param, click.Option) and param.is_flag
    if flag is not isinstance(value, bool):
        msg = f"{where}: expected {'true or false' if flag else 'no true or false'}, not {value!r}."
        raise ConfigError(msg)
    try:
        param.type_cast_value(ctx, value)
    except click.BadParameter as exc:
        msg = f"{where}: {exc.message}"
        raise ConfigError(msg) from exc


def _name(param: click.Parameter) -> str:
    """`--detect-every` is detect_every, `--json` is json, SOURCE is source."""
    longest = next((opt for opt in param.opts if opt.startswith("--")), str(param.name))
    return longest.removeprefix("--").replace("-", "_")
