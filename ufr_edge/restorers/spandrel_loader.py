"""SwinIR, GFPGAN, RestoreFormer and CodeFormer through spandrel, behind the contract of our own restorers.

spandrel (MIT) detects the hyper-parameters from the tensors; what value range a network wants, and which of its
outputs is the picture, is settled here.
"""

from __future__ import annotations

import importlib
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ufr_edge.errors import ModelFileError, ShapeError
from ufr_edge.optional import require
from ufr_edge.restorers.checkpoints import StateDict, first_misfit
from ufr_edge.restorers.edge import InputSpec
from ufr_edge.restorers.gfpgan import use_constant_weights
from ufr_edge.restorers.protocol import RestorerModule, fixed

EXPECTED = "a face restorer: SwinIR with an unshuffle head, GFPGAN, RestoreFormer or CodeFormer"


class SpandrelRestorer(RestorerModule):
    """A network of spandrel's behind our contract: RGB float (B, 3, H, W) in [0, 1] to the same, unclamped.

    `network` is spandrel's module; `arch` names it; `side` is the face side it was made for, in pixels.
    `idle`: its parameters that no gradient of the restored face reaches, as patterns of keys. They are frozen here:
    several processes that train together would wait for their gradients.
    """

    arch: str
    idle: tuple[str, ...] = ()

    def __init__(self, network: nn.Module, *, side: int, input_spec: InputSpec) -> None:
        super().__init__()
        self.network, self.side, self.input_spec = network, side, input_spec
        for key, parameter in network.named_parameters():
            if any(fnmatchcase(key, pattern) for pattern in self.idle):
                parameter.requires_grad_(False)

    def forward(self, image: Tensor) -> Tensor:
        """Restore. Raises ShapeError unless `input_spec` fits (checked outside of tracing only)."""
        if not torch.compiler.is_compiling():
            if image.ndim != 4 or image.shape[1] != 3:
                msg = f"A restorer takes RGB (B, 3, H, W); got {tuple(image.shape)}."
                raise ShapeError(msg)
            self.input_spec.check(image.shape[2], image.shape[3])
        return self._restore(image)

    def _restore(self, image: Tensor) -> Tensor:
        raise NotImplementedError

    def file_state(self) -> StateDict:
        """The weights under the keys of the original release, so that every tool that reads that file reads ours."""
        return dict(self.network.state_dict())


class SwinIRRestorer(SpandrelRestorer):
    """SwinIR with an unshuffle head (paper.md section 5): [0, 1] in and out, stochastic depth 0.1 in train mode."""

    arch = "swinir"

    def __init__(self, network: Any, *, side: int) -> None:
        # A plain tensor that `forward` assigns to: as a buffer it follows the device, and can be exported.
        mean = network.__dict__.pop("mean")
        network.register_buffer("mean", mean, persistent=False)
        step = int(network.window_size) * int(network.start_unshuffle)
        super().__init__(network, side=side, input_spec=InputSpec(multiple_of=step, minimum=step))

    def _restore(self, image: Tensor) -> Tensor:
        out: Tensor = self.network(image)
        return out

    def file_state(self) -> StateDict:
        """As the release: the first convolution stands behind the unshuffling, as `conv_first.1`."""
        state = super().file_state()
        if int(self.network.start_unshuffle) == 1:  # type: ignore[arg-type]
            return state
        return {key.replace("conv_first.", "conv_first.1.", 1): tensor for key, tensor in state.items()}


class GFPGANRestorer(SpandrelRestorer):
    """GFPGAN (clean): [-1, 1] inside. The noise stored in the file is used, so one face has one result."""

    arch = "gfpgan"
    # The U-Net's own pictures, and the way from a random code to a style: the styles come from the face.
    idle = ("toRGB.*", "stylegan_decoder.style_mlp.*")

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """As of any module, but for the memory format: the network views its features flat, channels-last ones are not."""
        kwargs.pop("memory_format", None)
        return super().to(*args, **kwargs)

    def _restore(self, image: Tensor) -> Tensor:
        dense = 2 * image.contiguous() - 1
        out: Tensor = self.network(dense, return_rgb=False, randomize_noise=False)[0]
        return (out + 1) / 2


class RestoreFormerRestorer(SpandrelRestorer):
    """RestoreFormer: [-1, 1] inside."""

    arch = "restoreformer"
    idle = ("encoder.*attn*.norm2.*",)  # of a second input, which only the decoder's attention has

    def _restore(self, image: Tensor) -> Tensor:
        out: Tensor = self.network(2 * image - 1)[0]
        return (out + 1) / 2


class CodeFormerRestorer(SpandrelRestorer):
    """CodeFormer: [-1, 1] inside, AdaIN on, fidelity `w` (1 = keep most of the input; the paper uses 0.5)."""

    arch = "codeformer"
    w: float = 0.5
    # The choice of a code passes no gradient on. Training by codes (`freeze_rest`) turns these on again.
    idle = ("position_emb", "feat_emb.*", "ft_layers.*", "idx_pred_layer.*")

    def _restore(self, image: Tensor) -> Tensor:
        out: Tensor = self.network(2 * image - 1, weight=self.w)[0]
        return (out + 1) / 2


def build_from_state(arch: str, state: StateDict, path: Path) -> SpandrelRestorer:
    """Build the network a state dict belongs to and load it strictly, in eval mode.

    `path` is for messages. Raises BackendUnavailableError without spandrel (or, for CodeFormer, without
    spandrel-extra-arches), ModelFileError when the tensors do not fit.
    """
    package, extra, name, finish = _ARCHITECTURES[arch]
    module = import_architecture(f"{package}.architectures.{name}", extra=extra)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            descriptor = getattr(module, f"{name}Arch")().load(dict(state))
    except (RuntimeError, KeyError, ValueError, TypeError, IndexError, ZeroDivisionError, AssertionError) as exc:
        msg = f"{path} looks like {name} but its tensors do not fit: {first_misfit(exc)}"
        raise ModelFileError(msg) from exc
    if descriptor.scale != 1 or (descriptor.input_channels, descriptor.output_channels) != (3, 3):
        msg = (
            f"{path} holds {name} for {descriptor.scale}x super-resolution of {descriptor.input_channels} channels; "
            f"expected {EXPECTED} (RGB, output as large as the input)."
        )
        raise ModelFileError(msg)
    return finish(descriptor.model, state).eval()


def import_architecture(module: str, *, extra: str) -> ModuleType:
    """Import a module of spandrel's. Raises BackendUnavailableError naming the pip command when it is missing.

    spandrel needs torchvision for two functions of networks that are not used here. Where torchvision is missing,
    or from another build family than torch, stand-ins that fail when called take its place during the import.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit.script, at import
        if "spandrel" in sys.modules or _torchvision_loads():
            return require(module, extra=extra)
        with _torchvision_stand_in():
            return require(module, extra=extra)


def _torchvision_loads() -> bool:
    try:
        importlib.import_module("torchvision.transforms.functional")
    except (ImportError, RuntimeError, OSError, AttributeError):
        return False
    return True


@contextmanager
def _torchvision_stand_in() -> Iterator[None]:
    names = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
    before = {name: sys.modules.get(name) for name in names}
    stand_in = ModuleType(names[-1])
    vars(stand_in).update(normalize=_missing, rotate=_missing, InterpolationMode=None)
    try:
        for name in names:
            sys.modules[name] = stand_in
        yield
    finally:
        for name, module in before.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module


def _missing(*_: object, **__: object) -> None:
    msg = "torchvision is not installed; this network needs it."
    raise RuntimeError(msg)


def _swinir(network: Any, state: StateDict) -> SpandrelRestorer:
    mask = state.get("layers.0.residual_group.blocks.1.attn_mask")
    windows = math.isqrt(mask.shape[0]) if mask is not None else 64 // int(network.window_size)
    return SwinIRRestorer(network, side=windows * int(network.window_size) * int(network.start_unshuffle))


def _gfpgan(network: Any, _: StateDict) -> SpandrelRestorer:
    use_constant_weights(network)
    return GFPGANRestorer(network, side=2 ** int(network.log_size), input_spec=fixed(2 ** int(network.log_size)))


def _restoreformer(network: Any, _: StateDict) -> SpandrelRestorer:
    return RestoreFormerRestorer(network, side=512, input_spec=InputSpec(multiple_of=32, minimum=32))


def _codeformer(network: Any, _: StateDict) -> SpandrelRestorer:
    return CodeFormerRestorer(network, side=512, input_spec=fixed(512))


Finish = Callable[[Any, StateDict], SpandrelRestorer]
_ARCHITECTURES: Mapping[str, tuple[str, str, str, Finish]] = MappingProxyType(
    {
        "swinir": ("spandrel", "spandrel", "SwinIR", _swinir),
        "gfpgan": ("spandrel", "spandrel", "GFPGAN", _gfpgan),
        "restoreformer": ("spandrel", "spandrel", "RestoreFormer", _restoreformer),
        "codeformer": ("spandrel_extra_arches", "codeformer", "CodeFormer", _codeformer),
    }
)
ARCHITECTURES = tuple(_ARCHITECTURES)
"""What `build_from_state` builds."""
