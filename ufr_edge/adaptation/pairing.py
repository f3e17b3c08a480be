"""Faces and their targets or truths, matched by the stems of their file names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ufr_edge.adaptation.faces import (
    MINIMUM_FACES,
    FaceReader,
    FaceSet,
    UnfitFaceError,
    load_faces,
    read_face,
    skipped_lines,
)
from ufr_edge.adaptation.restorer_task import HeldOut
from ufr_edge.adaptation.target_index import INDEX, digest, made_here, target_weights
from ufr_edge.errors import InputFileError
from ufr_edge.runtime.images import is_image

Goal = Literal["target", "truth"]
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Pairs(HeldOut):
    """Pairs to train on; `weights` float64 (N,) above 0 say how often each is drawn, None: all alike.

    `lines`: how many matched and what was left out, in words.
    """

    weights: NDArray[np.float64] | None = None
    lines: tuple[str, ...] = ()


def load_pairs(
    faces: Path,
    targets: Path,
    side: int,
    *,
    minimum: int = MINIMUM_FACES,
    goal: Goal = "target",
    read: FaceReader = read_face,
    show: bool = False,
) -> Pairs:
    """Load (low-quality, target) pairs matched by file stem, with the weights of the targets' index where there is one.

    `goal`: what the pictures of `targets` are called in messages. `read`: reads the faces, and may leave some out.
    Rejected targets are left out; of a folder that `make_targets` made also those its index does not list, which are
    of other settings or unfinished. Raises InputFileError with fewer than `minimum`, and for two targets of one stem.
    """
    lq = load_faces(faces, side, minimum=minimum, read=read, show=show)
    _check_any(faces, targets, goal)
    made = load_faces(targets, side, minimum=1, show=show)
    _check_stems(targets, made.names)
    index = target_weights(targets)
    made, unlisted = _listed(made, lq, index) if made_here(targets) else (made, [])
    by_stem = {Path(name).stem: i for i, name in enumerate(made.names)}
    matched = [(i, by_stem[Path(n).stem]) for i, n in enumerate(lq.names) if Path(n).stem in by_stem]
    if len(matched) < minimum:
        why = _unmatched(lq, made, faces, targets, found=len(matched), minimum=minimum, goal=goal)
        raise InputFileError(" ".join((*_unlisted_lines(targets, unlisted), why)))
    weights = np.array([index.get(Path(lq.names[i]).stem, 1.0) for i, _ in matched], dtype=np.float64)
    _check_fit(targets, weights, minimum)
    kept = [pair for pair, weight in zip(matched, weights, strict=True) if weight > 0]
    return Pairs(
        lq=lq.images[[i for i, _ in kept]],
        truth=made.images[[j for _, j in kept]],
        weights=weights[weights > 0] if (weights != 1).any() else None,
        lines=(
            *pair_lines(lq, made, faces, targets, rejected=len(matched) - len(kept), goal=goal),
            *_unlisted_lines(targets, unlisted),
        ),
    )


class UnseenReader:
    """Reads faces as `read_face`, but none that is trained on: by its pixels, whatever its name.

    `shared`: (name, name of the training face) of those met.
    """

    def __init__(self, training: FaceSet | None) -> None:
        known = () if training is None else zip(training.images, training.names, strict=True)
        self._known = {digest(face): name for face, name in known}
        self.shared: list[tuple[str, str]] = []

    def __call__(self, path: Path, side: int) -> NDArray[np.uint8]:
        """Read one face. Raises UnfitFaceError for one of the training faces, and as `read_face`."""
        face = read_face(path, side)
        if (name := self._known.get(digest(face))) is None:
            return face
        self.shared.append((path.name, name))
        msg = f"{path} is a training face too ({name}). Measure on faces that are not trained on."
        raise UnfitFaceError(msg, kind="trained on")

    def lines(self) -> tuple[str, ...]:
        """Which faces were left out, in words; empty for none."""
        names = [name if name == known else f"{name} (there {known})" for name, known in self.shared]
        return (f"not measured, being training faces too: {_some(names)}",) if names else ()


def pair_lines(
    lq: FaceSet, made: FaceSet, faces: Path, targets: Path, *, rejected: int = 0, goal: Goal = "target"
) -> tuple[str, ...]:
    """How many faces have a target of their stem, which have none, and which files were no faces."""
    without = _others(lq, made)
    said = [f"matched {len(lq) - len(without)} of {len(lq)} faces"]
    if without:
        more = f" and {len(without) - 5} more" if len(without) > 5 else ""
        said[0] += f"; without a {goal}: {', '.join(without[:5])}{more}"
    if rejected:
        said[0] += f"; {rejected} of their targets are rejected by index.jsonl"
    return (*said, *skipped_lines(faces, lq.skipped), *skipped_lines(targets, made.skipped))


def same_stem(names: Sequence[str]) -> tuple[str, str] | None:
    """The first two names that differ in their ending alone, or None."""
    stems: dict[str, str] = {}
    return next(((one, name) for name in names if (one := stems.setdefault(Path(name).stem, name)) != name), None)


def _listed(made: FaceSet, lq: FaceSet, index: Mapping[str, float]) -> tuple[FaceSet, list[str]]:
    """The targets that the index lists, and the names of the others that belong to faces of `lq`."""
    at = [i for i, name in enumerate(made.names) if Path(name).stem in index]
    if len(at) == len(made):
        return made, []
    faces = {Path(name).stem for name in lq.names}
    left = [name for name in made.names if Path(name).stem in faces.difference(index)]
    return replace(made.subset(at), skipped=made.skipped, kinds=made.kinds), left


def _unlisted_lines(targets: Path, names: Sequence[str]) -> tuple[str, ...]:
    """Which pictures count as missing, in words; empty for none."""
    if not names:
        return ()
    said = f"{len(names)} targets are not in {targets / INDEX}, being of other settings or unfinished, and count as missing"
    return (f"{said}: {_some(names)}.",)


def _others(these: FaceSet, those: FaceSet) -> list[str]:
    """The names of `these` whose stem none of `those` has."""
    stems = {Path(name).stem for name in those.names}
    return [name for name in these.names if Path(name).stem not in stems]


def _check_stems(folder: Path, names: Sequence[str]) -> None:
    if (both := same_stem(names)) is not None:
        msg = (
            f"{folder} holds {both[0]} and {both[1]}; which of them belongs to the face of that name cannot be told. "
            "Remove or rename one."
        )
        raise InputFileError(msg)


def _check_fit(targets: Path, weights: NDArray[np.float64], minimum: int) -> None:
    fit = int((weights > 0).sum())
    if fit < minimum:
        msg = (
            f"Of {len(weights)} targets in {targets} only {fit} are fit to learn from; at least {minimum} "
            "are needed. Its index.jsonl says what each was rejected for. Draw lighter ones (--fidelity 0.8, or "
            "--sampler auto), or keep all (--no-qa)."
        )
        raise InputFileError(msg)


def _check_any(faces: Path, targets: Path, goal: Goal) -> None:
    """Raise InputFileError where `targets` holds no picture: whose it is to make them, its name does not tell."""
    if targets.is_dir() and any(is_image(path) for path in targets.iterdir()):
        return
    what = "holds no pictures" if targets.is_dir() else "is no folder"
    advice = _command(faces, targets) if goal == "target" else "Give the folder with the clean version of each face."
    msg = f"{targets} {what}; a {goal} of each face of {faces} is looked for there, by its name. {advice}"
    raise InputFileError(msg)


def _unmatched(
    lq: FaceSet, made: FaceSet, faces: Path, targets: Path, *, found: int, minimum: int, goal: Goal
) -> str:
    """What to say where too few names match: examples of both sides, and what mends it."""
    alone, unused = _others(lq, made), _others(made, lq)
    examples = [
        f"{what}: {_some(names)}" for what, names in ((f"Faces without a {goal}", alone), (f"{goal}s without a face", unused)) if names
    ]
    return (
        f"Only {found} faces of {faces} have a {goal} of the same name in {targets}; at least {minimum} are needed. "
        f"{'; '.join(examples)}. {_mends(faces, targets, goal, renaming=bool(unused))}"
    )


def _mends(faces: Path, targets: Path, goal: Goal, *, renaming: bool) -> str:
    if goal == "target" and (made_here(targets) or (targets / INDEX).is_file()):
        return _command(faces, targets)
    return "Rename one of the two: only their endings may differ." if renaming else f"Give a {goal} for more of the faces."


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _command(faces: Path, targets: Path) -> str:
    return f"Run: ufr-edge targets -i {faces} -o {targets}"
