"""What every restorer can do, whoever made it: the edge family's and those of other checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from ufr_edge.errors import ShapeError
from ufr_edge.restorers.edge import InputSpec


@runtime_checkable
class Restorer(Protocol):
    """A blind face restorer: RGB float (B, 3, H, W) in [0, 1] in, the same shape out, unclamped.

    Every one is an `nn.Module` too (see `RestorerModule`, the type to use where weights are trained or copied).
    """

    input_spec: InputSpec

    def __call__(self, image: Tensor) -> Tensor:
        """Restore. Raises ShapeError unless `input_spec` fits."""
        ...


class RestorerModule(nn.Module):
    """The base of restorers that are no `EdgeUNet`: a module with an `input_spec`."""

    input_spec: InputSpec

    def forward(self, image: Tensor) -> Tensor:
        """Restore (see `Restorer`)."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class FixedInputSpec(InputSpec):
    """One size only: `side` x `side` pixels."""

    side: int

    def check(self, height: int, width: int) -> None:
        """Raise ShapeError unless both sides are `side`."""
        if (height, width) != (self.side, self.side):
            msg = f"This restorer takes {self.side}x{self.side} faces only; got {height}x{width}. Align to that side."
            raise ShapeError(msg)


def fixed(side: int) -> FixedInputSpec:
    """Return the spec of a restorer that takes one side only."""
    return FixedInputSpec(side=side, multiple_of=side, minimum=side)
