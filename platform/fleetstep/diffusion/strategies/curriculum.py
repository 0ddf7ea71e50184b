"""Laws of noise levels that move as training proceeds: CLTS with the step, TskDif-Cur with the
loss.

Both are reconstructions: see their specs.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fleetstep.diffusion.adaptive import State
from fleetstep.diffusion.noise_levels import NoiseLevels, UniformSteps, WeightedSteps
from fleetstep.diffusion.spec import CltsSpec, DdpmSpec, TskDifCurSpec, ddpm_sigmas
from fleetstep.diffusion.strategies.context import Context

if TYPE_CHECKING:
    from fleetstep.diffusion.objective import Objective


@dataclass(frozen=True)
class GaussianCurriculum:
    """CLTS: step i of DDPM with probability (1 - l) / T + l g_i (Xu et al. 2024).

    g is the density of N(mean T, (std T)^2) at the steps, divided by its sum: the Gaussian, cut to
    the steps there are. l grows from 0 to 1 over `window` and stays there.

    Args:
        sigmas: the levels of the steps, ascending.
        mean, std: of the Gaussian, as shares of T.
        window: optimiser steps; 0 is the Gaussian from the start.
    """

    sigmas: tuple[float, ...]
    mean: float
    std: float
    window: int

    def __call__(self, step: int) -> NoiseLevels:
        """The law at an optimiser step, from 0."""
        if step >= self.window:
            return self._last
        if step == 0:
            return UniformSteps(self.sigmas)
        return self._mixed(step / self.window)

    def _mixed(self, share: float) -> WeightedSteps:
        pmf = (1 - share) / len(self.sigmas) + share * self._gaussian
        return WeightedSteps(self.sigmas, tuple(pmf.tolist()))

    @cached_property
    def _last(self) -> WeightedSteps:
        return self._mixed(1.0)

    @cached_property
    def _gaussian(self) -> Tensor:
        steps = len(self.sigmas)
        z = (torch.arange(steps, dtype=torch.float64) / steps - self.mean) / self.std
        # Softmax: a Gaussian so narrow that every density underflows is its largest step.
        return torch.softmax(-z.square() / 2, 0)


@dataclass(frozen=True)
class Noisiest:
    """A base law given that its quantile is among the highest `share` of all.

    A step of DDPM that the boundary cuts keeps the part of its probability that lies above.

    Args:
        base: the law that is cut.
        share: in (0, 1).
    """

    base: NoiseLevels
    share: float

    def icdf(self, u_B: Tensor) -> Tensor:
        """The base's level at quantile 1 - share (1 - u)."""
        # Rounding to 1 would ask for an infinite level.
        return self.base.icdf((1 - self.share * (1 - u_B)).clamp(max=1 - 2.0**-53))

    def cdf(self, sigma_B: Tensor) -> Tensor:
        """Share of the upper part that is at or below sigma."""
        return (1 - (1 - self.base.cdf(sigma_B)) / self.share).clamp(min=0)


@dataclass(frozen=True)
class EasyToHard:
    """TskDif-Cur: denoising is easiest at high noise, where training begins (Kim et al. 2024).

    Of `clusters` equal shares of the law, the noisiest is open at first. Each time the mean loss
    of the global batch has not fallen below its best for `patience` optimiser steps, the next
    share is opened and the best forgotten, for the losses of a new share are others. With all
    shares open the law is the base law itself and the state rests.

    State: `shares` open, the `best` loss since the last was opened, steps `waited` since then.

    Args:
        clusters: N >= 2.
        patience: optimiser steps >= 1.
    """

    clusters: int
    patience: int

    def start(self) -> State:
        """One share open, and nothing seen."""
        return self._opened(1)

    def law(self, base: NoiseLevels, state: State) -> NoiseLevels:
        """The base's open shares."""
        if state["shares"] == self.clusters:
            return base
        return Noisiest(base, state["shares"] / self.clusters)

    def weights(self, first: int, count: int, state: State) -> Tensor:
        """One."""
        return torch.ones(count, dtype=torch.float64)

    def sums(self, loss_B: Tensor, first: int) -> Tensor:
        """Sum of the losses, and their number."""
        return torch.tensor([loss_B.double().sum().item(), len(loss_B)], dtype=torch.float64)

    def update(self, state: State, sums_S: Tensor) -> State:
        """A better loss is kept; after `patience` steps without one the next share is opened."""
        if state["shares"] == self.clusters:
            return state
        total, count = sums_S.tolist()
        if total / count < state["best"]:
            return {**state, "best": total / count, "waited": 0}
        if state["waited"] + 1 < self.patience:
            return {**state, "waited": state["waited"] + 1}
        return self._opened(state["shares"] + 1)

    def metrics(self, state: State) -> Mapping[str, float]:
        """Shares that are open."""
        return {"curriculum/shares": float(state["shares"])}

    def _opened(self, shares: int) -> State:
        # The largest number, for JSON has no infinity: any loss is below it.
        return {"shares": shares, "best": sys.float_info.max, "waited": 0}


def apply(spec: CltsSpec | TskDifCurSpec, objective: Objective, context: Context) -> Objective:
    """Let the law follow the step (CLTS) or the losses (TskDif-Cur)."""
    match spec:
        case CltsSpec():
            process = context.process
            assert isinstance(process, DdpmSpec)  # check_strategies
            sigmas = ddpm_sigmas(process.schedule, process.steps)
            law_at = GaussianCurriculum(sigmas, spec.mean, spec.std, context.steps(spec.window))
            return dataclasses.replace(objective, law_at=law_at)
        case TskDifCurSpec():
            return dataclasses.replace(
                objective, adaptive=EasyToHard(spec.clusters, spec.patience)
            )
