"""The sampler chosen from the faces: the rule, on stand-ins for a prior."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from training_fakes import make_faces

from ufr_edge.adaptation.choose import RUNGS, ChooseConfig, CleanLevels, choose_sampler
from ufr_edge.adaptation.dial import curve_points, dial
from ufr_edge.adaptation.finetune import FinetuneConfig
from ufr_edge.adaptation.restorer_task import LossWeights
from ufr_edge.errors import ConfigError
from ufr_edge.priors.lowpass import filter_scale, least_filter, lowpass_matrix
from ufr_edge.priors.sampler import LIGHT_TOUCH, SamplerConfig

Images = NDArray[np.uint8]
LEVELS = CleanLevels(noise=4.0, noise_chroma=4.0, detail=0.0)


def smooth_faces(count: int, side: int = 128) -> Images:
    """Gentle gradients, uint8 (count, side, side, 3): without noise, and with next to no texture."""
    rng = np.random.default_rng(3)
    coarse = rng.integers(90, 160, (count, 2, 2, 3)).astype(np.uint8)
    return np.stack([cv2.resize(c, (side, side), interpolation=cv2.INTER_LINEAR) for c in coarse])


class World:
    """Targets whose noise falls with the start, and whose colours drift with it unless they are held to the end."""

    def __init__(self, *, noise: float = 20.0, fall: float = 0.2, drift: float = 0.0) -> None:
        self.clean = smooth_faces(6)
        self.noise, self.fall, self.drift = noise, fall, drift
        self.asked: list[SamplerConfig] = []

    def sample(self, sampler: SamplerConfig) -> Images:
        self.asked.append(sampler)
        sigma = max(0.0, self.noise - self.fall * sampler.start)
        shift = 0.0 if sampler.tail_filter_n else self.drift * sampler.start
        rng = np.random.default_rng(0)
        noisy = self.clean + rng.normal(0, max(sigma, 0.01), self.clean.shape) + shift
        return np.clip(noisy, 0, 255).astype(np.uint8)


def starts(world: World) -> list[int]:
    return [sampler.start for sampler in world.asked]


def test_the_nearest_start_that_looks_clean_is_taken() -> None:
    world = World()
    choice = choose_sampler(world.clean, world.sample, LIGHT_TOUCH, ChooseConfig(), levels=LEVELS)
    assert (choice.sampler.start, choice.sampler.filter_n) == (90, 8)
    assert choice.rungs[-1].clean and not choice.rungs[-2].clean
    assert starts(world) == [30, 60, 90]
    assert "the first" in choice.reason and len(choice.lines()) == 1 + len(choice.rungs) + 1
    # Probing takes few calls; the choice has those that were asked for.
    assert {s.fast_steps for s in world.asked} == {20} and choice.sampler.fast_steps is None


def test_colours_that_drift_are_held_or_end_the_climb() -> None:
    world = World(drift=0.05)
    choice = choose_sampler(world.clean, world.sample, LIGHT_TOUCH, ChooseConfig(), levels=LEVELS)
    assert choice.sampler.start == 90 and choice.sampler.tail_filter_n is not None
    rejected = [rung for rung in choice.rungs if not rung.colours_stay]
    assert rejected and all(rung.sampler.tail_filter_n is None for rung in rejected)


def test_where_nothing_looks_clean_the_nearest_to_it_is_taken() -> None:
    world = World(noise=20.0, fall=0.04)
    choice = choose_sampler(world.clean, world.sample, LIGHT_TOUCH, ChooseConfig(), levels=LEVELS)
    assert choice.sampler.start == 150 and "no start looks clean" in choice.reason
    assert len(choice.rungs) == len(RUNGS)


@pytest.mark.parametrize(
    ("side", "asked"), [(64, {8, 16}), (96, {16}), (192, {8, 16}), (256, {4, 8, 16}), (320, {8, 16})]
)
def test_no_n_is_asked_for_that_does_not_scale_to_the_side(side: int, asked: set[int]) -> None:
    faces = smooth_faces(1, side)
    tried: list[SamplerConfig] = []

    def drifting(sampler: SamplerConfig) -> Images:
        """Colours go whatever is held, so that every form of every rung is tried; filters are made as in the sampler."""
        for n in filter(None, (sampler.filter_n, sampler.tail_filter_n)):
            lowpass_matrix(side, filter_scale(n, side))
        tried.append(sampler)
        return faces + np.uint8(20)

    choice = choose_sampler(faces, drifting, LIGHT_TOUCH, ChooseConfig(), levels=LEVELS)
    assert {sampler.filter_n for sampler in tried} == asked
    assert len(set(tried[:-1])) == len(tried) - 1  # the last is the lightest again, held to the end
    assert choice.sampler.filter_n == (16 if side == 96 else 8) and choice.sampler.tail_filter_n is not None


def test_the_least_filter_is_n_itself_or_the_first_doubling_that_fits() -> None:
    found = [least_filter(n, side) for n, side in ((4, 256), (4, 192), (4, 320), (8, 96), (1, 512), (3, 192))]
    assert found == [4, 8, 8, 16, 1, 24]


def test_levels_are_measured_on_clean_faces() -> None:
    clean = make_faces(12, seed=4)
    noisy = np.clip(clean + np.random.default_rng(0).normal(0, 10, clean.shape), 0, 255).astype(np.uint8)
    assert CleanLevels.of(clean).noise < CleanLevels.of(noisy).noise
    assert CleanLevels.of(clean).detail < CleanLevels.of(noisy).detail
    with pytest.raises(ConfigError):
        ChooseConfig(probe=0)


def test_the_dial_goes_from_the_papers_start_over_the_defaults_to_several_samples() -> None:
    settings = [dial(f) for f in (0, 0.25, 0.5, 0.75, 1)]
    assert (settings[0].start, settings[0].hold_until) == (150, 90)
    assert [s.start for s in settings] == sorted((s.start for s in settings), reverse=True)
    assert [s.samples for s in settings] == sorted(s.samples for s in settings)
    assert [s.adversarial for s in settings] == sorted((s.adversarial for s in settings), reverse=True)
    defaults = FinetuneConfig().training.losses
    assert dial(0.5).sampler(LIGHT_TOUCH) == LIGHT_TOUCH and dial(0.5).losses(defaults) == defaults
    assert dial(0.0).losses(LossWeights(adversarial=0.0)).adversarial == 0
    fast = dial(1).sampler(SamplerConfig(start=60, hold_until=10, fast_steps=30))
    assert (fast.start, fast.fast_steps, fast.samples_per_image) == (80, 40, 4)
    with pytest.raises(ConfigError, match="0 \\(realism\\)"):
        dial(1.5)


def test_the_dials_curve_needs_no_truth() -> None:
    unknown = [{"fidelity": 0.5, "high_frequency_energy": 9.0, "input_consistency_db": 30.0}]
    assert curve_points(unknown) == ("high_frequency_energy", "input_consistency_db", [(9.0, 30.0, 0.5)])
    known = [{**unknown[0], "psnr_db": 25.0, "prior_feature_distance": 0.2}]
    assert curve_points(known) == ("prior_feature_distance", "psnr_db", [(0.2, 25.0, 0.5)])
