"""A re-adapted bundle in a registry of models, with what the adaptation knows of it."""

from __future__ import annotations

from pathlib import Path

from ufr_edge.adaptation.readapt import STATE, ReadaptReport
from ufr_edge.adaptation.readapt_faces import USED
from ufr_edge.files import read_json
from ufr_edge.priors.files import prior_digest
from ufr_edge.runtime.registry import Added, RunFacts, add_model


def register_readapt(
    registry: Path, work: Path, report: ReadaptReport, *, keep_bundle: bool = False
) -> Added:
    """Add what `readapt` has made in `work`, and its parent where that is not known yet and still there.

    keep_bundle: store the new bundle as well. Calling it again changes nothing. Raises as `add_model`, and
    InputFileError when `work` is no work folder of `readapt`.
    """
    state = read_json(work / STATE)
    settings = dict(state["asked"]["config"])
    prior = str(settings.get("prior", ""))
    used = (
        read_json(work / USED) if (work / USED).is_file() else {}
    )  # none of one begun by an earlier release
    run = RunFacts(
        faces=int(used.get("faces", 0)),
        held_out=int(used.get("held_out", 0)),
        faces_sha256=str(used.get("sha256", "")),
        prior=prior,
        prior_sha256=prior_digest(prior),
        settings=settings,
        scores=report.gate.to_json(),
        notes=report.notes,
    )
    if (parent := Path(state["parent"])).is_dir():
        add_model(registry, parent)
    return add_model(registry, report.bundle, run=run, keep_bundle=keep_bundle)
