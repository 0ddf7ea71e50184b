"""How the draws of several samples are tied together, by their positions in the stream.

A tie is between positions, never between samples of a batch, so that it does not depend on
workers, micro-batches or failures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fleetstep import rng
from fleetstep.diffusion.noise_levels import NoiseLevels
from fleetstep.diffusion.process import Ddpm

_PURPOSE = "noise-level"


class Coupling(Protocol):
    """Where a sample's noise level comes from."""

    def uniforms(self, seed: int, first: int, count: int) -> Tensor:
        """Uniform numbers in (0, 1) of stream positions first .. first+count-1, float64, on CPU;
        the law turns them into levels.
        """

    def tied(self, sigma_B: Tensor, first: int) -> Tensor:
        """The levels of these positions once the law has given theirs."""


@dataclass(frozen=True)
class Independent:
    """Every position draws for itself."""

    def uniforms(self, seed: int, first: int, count: int) -> Tensor:
        """One number a position."""
        return torch.from_numpy(rng.uniform(seed, _PURPOSE, first, count))

    def tied(self, sigma_B: Tensor, first: int) -> Tensor:
        """As the law gave them."""
        return sigma_B


@dataclass(frozen=True)
class Strata:
    """Position p draws from share p mod K of its law, so that K neighbours cover the law.

    Args:
        count: K equal shares.
    """

    count: int

    def uniforms(self, seed: int, first: int, count: int) -> Tensor:
        """(p mod K + u_p) / K."""
        u_B = Independent().uniforms(seed, first, count)
        stratum_B = torch.arange(first, first + count) % self.count
        # The sum can round to K, whose quantile 1 is an infinite level.
        return ((stratum_B + u_B) / self.count).clamp(max=1 - 2.0**-53)

    def tied(self, sigma_B: Tensor, first: int) -> Tensor:
        """As the law gave them."""
        return sigma_B


class Reflection(Protocol):
    """A map of noise levels that sends high ones low and the lowest to the middle."""

    def __call__(self, sigma_B: Tensor) -> Tensor:
        """The reflected levels, float64 [B]."""


@dataclass(frozen=True)
class StepReflection:
    """Step i of DDPM becomes step |M - i| (SpeeD, as released).

    Args:
        process: whose steps are reflected.
        at: M, in 1 .. T.
    """

    process: Ddpm
    at: int

    def __call__(self, sigma_B: Tensor) -> Tensor:
        """Levels of the reflected steps, never beyond the last."""
        mirror_B = (self.process.index_of(sigma_B) - self.at).abs()
        table = self.process.table.to(sigma_B.device)
        return table[mirror_B.clamp(max=self.process.steps - 1)]


@dataclass(frozen=True)
class QuantileReflection:
    """Quantile v of a law becomes |m - v|: `StepReflection` beyond steps.

    Args:
        law: a continuous law.
        at: m, in (0, 1).
    """

    law: NoiseLevels
    at: float

    def __call__(self, sigma_B: Tensor) -> Tensor:
        """Levels of the reflected quantiles."""
        mirror_B = (self.law.cdf(sigma_B) - self.at).abs()
        # Quantile 0 may be a level of 0.
        return self.law.icdf(mirror_B.clamp(min=2.0**-53))


@dataclass(frozen=True)
class ReflectedPairs:
    """Positions 2j and 2j+1 share a draw: the second has the reflection of the first's level.

    In SpeeD's released code, where the second half of a batch reflects the first, and not in the
    paper. A level's probability becomes the average of its law's and of the reflected law's.

    Args:
        reflection: of a level.
    """

    reflection: Reflection

    def uniforms(self, seed: int, first: int, count: int) -> Tensor:
        """The number of the even position, for both of a pair."""
        start = first - first % 2
        u_B = Independent().uniforms(seed, start, first - start + count)
        position_B = torch.arange(first, first + count)
        return u_B[position_B - position_B % 2 - start]

    def tied(self, sigma_B: Tensor, first: int) -> Tensor:
        """The reflection, at odd positions."""
        position_B = torch.arange(first, first + len(sigma_B), device=sigma_B.device)
        return torch.where(position_B % 2 == 1, self.reflection(sigma_B), sigma_B)
