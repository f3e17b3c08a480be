"""Where adapted weights come from besides the restorer: the prior and the teacher, with their licences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ufr_edge.adaptation.target_index import CONFIG
from ufr_edge.errors import UfrEdgeError
from ufr_edge.files import read_json
from ufr_edge.priors.files import prior_licence
from ufr_edge.restorers.checkpoints import read_header
from ufr_edge.restorers.files import card_licences
from ufr_edge.restorers.loading import find_restorer, restorer_licence

if TYPE_CHECKING:
    from ufr_edge.adaptation.finetune import FinetuneConfig

UNSTATED = "as its source says"


def lineage(config: FinetuneConfig, targets: Path, start: Path) -> dict[str, str]:
    """Metadata of weights trained on `targets`: `prior`, `prior_licence`, and `teacher`, `teacher_licence` where there is one.

    The prior and the teacher are those that the targets were made by where their folder says so, and the prior of the
    perceptual term where it is another one. What the weights `start` that are trained on had learned from comes first.
    """
    made_by, before = _made_by(targets), read_header(start)
    priors = filter(None, (made_by.get("prior"), features_source(config)))
    teachers = filter(None, (made_by.get("teacher"),))
    return {**_named("prior", priors, _prior_words, before), **_named("teacher", teachers, _teacher_words, before)}


def _named(
    kind: str, sources: Iterable[str], words: Callable[[str], str], before: Mapping[str, str]
) -> dict[str, str]:
    """`kind` and its licence for those that the header `before` names and for new ones; each licence by name if several."""
    old = before.get(kind, "")
    known = old.split(", ") if old else []
    fresh = {name: words(name) for name in dict.fromkeys(sources) if name not in known}
    names = [*known, *fresh]
    if not names:
        return {}
    licence = before.get(f"{kind}_licence", UNSTATED)
    if not fresh or len(names) == 1:
        return {kind: ", ".join(names), f"{kind}_licence": licence if known else fresh[names[0]]}
    told = [f"{known[0]}: {licence}"] if len(known) == 1 else [licence] if known else []
    told += [f"{name}: {text}" for name, text in fresh.items()]
    return {kind: ", ".join(names), f"{kind}_licence": "; ".join(told)}


def _prior_words(source: str) -> str:
    try:
        return prior_licence(source) or UNSTATED
    except UfrEdgeError:  # it was here when the targets were made, and is not any more
        return UNSTATED


def _teacher_words(source: str) -> str:
    try:
        others = restorer_licence(source)
        path = find_restorer(source)
        stated = {**card_licences(path), **read_header(path)} if others is None else {}
    except UfrEdgeError:
        return UNSTATED
    return others or stated.get("weights_licence", UNSTATED)


def _made_by(targets: Path) -> dict[str, str]:
    """The names in the settings that `make_targets` left; empty for targets of another origin."""
    path = targets / CONFIG
    plain = read_json(path) if path.is_file() else {}
    known = plain if isinstance(plain, dict) else {}
    return {name: str(known[name]) for name in ("prior", "teacher") if known.get(name)}


def features_source(config: FinetuneConfig) -> str | None:
    """The prior whose features the losses are taken on; None where none is."""
    losses, training = config.training.losses, config.training
    heard = training.losses.adversarial > 0 and training.discriminator == "prior-features"
    if training.objective == "images" and (losses.prior_features > 0 or heard):
        return config.features_prior or config.prior
    return None
