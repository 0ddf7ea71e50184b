"""How weights start: laws whose numbers are addressed by (seed, name), never drawn in order.

So a start depends on neither torch's global generator, nor its version, nor the order in which
layers are made.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from fleetstep import rng


@dataclass(frozen=True)
class Xavier:
    """gain * U(-b, b), b = sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010, eq. 16)."""

    gain: float = 1.0

    def fill(self, weight: Tensor, seed: int, purpose: str) -> None:
        """Fill the weight, [out, in, ...], in place."""
        kernel = math.prod(weight.shape[2:])
        bound = math.sqrt(6 / (kernel * (weight.shape[0] + weight.shape[1])))
        weight.copy_(bound * _symmetric(weight, seed, purpose))
        weight.mul_(self.gain)


@dataclass(frozen=True)
class FanIn:
    """U(-b, b), b = 1 / sqrt(fan_in): a sum over the inputs has a third of their mean square."""

    def fill(self, weight: Tensor, seed: int, purpose: str) -> None:
        """Fill the weight, [out, in, ...], in place."""
        bound = 1 / math.sqrt(weight[0].numel())
        weight.copy_(bound * _symmetric(weight, seed, purpose))


@dataclass(frozen=True)
class Normal:
    """N(0, std^2)."""

    std: float

    def fill(self, weight: Tensor, seed: int, purpose: str) -> None:
        """Fill the weight, of any shape, in place."""
        weight.copy_(self.std * _filled(rng.draw, weight, seed, purpose))


@dataclass(frozen=True)
class Zero:
    """All zeros: a branch that starts absent."""

    def fill(self, weight: Tensor, seed: int, purpose: str) -> None:
        """Fill the weight, of any shape, in place."""
        weight.zero_()


Start: TypeAlias = Xavier | FanIn | Normal | Zero


def _symmetric(weight: Tensor, seed: int, purpose: str) -> Tensor:
    return 2 * _filled(rng.uniform, weight, seed, purpose) - 1


def _filled(numbers: Callable[..., object], weight: Tensor, seed: int, purpose: str) -> Tensor:
    count = weight.numel()
    # One block of positions, each as long as needed: a position a weight would cost one generator
    # per 32 weights.
    drawn = numbers(seed, purpose, 0, rng.BLOCK, (-(-count // rng.BLOCK),))
    return torch.as_tensor(drawn).reshape(-1)[:count].view(weight.shape)
