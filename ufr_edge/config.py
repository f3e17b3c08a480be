"""Frozen dataclass configs as JSON or TOML: dumped with a version, loaded back strictly.

A config may hold bool, int, float, str, Path, Enum, Literal, Optional and other unions, tuples, lists, string-keyed
mappings and nested dataclasses. A dataclass may have a field `version: int = N`; without one it has version 1.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ufr_edge.errors import ConfigError, InputFileError
from ufr_edge.files import read_json, write_json

__all__ = ["from_json", "load_config", "save_config", "stated_settings", "to_json"]

T = TypeVar("T")


def to_json(config: Any) -> dict[str, Any]:
    """Return a dataclass as plain JSON values, with its `version`. Raises ConfigError for a value JSON has not."""
    plain = _plain(config, type(config).__name__)
    return {"version": _version(type(config)), **plain}


def from_json(cls: type[T], data: Mapping[str, Any]) -> T:
    """Build `cls` from plain values. Missing keys take their defaults.

    Raises ConfigError, naming the key, when a key is unknown (with the closest known one), required and missing,
    of the wrong type, or when the version is another.
    """
    if not isinstance(data, Mapping):
        msg = f"{cls.__name__} must be a table of settings, not {_kind(data)}."
        raise ConfigError(msg)
    expected = _version(cls)
    found = data.get("version", expected)
    if found != expected or isinstance(found, bool):
        msg = f"version: this is version {found!r} of {cls.__name__}; this program reads version {expected}."
        raise ConfigError(msg)
    return _build(cls, {key: value for key, value in data.items() if key != "version"}, "")


def load_config(cls: type[T], path: Path, base: T | None = None) -> T:
    """Read `cls` from a .toml or .json file; missing keys keep the values of `base`, or the defaults.

    Raises InputFileError (no such file, not parsable) or ConfigError.
    """
    if path.suffix not in (".toml", ".json"):
        msg = f"{path}: a config file ends in .toml or .json."
        raise ConfigError(msg)
    data = _read_file(path)
    try:
        return from_json(cls, data if base is None or not isinstance(data, Mapping) else _overlay(base, data))
    except ConfigError as exc:
        msg = f"{path}: {exc}"
        raise ConfigError(msg) from exc


def stated_settings(path: Path) -> frozenset[str]:
    """The settings that a config file names, as "training.losses.adversarial". Raises InputFileError."""
    return frozenset(_leaves(_read_file(path), ""))


def _leaves(data: Any, where: str) -> Iterator[str]:
    for key, value in data.items() if isinstance(data, Mapping) else ():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{where}{key}.")
        else:
            yield f"{where}{key}"


def _read_file(path: Path) -> Any:
    return read_json(path) if path.suffix == ".json" else _read_toml(path)


def save_config(config: Any, path: Path) -> None:
    """Write a config as JSON, atomically; `load_config` reads it back equal. Raises OutputError, ConfigError."""
    write_json(path, to_json(config))


def _plain(value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {item.name: _plain(getattr(value, item.name), f"{where}.{item.name}") for item in fields}
    if isinstance(value, Enum):
        return _plain(value.value, where)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    msg = f"{where}: a {type(value).__name__} cannot be written to a config file."
    raise ConfigError(msg)


def _overlay(base: Any, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain values: those of `data`, and of `base` where it has none."""
    merged: dict[str, Any] = _plain(base, type(base).__name__)
    for key, value in data.items():
        old = getattr(base, key, None)
        nested = dataclasses.is_dataclass(old) and isinstance(value, Mapping)
        merged[key] = _overlay(old, value) if nested else value
    return merged


def _version(cls: type[Any]) -> int:
    default = next((item.default for item in dataclasses.fields(cls) if item.name == "version"), 1)
    return default if isinstance(default, int) else 1


def _build(cls: type[T], data: Mapping[str, Any], where: str) -> T:
    hints = get_type_hints(cls)
    fields = {item.name: item for item in dataclasses.fields(cls) if item.init}  # type: ignore[arg-type]
    for key in data:
        if key not in fields:
            raise ConfigError(_unknown(where + str(key), str(key), list(fields)))
    values = {key: _read(hints[key], value, where + key) for key, value in data.items()}
    for name, item in fields.items():
        no_default = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if name not in values and no_default:
            msg = f"{where}{name}: this setting is required and missing."
            raise ConfigError(msg)
    return cls(**values)


def _unknown(where: str, key: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    return f"{where}: there is no such setting." + (f" Did you mean {close[0]!r}?" if close else "")


def _read(hint: Any, value: Any, where: str) -> Any:
    """Read one value as the type `hint` asks; the container types recurse."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _read_union(get_args(hint), value, where)
    if origin is Literal:
        return _one_of(value, get_args(hint), where)
    if origin is tuple:
        return _read_tuple(get_args(hint), value, where)
    if origin in (list, Sequence):
        return [_read(get_args(hint)[0], item, f"{where}[{i}]") for i, item in enumerate(_list(value, where))]
    if origin in (dict, Mapping):
        return {
            key: _read(get_args(hint)[1], item, f"{where}.{key}")
            for key, item in _table(value, where).items()
        }
    if dataclasses.is_dataclass(hint):
        return _build(hint, _table(value, where), f"{where}.")  # type: ignore[arg-type]
    if isinstance(hint, type) and issubclass(hint, Enum):
        return hint(_one_of(value, [member.value for member in hint], where))
    return _read_plain(hint, value, where)


def _read_union(choices: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in choices:
        return None
    rest = [choice for choice in choices if choice is not type(None)]
    if len(rest) == 1:
        return _read(rest[0], value, where)
    for choice in rest:
        try:
            return _read(choice, value, where)
        except ConfigError:
            continue
    names = " or ".join(getattr(choice, "__name__", str(choice)) for choice in rest)
    msg = f"{where}: expected {names}, not {_kind(value)}."
    raise ConfigError(msg)


def _read_tuple(items: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    values = _list(value, where)
    if len(items) == 2 and items[1] is Ellipsis:
        items = (items[0],) * len(values)
    if len(items) != len(values):
        msg = f"{where}: expected {len(items)} values, not {len(values)}."
        raise ConfigError(msg)
    return tuple(
        _read(hint, item, f"{where}[{i}]") for i, (hint, item) in enumerate(zip(items, values, strict=True))
    )


def _read_plain(hint: Any, value: Any, where: str) -> Any:
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    fits = isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
    if fits and hint in (bool, int, float, str):
        return value
    msg = f"{where}: expected {_NAMES.get(hint, hint)}, not {_kind(value)}."
    raise ConfigError(msg)


def _one_of(value: Any, choices: Sequence[Any], where: str) -> Any:
    for choice in choices:
        if choice == value and type(choice) is type(value):
            return choice
    msg = f"{where}: expected one of {', '.join(map(repr, choices))}, not {value!r}."
    raise ConfigError(msg)


def _list(value: Any, where: str) -> Sequence[Any]:
    if isinstance(value, (list, tuple)):
        return value
    msg = f"{where}: expected a list, not {_kind(value)}."
    raise ConfigError(msg)


def _table(value: Any, where: str) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    msg = f"{where}: expected a table of settings, not {_kind(value)}."
    raise ConfigError(msg)


_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path"}


def _kind(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value, default=repr)


def _read_toml(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        msg = f"{path} does not exist."
        raise InputFileError(msg) from exc
    except (OSError, ValueError) as exc:
        msg = f"{path} cannot be read as TOML: {exc}."
        raise InputFileError(msg) from exc
