"""Where adapted weights come from besides the restorer: the prior and the teacher, with their licences."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ufr_edge.adaptation.target_index import CONFIG
from ufr_edge.errors import UfrEdgeError
from ufr_edge.files import read_json
from ufr_edge.priors.files import prior_licence
from ufr_edge.restorers.loading import restorer_licence

if TYPE_CHECKING:
    from ufr_edge.adaptation.finetune import FinetuneConfig

OURS = "as this package"


def lineage(config: FinetuneConfig, targets: Path) -> dict[str, str]:
    """Metadata of weights trained on `targets`: `prior`, `prior_licence`, and `teacher`, `teacher_licence` where there is one.

    The prior and the teacher are those that the targets were made by where their folder says so, and the prior of the
    perceptual term where it is another one.
    """
    made_by = _made_by(targets)
    priors = list(dict.fromkeys(filter(None, (made_by.get("prior"), features_source(config)))))
    found = {}
    if priors:
        found = {"prior": ", ".join(priors), "prior_licence": "; ".join(_words(prior_licence, name) for name in priors)}
    if teacher := made_by.get("teacher"):
        found |= {"teacher": teacher, "teacher_licence": _words(restorer_licence, teacher)}
    return found


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


def _words(find: Callable[[str], str | None], source: str) -> str:
    try:
        return find(source) or OURS
    except UfrEdgeError:  # it was here when the targets were made, and is not any more
        return "as its source says"
