"""What stands before the demo's camera on site: who passes, and clips of them through two cameras, one after the other.

Each frame shows two people, each in half of the picture; others take their place every few seconds.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from ufr_edge.degradations.classic import Classic
from ufr_edge.degradations.presets import get_preset
from ufr_edge.degradations.raw import RawSensor
from ufr_edge.demo.scene import FACES
from ufr_edge.errors import ConfigError, InputFileError
from ufr_edge.runtime.frame import Frame
from ufr_edge.runtime.images import read_image
from ufr_edge.runtime.video.source import SourceFrame, VideoInfo
from ufr_edge.runtime.video.synthetic import Motion, SyntheticScene
from ufr_edge.runtime.video.writer import EncodeConfig, VideoWriter

Look = Callable[[Frame, np.random.Generator], Frame]
"""What a camera does to a clean frame, with the noise of that moment."""

FACE_SIDE = 512  # px of the aligned face that the presets speak of
MOTION = Motion(zoom=(0.85, 0.95), pan=0.02, turn=5.0)
_CRF = 12


@dataclass(frozen=True, kw_only=True)
class People:
    """Nobody is in two of these. earlier: whom the base was calibrated on; passing: before the live camera;
    unseen: kept out of everything, to measure on."""

    earlier: tuple[Frame, ...]
    passing: tuple[Frame, ...]
    unseen: tuple[Frame, ...]


def share_out(earlier: int, passing: int, unseen: int) -> People:
    """Share the shipped generated faces out, always the same way. Raises InputFileError when there are too few."""
    paths = sorted((FACES / "camera").glob("*.jpg"))
    wanted = earlier + passing + unseen
    if wanted > len(paths) or min(earlier, passing, unseen) < 2:
        msg = f"The demo ships {len(paths)} people; {earlier} + {passing} + {unseen} (2 or more each) cannot be had."
        raise InputFileError(msg)
    order = np.random.default_rng(0).permutation(len(paths))[:wanted]
    mixed = tuple(read_image(paths[i]) for i in order)
    return People(
        earlier=mixed[:earlier], passing=mixed[earlier : earlier + passing], unseen=mixed[earlier + passing :]
    )


@dataclass(frozen=True, kw_only=True)
class Site:
    """size: of the frames, (width, height). rate: frames per second. seed: the cameras' light, noise and movement."""

    size: tuple[int, int] = (640, 360)
    rate: int = 15
    seed: int = 7

    @property
    def face_px(self) -> float:
        """About what an aligned face measures in these frames: that of a 288 px picture shown at 0.9 of the fit."""
        return 0.9 * min(self.size[0] / 2, self.size[1])

    def look(self, preset: str) -> Look:
        """One camera of a preset: its settings are drawn once, where it can say them; only the noise is always new.

        A raw sensor gets so many pixels that a face has as many as the preset gives it.
        """
        degradation = get_preset(preset)
        if isinstance(degradation, RawSensor):
            on_face = FACE_SIDE / degradation.scale
            scale = max(1.0, self.face_px / on_face)
            whole = RawSensor(iso=degradation.iso, scale=scale, reference_side=None)
            return whole.fixed(self.seed)
        return _held(degradation, self.seed) if isinstance(degradation, Classic) else degradation


def _held(degradation: Classic, seed: int) -> Look:
    params = degradation.sample(np.random.default_rng(seed))
    return lambda frame, rng: degradation.apply(frame, params, rng)


class Doorway:
    """Frames of two people at a time, each pair shown for `frames_each` frames. The same arguments, the same frames."""

    def __init__(
        self, people: Sequence[Frame], site: Site, look: Look, *, frames_each: int, take: int
    ) -> None:
        """Raises ConfigError for fewer than 2 people, or a wrong size."""
        if len(people) < 2 or site.size[0] % 4:
            msg = "A doorway needs 2 people or more, and a width that is a multiple of 4."
            raise ConfigError(msg)
        half, width = len(people) // 2, site.size[0] // 2
        groups = (people[:half], people[half : 2 * half])
        self._site, self._look, self._take = site, look, take
        self._halves = tuple(
            SyntheticScene(
                group,
                size=(width, site.size[1]),
                frames=frames_each * half,
                seed=site.seed + 100 * take + side,
                motion=MOTION,
            )
            for side, group in enumerate(groups)
        )

    def __len__(self) -> int:
        return len(self._halves[0])

    def clean(self, index: int) -> Frame:
        """Frame `index` as a perfect camera would see it."""
        return np.concatenate([scene.clean(index) for scene in self._halves], axis=1)

    def frame(self, index: int) -> Frame:
        """Frame `index` as this camera gives it."""
        return self._look(self.clean(index), np.random.default_rng((self._site.seed, self._take, index)))


def film_clip(scene: Doorway, path: Path, site: Site) -> Path:
    """Film a scene into a video file; the codec is a part of either camera."""
    base = Fraction(1, site.rate)
    info = VideoInfo(
        name=path.name,
        width=site.size[0],
        height=site.size[1],
        rate=Fraction(site.rate),
        time_base=base,
        frames=len(scene),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = VideoWriter(path, info, size=site.size, config=EncodeConfig(crf=_CRF))
    for index in range(len(scene)):
        writer.write(SourceFrame(index=index, pts=index, time_base=base, image=scene.frame(index)))
    writer.finish()
    return path


@dataclass(frozen=True, kw_only=True)
class Reel:
    """Two clips laid end to end as one source: the first `before` times, then the second `after` times."""

    first: Doorway
    second: Doorway
    before: int
    after: int

    @property
    def switch(self) -> int:
        """The first frame of the second camera."""
        return self.before * len(self.first)

    def clean(self, index: int) -> Frame:
        """Frame `index` of the source as a perfect camera would see it."""
        if index < self.switch:
            return self.first.clean(index % len(self.first))
        return self.second.clean((index - self.switch) % len(self.second))

    def lay(self, first: Path, second: Path, folder: Path) -> str:
        """Put the clips into `folder` in order, each as often as it is played; returns the source's address."""
        folder.mkdir(parents=True)
        for number in range(self.before + self.after):
            clip = first if number < self.before else second
            _same_file(clip, folder / f"{number:04d}-{clip.name}")
        return str(folder / "*.mp4")


def _same_file(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)
