"""SpeeD: fewer noise levels where little is left to learn, more weight where the process changes.

Asymmetric sampling wraps the law (SpeeD, eq. 3); change-aware weights multiply the loss (2.6), and
not the bound of a learned variance. Neither is corrected for by importance. Beyond DDPM's uniform
steps both are carried to quantiles of the process's law: for a uniform law in time they are the
paper's. What the released code adds is off unless asked for: pairs of reflected levels, and a
weight of its own above the threshold.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fleetstep.diffusion.change import (
    U_MAX,
    U_MIN,
    Change,
    MomentumSchedule,
    QuantileChange,
    SigmaDot,
    closed_form_change,
    step_change,
)
from fleetstep.diffusion.coupling import QuantileReflection, ReflectedPairs, StepReflection
from fleetstep.diffusion.noise_levels import (
    Asymmetric,
    LogNormal,
    LogUniform,
    NoiseLevels,
    UniformTime,
)
from fleetstep.diffusion.process import Ddpm
from fleetstep.diffusion.spec import DdpmSpec, ProcessSpec, SpeedSpec, reference_std
from fleetstep.diffusion.spec.thresholds import (
    reflection_step,
    threshold_quantile,
    threshold_sigma,
)
from fleetstep.diffusion.strategies.context import Context
from fleetstep.diffusion.strategies.fdm import MomentumInputScaling
from fleetstep.diffusion.tables import Table
from fleetstep.diffusion.weighting import Weighting

if TYPE_CHECKING:
    from fleetstep.diffusion.objective import Objective

# Points on which the extremes of a continuous change are found, and midpoints of a mean.
_POINTS, _MIDPOINTS = 1024, 65_536


def min_max_weight(change: Tensor, low: float, high: float, lam: float) -> Tensor:
    """Weights in [1-lam, lam], linear in the change from `low` to `high` (SpeeD, section 2.6).

    A change that is constant up to rounding has no order to follow, nor has one whose anchors are
    out of order: the weight is 1/2, the middle of the range.
    """
    if high - low <= 1e-12 * abs(high):
        return torch.full_like(change, 0.5)
    return (1 - lam) + (2 * lam - 1) * ((change - low) / (high - low)).clamp(0, 1)


@dataclass(frozen=True)
class Tail:
    """A weight in place of the change-aware one, at noise levels above `sigma`."""

    sigma: float
    weight: float


@dataclass(frozen=True)
class ChangeAware:
    """Weights of a continuous process by its change.

    Args:
        change: g of a noise level.
        lam: weights lie in [1-lam, lam].
        low, high: the changes whose weights are 1-lam and lam.
        tail: what overrides them above the threshold, if anything does.
        mean: by which all are divided.
    """

    change: Change
    lam: float
    low: float
    high: float
    tail: Tail | None = None
    mean: float = 1.0

    def __call__(self, sigma_B: Tensor) -> Tensor:
        """Weights of noise levels > 0, float64 [B]."""
        weight_B = min_max_weight(self.change(sigma_B), self.low, self.high, self.lam)
        if self.tail is not None:
            weight_B = torch.where(sigma_B > self.tail.sigma, self.tail.weight, weight_B)
        return weight_B / self.mean


@dataclass(frozen=True)
class StepWeights:
    """A weight of every step of DDPM.

    Args:
        process: which finds the step of a level.
        weights: of steps 0 .. T-1.
    """

    process: Ddpm
    weights: tuple[float, ...]

    def __call__(self, sigma_B: Tensor) -> Tensor:
        """Weights of the steps nearest to noise levels > 0, float64 [B]."""
        return self._table.on(sigma_B.device)[self.process.index_of(sigma_B)]

    @cached_property
    def _table(self) -> Table:
        return Table(self.weights)


def apply(spec: SpeedSpec, objective: Objective, context: Context) -> Objective:
    """Wrap the law, tie the pairs and add the multiplier, as far as the spec has them on."""
    process, law = context.process, objective.noise_levels
    changed = objective
    if spec.weighting:
        weight = _weight(spec, objective, process)
        changed = dataclasses.replace(changed, multipliers=(*objective.multipliers, weight))
    if spec.reflected_pairs:
        changed = dataclasses.replace(changed, coupling=_pairs(spec, objective, process))
    # k = 1 is the base law itself, to the last bit.
    if spec.sampling and spec.k > 1:
        a = _threshold_share(spec, objective, process)
        changed = dataclasses.replace(changed, noise_levels=Asymmetric(law, spec.k, a))
    return changed


def _threshold_share(spec: SpeedSpec, objective: Objective, process: ProcessSpec) -> float:
    """The threshold as a share of the law that is wrapped.

    The threshold is a noise level of the process; where another strategy has replaced the
    process's law, it cuts off another share.
    """
    if objective.noise_levels == objective.base_noise_levels:
        return threshold_quantile(process, spec)
    level = torch.tensor([threshold_sigma(process, spec)], dtype=torch.float64)
    return objective.noise_levels.cdf(level).item()


def _pairs(spec: SpeedSpec, objective: Objective, process: ProcessSpec) -> ReflectedPairs:
    if isinstance(process, DdpmSpec):
        assert isinstance(objective.process, Ddpm)
        at = reflection_step(process, spec)
        return ReflectedPairs(StepReflection(objective.process, at))
    assert spec.reflect_at is not None  # check_strategies
    return ReflectedPairs(QuantileReflection(objective.noise_levels, spec.reflect_at))


def _weight(spec: SpeedSpec, objective: Objective, process: ProcessSpec) -> Weighting:
    if isinstance(process, DdpmSpec):
        return _step_weights(spec, objective, process)
    tail = None
    if spec.tail_weight is not None:
        tail = Tail(threshold_sigma(process, spec), spec.tail_weight)
    weight = ChangeAware(*_continuous_change(spec, objective, process), tail)
    if spec.normalize == "none":
        return weight
    # The weights jump at the threshold: a mean over each side converges fast.
    cut = () if tail is None else (threshold_quantile(process, spec),)
    mean = _mean(weight, objective.base_noise_levels, (0.0, *cut, 1.0))
    return dataclasses.replace(weight, mean=mean)


def _continuous_change(
    spec: SpeedSpec, objective: Objective, process: ProcessSpec
) -> tuple[Change, float, float, float]:
    """The change of a continuous process, lam, and the changes that get weights 1-lam and lam."""
    if spec.change == "sigma_dot":
        dot = _sigma_dot(objective)
        ends = (objective.process.sigma_min, objective.process.sigma_max)
        low, high = (math.log(end) for end in ends)
        g = dot(torch.linspace(low, high, _POINTS, dtype=torch.float64).exp())
        return dot, spec.lam, *_anchors(g)
    law = objective.base_noise_levels
    assert isinstance(law, LogNormal | LogUniform | UniformTime)
    change = QuantileChange.of(law, reference_std(process, spec))
    g = change(law.icdf(torch.linspace(U_MIN, U_MAX, _POINTS, dtype=torch.float64)))
    return change, spec.lam, g.min().item(), g.max().item()


def _step_weights(spec: SpeedSpec, objective: Objective, process: DdpmSpec) -> StepWeights:
    ddpm = objective.process
    assert isinstance(ddpm, Ddpm)
    form = spec.change or ("closed_form" if process.schedule == "linear" else "finite_difference")
    match form:
        case "closed_form":
            g = closed_form_change(process)
        case "finite_difference":
            g = step_change(ddpm, 1.0)
        case "quantile":
            g = step_change(ddpm, reference_std(process, spec))
        case "sigma_dot":
            g = SigmaDot(ddpm)(ddpm.table)
    # The closed form lies within (0, 1), where the paper's anchors are the extremes.
    low, high = _anchors(g) if form == "sigma_dot" else _extremes(g)
    weight = min_max_weight(g, low, high, spec.lam)
    if spec.tail_weight is not None:
        weight = weight.where(ddpm.table <= threshold_sigma(process, spec), spec.tail_weight)
    if spec.normalize == "mean_one":
        weight = weight / weight.mean()
    return StepWeights(ddpm, tuple(weight.tolist()))


def _sigma_dot(objective: Objective) -> SigmaDot:
    coefficients = objective.coefficients
    if isinstance(coefficients, MomentumInputScaling):
        return SigmaDot(MomentumSchedule(coefficients.mean))
    return SigmaDot(objective.process)


def _extremes(g: Tensor) -> tuple[float, float]:
    return g.min().item(), g.max().item()


def _anchors(g: Tensor) -> tuple[float, float]:
    """The paper's ends of the scale, max(0, min g) and min(1, max g)."""
    low, high = _extremes(g)
    return max(0.0, low), min(1.0, high)


def _mean(weight: Weighting, law: NoiseLevels, cuts: tuple[float, ...]) -> float:
    """Mean of a weight over a law, by midpoints between each two neighbouring quantiles."""
    middle = (torch.arange(_MIDPOINTS, dtype=torch.float64) + 0.5) / _MIDPOINTS
    return sum(
        (high - low) * weight(law.icdf(low + (high - low) * middle)).mean().item()
        for low, high in pairwise(cuts)
    )
