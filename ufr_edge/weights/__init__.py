"""The shipped weights and their cards: `<name>/card.json`, `<name>/card.md` and the weights beside them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ufr_edge.errors import InputFileError, ModelFileError
from ufr_edge.files import read_json

__all__ = ["WEIGHTS_DIR", "ShippedWeights", "find_weights", "list_weights"]

WEIGHTS_DIR = Path(__file__).parent


@dataclass(frozen=True)
class ShippedWeights:
    """One shipped model. `path` is its folder; `card` is its card.json; `size` counts its bytes on disk."""

    name: str
    kind: Literal["restorer", "prior"]
    path: Path
    card: dict[str, Any]
    size: int


def list_weights(folder: Path = WEIGHTS_DIR) -> tuple[ShippedWeights, ...]:
    """Return every model under `folder` that has a card, by name. Raises ModelFileError on a damaged one."""
    return tuple(_read(card.parent) for card in sorted(folder.glob("*/card.json")))


def find_weights(name: str, folder: Path = WEIGHTS_DIR) -> ShippedWeights:
    """Return the model called `name`. Raises InputFileError naming the models there are."""
    if name not in (names := [card.parent.name for card in sorted(folder.glob("*/card.json"))]):
        msg = f"There is no shipped model {name!r}. Shipped: {', '.join(names) or 'none'}."
        raise InputFileError(msg)
    return _read(folder / name)


def _read(folder: Path) -> ShippedWeights:
    card = read_json(folder / "card.json")
    if not isinstance(card, dict):
        msg = f"{folder / 'card.json'} is not a model card (a JSON object). Reinstall ufr-edge."
        raise ModelFileError(msg)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return ShippedWeights(folder.name, _kind(folder), folder, card, size)


def _kind(folder: Path) -> Literal["restorer", "prior"]:
    if (folder / "weights.safetensors").is_file():
        return "restorer"
    if (folder / "unet").is_dir() and (folder / "scheduler").is_dir():
        return "prior"
    msg = f"{folder} holds neither weights.safetensors nor unet/ and scheduler/. Reinstall ufr-edge."
    raise ModelFileError(msg)
