"""The JSON schema of manifest.json, made from the dataclasses that read it (published in docs/)."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from ufr_edge.runtime.manifest import (
    FORMATS,
    SCHEMA,
    SHA256,
    EngineEntry,
    Manifest,
    RestorerInfo,
)

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_SCALARS = {str: "string", int: "integer", float: "number"}
_DIGEST = {"pattern": f"^{SHA256}$"}
LINEAGE = (
    "What the weights come from, where it is known: parent, run_id, camera; prior and teacher (several by commas), which "
    "the training targets came from, with their licences in words as prior_licence and teacher_licence."
)

_RULES: Mapping[tuple[type, str], dict[str, Any]] = types.MappingProxyType(
    {
        (Manifest, "schema"): {"const": SCHEMA},
        (Manifest, "created"): {"format": "date-time"},
        (Manifest, "files"): {"additionalProperties": {"type": "string"} | _DIGEST},
        (Manifest, "lineage"): {"description": LINEAGE},
        (Manifest, "needs_ufr_edge"): {"pattern": r"^\d+(\.\d+){0,3}$"},
        (RestorerInfo, "side"): {"minimum": 1},
        (RestorerInfo, "weights_sha256"): _DIGEST,
        (EngineEntry, "onnx_sha256"): _DIGEST,
        (EngineEntry, "format"): {"enum": list(FORMATS)},
        (EngineEntry, "files"): {"minItems": 1},
    }
)
"""(dataclass, field) -> what the type alone does not say; the reader checks the same."""


def manifest_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of manifest.json, as a value for json.dumps.

    Unknown fields are allowed: a later release may add some without a new schema number.
    """
    return {
        "$schema": DIALECT,
        "title": f"manifest.json of a ufr-edge bundle, schema {SCHEMA}",
        **_object(Manifest),
    }


def _object(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    properties: dict[str, Any] = {}
    required: list[str] = []
    for item in fields(cls):
        value = _value(hints[item.name]) | _RULES.get((cls, item.name), {})
        properties[item.name] = value
        # Read as default when it is not there: bundles of the first release lack it.
        if "anyOf" not in value and item.name != "needs_ufr_edge":
            required.append(item.name)
    about = (cls.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")
    return {
        "description": " ".join(about.split()),
        "type": "object",
        "properties": properties,
        "required": required,
    }


def _value(hint: Any) -> dict[str, Any]:
    if hint in _SCALARS:
        return {"type": _SCALARS[hint]}
    if is_dataclass(hint):
        assert isinstance(hint, type)  # a dataclass, not an instance of one
        return _object(hint)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return {"type": "array", "items": _value(args[0])}
    if origin is Mapping:
        return {"type": "object", "additionalProperties": _value(args[1])}
    if origin in (types.UnionType, typing.Union):
        return {"anyOf": [_value(arg) for arg in args if arg is not type(None)] + [{"type": "null"}]}
    msg = f"no JSON schema for {hint}"
    raise TypeError(msg)
