"""The published recipes by name, as settings of every stage (paper.md sections 2, 3, 6 and 7; statements 12-15).

One deviation: the brief's built-in SwinIR route hands the restorer's output to the sampler as floats, while here it is
rounded to 8 bits first, as the brief's route over files does (an error of at most 0.002 of the range, far below the
noise the chain starts from).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from ufr_edge.adaptation.adapt import AdaptConfig
from ufr_edge.adaptation.finetune import FinetuneConfig
from ufr_edge.adaptation.qa import QaConfig
from ufr_edge.adaptation.restorer_task import NO_LOSSES, CodeWeights, LossWeights, RestorerTraining
from ufr_edge.adaptation.targets import TargetsConfig
from ufr_edge.errors import ConfigError
from ufr_edge.priors.sampler import LIGHT_TOUCH, PAPER_CODEFORMER, PAPER_SWINIR

PAPER_PRIOR = "iddpm-ffhq-512"

_TARGETS = TargetsConfig(
    restorer="swinir-face-gan",
    prior=PAPER_PRIOR,
    sampler=PAPER_SWINIR,
    qa=QaConfig(judge=False),  # the paper keeps every target
    seed=10_000,
)

SWINIR = AdaptConfig(
    targets=_TARGETS,
    finetune=FinetuneConfig(
        restorer=_TARGETS.restorer,
        prior=PAPER_PRIOR,
        batch=16,
        flip=False,
        training=RestorerTraining(
            steps=20_000,
            lr=2e-5,
            lr_end=5e-6,
            optimizer="adamw",
            beta2=0.999,
            accumulate=4,
            precision="fp32",
            discriminator="unet",
            discriminator_lr=2e-5,
            discriminator_beta1=0.9,
            discriminator_features=64,
            losses=LossWeights(l1=1.0, lpips=0.4, lpips_net="vgg", prior_features=0.0, adversarial=0.1),
        ),
        seed=10_000,
    ),
)
"""SwinIR: L1 + 0.4 LPIPS (VGG) + 0.1 adversarial, every weight trained, no average, no augmentation."""

CODEFORMER = AdaptConfig(
    targets=dataclasses.replace(_TARGETS, restorer="codeformer", sampler=PAPER_CODEFORMER),
    finetune=FinetuneConfig(
        restorer="codeformer",
        prior=PAPER_PRIOR,
        batch=8,
        flip=True,
        training=RestorerTraining(
            steps=40_000,
            lr=1e-4,
            lr_end=2.5e-5,
            halve_at=(0.875, 0.95),  # steps 35,000 and 38,000
            ema=0.995,
            ema_warmup=False,
            optimizer="adam",
            beta2=0.99,
            precision="fp32",
            losses=NO_LOSSES,
            objective="codes",
            code_losses=CodeWeights(features=1.0, codes=0.5),
        ),
        seed=0,
    ),
)
"""CodeFormer: encoder and code prediction trained on the codes of the targets; the average is kept."""

PRESETS: Mapping[str, AdaptConfig] = MappingProxyType(
    {
        "paper-swinir": SWINIR,
        "paper-codeformer": CODEFORMER,
        "light": AdaptConfig(targets=TargetsConfig(sampler=LIGHT_TOUCH)),
    }
)


def get_preset(name: str | None) -> AdaptConfig:
    """Return the settings of a named recipe, the defaults for None. Raises ConfigError for an unknown name."""
    if name is None:
        return AdaptConfig()
    if name not in PRESETS:
        msg = f"There is no preset {name!r}. Known: {', '.join(PRESETS)}."
        raise ConfigError(msg)
    return PRESETS[name]
