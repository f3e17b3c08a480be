"""Whose faces to adapt to, and whose to keep back."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from ufr_edge.adaptation.faces import MINIMUM_FACES, list_images, read_face
from ufr_edge.calibration.frames import face_fault
from ufr_edge.errors import InputFileError
from ufr_edge.files import sha256_file, write_json
from ufr_edge.runtime.face_store import INDEX, read_rows
from ufr_edge.runtime.images import is_image

USED = "faces.json"


def split_people(
    faces: Path,
    names: Sequence[str],
    *,
    share: float,
    most: int,
    least_people: int,
    seed: int,
    called: Path | None = None,
) -> tuple[list[str], list[str]]:
    """Names to train on, and to hold out: by person where the index of the folder tells tracks apart.

    share, most: of the faces to hold out. called: the folder's name in messages, if another. Always the same for the
    same names. Raises InputFileError with fewer people than `least_people`.
    """
    called = called or faces
    rows = read_rows(faces) if (faces / INDEX).is_file() else []
    track = {row.file: row.track for row in rows if row.track is not None}
    people: dict[str, list[str]] = {}
    for name in names:
        people.setdefault(track.get(name, name), []).append(name)
    if len(people) < least_people:
        msg = (
            f"All {len(names)} faces of {called} are of {len(people)} person; a restorer adapted to them alone would "
            f"not fit others. Record {least_people} or more."
        )
        raise InputFileError(msg)
    order = sorted(people, key=lambda who: hashlib.sha256(f"{seed} {who}".encode()).digest())
    wanted = min(most, max(1, round(share * len(names))))
    held: list[str] = []
    left = len(names)
    # Those with very many faces last: they are worth more in training.
    for who in sorted(order, key=lambda who: len(people[who]) > 2 * wanted):
        if len(held) < wanted and left - len(people[who]) >= MINIMUM_FACES:
            held += people[who]
            left -= len(people[who])
    if not held:
        msg = f"No person of {called} can be held out without leaving fewer than {MINIMUM_FACES} faces. Record more."
        raise InputFileError(msg)
    kept = set(held)
    return [name for name in names if name not in kept], sorted(held)[:most]


def note_faces(work: Path, split: Path) -> None:
    """Write into `work` what may be known of the faces once they are gone: how many, and a sha256 over them."""
    digests = {
        name: [sha256_file(face) for face in (split / name).iterdir() if is_image(face)]
        for name in ("train", "held-out")
    }
    every = sorted(digests["train"] + digests["held-out"])
    total = hashlib.sha256("".join(every).encode()).hexdigest()
    write_json(work / USED, {"faces": len(every), "held_out": len(digests["held-out"]), "sha256": total})


def take_faces(faces: Path, target: Path, newest: int | None) -> int:
    """Copy the `newest` faces by name (None: all) and the index into the new folder `target`; returns how many.

    A recorder may be at work in `faces`: what it removes meanwhile is left out. Raises InputFileError without any.
    """
    names = [path.name for path in list_images(faces)]
    target.mkdir()
    # The index first: later it no longer says whose the faces are that were removed meanwhile.
    if (faces / INDEX).is_file():
        shutil.copyfile(faces / INDEX, target / INDEX)
    taken = 0
    for name in names if newest is None else names[-newest:]:
        try:
            shutil.copyfile(faces / name, target / name)
            taken += 1
        except FileNotFoundError:
            (target / name).unlink(missing_ok=True)
    return taken


def fit_faces(folder: Path, side: int) -> tuple[list[str], Counter[str]]:
    """Names of the faces that can be learned from and calibrated on, and how many are not, by what is wrong."""
    fit, unfit = list[str](), Counter[str]()
    for path in list_images(folder):
        try:
            fault = face_fault(read_face(path, side))
        except InputFileError as exc:
            fault = str(getattr(exc, "kind", "unfit"))
        if fault is None:
            fit.append(path.name)
        else:
            unfit[fault] += 1
    return fit, unfit


def refuse_few(faces: Path, fit: int, unfit: Mapping[str, int], least: int) -> None:
    """Raise InputFileError when fewer than `least` faces are fit; unfit: the others, by what is wrong."""
    if fit >= least:
        return
    why = ", ".join(f"{count} {fault}" for fault, count in sorted(unfit.items()))
    msg = (
        f"{faces} holds {fit} usable faces{f' (left out: {why})' if why else ''}; re-adaptation needs {least}. "
        "Record more: ufr-edge stream SOURCE SINK --bundle B --record FOLDER"
    )
    raise InputFileError(msg)


def place_faces(faces: Path, target: Path, names: Sequence[str]) -> None:
    """Move faces into the new folder `target`, with a copy of the index that says whose they are."""
    target.mkdir()
    for name in names:
        (faces / name).rename(target / name)
    if (faces / INDEX).is_file():
        shutil.copyfile(faces / INDEX, target / INDEX)
