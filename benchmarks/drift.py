"""Measure how often drift is raised falsely and how soon rightly, on synthetic cameras; write the table.

    python benchmarks/drift.py -o docs/drift.md [--people 60 --hours 1]

A camera is a degradation preset whose settings are drawn once (`fixed`: one light, one blur, one noise) or for each
face anew. People come one at a time and stay for a while, turning a little; each gives one vote a second. The
bundle's fingerprint is made of other people than those who pass later. Time is counted in votes, not on a clock.
"""

from __future__ import annotations

import argparse
import itertools
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ufr_edge.degradations import PRESETS, Degradation, RawSensor
from ufr_edge.degradations.classic import Classic
from ufr_edge.files import atomic_file
from ufr_edge.runtime.drift import DriftConfig, DriftMonitor
from ufr_edge.runtime.fingerprint import Fingerprint, Measures, combine, measure_face
from ufr_edge.runtime.frame import Frame
from ufr_edge.runtime.images import read_image
from ufr_edge.weights.cards import command_block, markdown_table

FACES = Path(__file__).parents[1] / "ufr_edge" / "demo" / "faces"
SIDE = 256
STAYS_S = (4, 40)
LIGHTS = np.linspace(0.6, 1.0, 9)
ANEW = "~"
"""After a preset's name: its settings are drawn for every face anew, as if many cameras fed one stream."""
CAMERAS = ("classic-light", "classic-light~", "raw-iso1500-x4", "raw-iso3000-x4", "codec-motion", "defocus")


class Camera:
    """A degradation that looks at people in a light (gain before the sensor), each look measured.

    `looks` of each person in each of `LIGHTS` are made when they are first asked for, and drawn from after that:
    an hour of votes would take an hour to make.
    """

    def __init__(self, degradation: Degradation, cast: list[Frame], *, looks: int, seed: int) -> None:
        self._degradation, self._cast, self._looks = degradation, cast, looks
        self._rng = np.random.default_rng(seed)
        self._made: dict[tuple[int, int], list[Measures]] = {}

    def __len__(self) -> int:
        return len(self._cast)

    def look(self, person: int, gain: float) -> Measures:
        """What one face of this person measures."""
        light = int(np.abs(LIGHTS - gain).argmin())
        made = self._made.setdefault((person, light), [])
        if len(made) < self._looks:
            lit = cv2.convertScaleAbs(moved(self._cast[person], self._rng), alpha=float(LIGHTS[light]))
            made.append(measure_face(self._degradation(np.asarray(lit, np.uint8), self._rng)))
            return made[-1]
        return made[int(self._rng.integers(len(made)))]


def narrowed(preset: str, seed: int) -> Degradation:
    """One camera of a preset: its settings drawn once, where the preset can say them."""
    degradation = PRESETS[preset]
    if isinstance(degradation, RawSensor):
        return degradation.fixed(seed)
    if isinstance(degradation, Classic):
        p = degradation.sample(np.random.default_rng(seed))
        return Classic(
            sigma=(p.sigma_x, p.sigma_x),
            scale=(p.scale, p.scale),
            noise=(p.noise, p.noise),
            quality=(p.quality, p.quality),
        )
    return degradation


def people(folder: Path, count: int) -> list[Frame]:
    """`count` people, those of the camera and of the clean set mixed."""
    paths = sorted(folder.glob("*/*.jpg"))
    order = np.random.default_rng(0).permutation(len(paths))[:count]
    return [read_image(paths[i]) for i in order]


def moved(picture: Frame, rng: np.random.Generator) -> Frame:
    """A person who turns a little and stands nearer or farther, aligned as well as landmarks allow."""
    turn, size = rng.normal(0, 3.0), rng.normal(1.0, 0.03) * SIDE / picture.shape[0]
    matrix = cv2.getRotationMatrix2D((picture.shape[1] / 2, picture.shape[0] / 2), turn, size)
    matrix[:, 2] += SIDE / 2 - picture.shape[0] / 2 + rng.normal(0, 2.0, 2)
    flat = cv2.warpAffine(
        picture, matrix, (SIDE, SIDE), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REFLECT_101
    )
    return np.asarray(cv2.flip(flat, 1) if rng.random() < 0.5 else flat, np.uint8)


def votes(camera: Camera, *, seed: int, day_s: float | None = None) -> Iterator[tuple[int, Measures]]:
    """(track, measures) of one vote a second, endlessly; the light goes down and up once in `day_s` seconds."""
    rng = np.random.default_rng(seed)
    second = 0
    for track in itertools.count():
        person = int(rng.integers(len(camera)))
        for _ in range(int(rng.integers(*STAYS_S))):
            gain = 1.0 if day_s is None else 0.8 + 0.2 * float(np.cos(2 * np.pi * second / day_s))
            yield track, camera.look(person, gain)
            second += 1


def reference(camera: Camera, count: int) -> Fingerprint:
    """As a recorder would collect: few faces of each, spread over people."""
    tracks = [i % len(camera) for i in range(count)]
    return combine([camera.look(person, 1.0) for person in tracks], tracks=tracks, side=SIDE)


@dataclass(frozen=True)
class Watched:
    """seconds: until drift was raised, None: never. raises: in all. most: the largest distance seen."""

    seconds: int | None
    raises: int
    most: float


def watch(
    monitor: DriftMonitor, stream: Iterator[tuple[int, Measures]], seconds: int, *, start: int = 0
) -> Watched:
    """Let the monitor see so many seconds of a stream, from second `start` on."""
    raised, most, had = None, 0.0, monitor.state.raises
    for second, (track, measures) in enumerate(itertools.islice(stream, seconds)):
        change = monitor.observe(measures, track=(start, track), time_s=float(start + second))
        if change == "raised" and raised is None:
            raised = second + 1
        most = max(most, monitor.state.distance or 0.0)
    return Watched(raised, monitor.state.raises - had, most)


@dataclass(frozen=True)
class Scene:
    """A camera: the fingerprint it was adapted to, and who passes it later."""

    fingerprint: Fingerprint
    passing: Camera
    lit: Camera


def scene(name: str, cast: list[Frame], faces: int) -> Scene:
    """A camera, adapted to the first half of the cast; the second half passes."""
    anew = name.endswith(ANEW)
    degradation = PRESETS[name.removesuffix(ANEW)] if anew else narrowed(name, seed=7)
    half = len(cast) // 2
    return Scene(
        reference(Camera(degradation, cast[:half], looks=faces, seed=1), faces),
        Camera(degradation, cast[half:], looks=8, seed=2),
        Camera(degradation, cast[half:], looks=3, seed=3),
    )


def main() -> None:
    """Run and write."""
    args = _arguments()
    cv2.setNumThreads(1)
    cast = people(FACES, args.people)
    scenes = {name: scene(name, cast, args.faces) for name in args.camera}
    seconds = round(args.hours * 3600)
    quiet = [row for name, one in scenes.items() for row in _quiet_rows(name, one, seconds)]
    switched = [_switch_row(a, b, scenes, args.seeds) for a, b in itertools.permutations(scenes, 2)]
    text = _document(quiet, switched, args)
    with atomic_file(args.output) as beside:
        beside.write_text(text, encoding="utf-8")
    sys.stdout.write(text)


def _quiet_rows(name: str, one: Scene, seconds: int) -> list[list[str]]:
    rows = []
    for what, camera, day_s in (
        ("unchanged", one.passing, None),
        (f"light to {LIGHTS[0]:.0%} and back", one.lit, seconds),
    ):
        seen = watch(DriftMonitor(one.fingerprint), votes(camera, seed=11, day_s=day_s), seconds)
        rows.append([name, what, f"{seconds}", str(seen.raises), f"{seen.most:.1f}"])
        sys.stderr.write(f"{rows[-1]}\n")
    return rows


def _switch_row(one: str, other: str, scenes: Mapping[str, Scene], seeds: int) -> list[str]:
    times = []
    for seed in range(seeds):
        monitor = DriftMonitor(scenes[one].fingerprint)
        watch(monitor, votes(scenes[one].passing, seed=20 + seed), 120)
        times.append(watch(monitor, votes(scenes[other].passing, seed=50 + seed), 180, start=1000).seconds)
    found = [t for t in times if t is not None]
    mean, longest = (f"{np.mean(found):.0f}", str(max(found))) if found else ("-", "-")
    row = [one, other, f"{sum(t <= 60 for t in found)} of {seeds}", f"{len(found)} of {seeds}", mean, longest]
    sys.stderr.write(f"{row}\n")
    return row


def _document(quiet: list[list[str]], switched: list[list[str]], args: argparse.Namespace) -> str:
    config = DriftConfig()
    head = f"""## Drift on synthetic cameras

{command_block("python " + shlex.join(sys.argv))}

{args.people} generated faces; the bundle's fingerprint is of {args.faces} faces of half of them, the other half pass
by, one vote a second, staying {STAYS_S[0]} to {STAYS_S[1]} s each. {ANEW}: settings drawn for every face anew. Raised above {config.raise_at:g} for
{config.raise_s:g} s, over the last {config.faces} votes.

"""
    first = markdown_table(["camera", "what happens", "votes", "false alarms", "largest distance"], quiet)
    second = markdown_table(
        ["adapted to", "becomes", "raised within 60 s", "within 180 s", "mean s", "longest s"], switched
    )
    return f"{head}{first}\n\n{second}\n"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="False alarms and detection of drift.")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--people", type=int, default=60)
    parser.add_argument("--faces", type=int, default=200, help="Faces of the bundle's fingerprint.")
    parser.add_argument(
        "--hours", type=float, default=1.0, help="Of the unchanged camera, at a vote a second."
    )
    parser.add_argument("--seeds", type=int, default=3)
    known = [f"{name}{end}" for name in sorted(PRESETS) for end in ("", ANEW)]
    parser.add_argument("--camera", action="append", choices=known, help=f"[default: {', '.join(CAMERAS)}]")
    args = parser.parse_args()
    args.camera = args.camera or list(CAMERAS)
    return args


if __name__ == "__main__":
    main()
