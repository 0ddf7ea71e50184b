"""The provably accelerated samplers of Li et al. 2024, and the plain ones they accelerate.

The paper's VP steps are written here for x at noise level s: v = 1 + s^2 = 1 / abar, eps is the
slope dx/ds and the score of x is -eps / s. Of a step from s to s', s+ is the level before s.
Weights come from host levels in float64; differences are taken in forms that do not cancel.

Legend: B batch, C channels, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

from fleetstep.sampling.discrete_schedules import accelerated_level_beyond
from fleetstep.sampling.solvers.ancestral import beta_spread, reverse_steps, square_drop
from fleetstep.sampling.solvers.linear import EpsOutput, Weights, linear_multistep
from fleetstep.sampling.solvers.step import (
    Level,
    Levels,
    Problem,
    State,
    Step,
    slope,
    weighted_sum,
)
from fleetstep.sampling.spec import (
    AcceleratedDdimSpec,
    AcceleratedDdpmSpec,
    AcceleratedScheduleSpec,
)

# Below this u, u - atan(u) is summed as a series: the difference would lose its leading digits.
_SERIES_BELOW = 0.3
_SERIES_TERMS = 16


def accelerated_ddim(levels: Levels, spec: AcceleratedDdimSpec) -> Step:
    """The deterministic samplers; a step to zero is x' = D with one call, whatever the equation.

    The paper's guarantee ends at the first level of its schedule, and extrapolating from there to
    zero has no support: D has.

    Raises:
        SamplingError: equation 15 with first: extend, on too few levels for schedule (13).
    """
    match spec.equation:
        case 8 | 22:
            return linear_multistep(levels, ScoreRule(memory=0 if spec.equation == 8 else 1))
        case 28 | 30:
            return linear_multistep(levels, EpsRule(memory=0 if spec.equation == 28 else 1))
        case 15:
            return _looking_back(levels, _before_first(levels, spec))


def _before_first(levels: Levels, spec: AcceleratedDdimSpec) -> float | None:
    """s+ of the first step of eq. 15, which may be above all that the network has seen."""
    schedule = spec.chosen_schedule
    if spec.first == "extend" and isinstance(schedule, AcceleratedScheduleSpec):
        return accelerated_level_beyond(schedule, sum(level > 0 for level in levels))
    return None


@dataclass(frozen=True)
class ScoreRule(EpsOutput):
    """Eq. 8 (memory 0): Euler in s^2 on the score; eq. 22 (memory 1) with the step before's score.

    x' = x + (v - v')/2 score + (v - v')^2 v+ / (4 v (v+ - v)) (score - score+). The first step of
    eq. 22 is eq. 8's. Host levels only: no learned solver builds on it.
    """

    memory: int

    def weights(self, after: Level, levels: Sequence[Level], position: int, steps: int) -> Weights:
        """Weights of eps at s, and at s+."""
        level, end = float(levels[0]), float(after)
        if end == 0:
            return Weights(None, (-level,))
        if len(levels) == 1:
            return Weights(None, (plain_weight(level, end),))
        before = float(levels[1])
        return Weights(None, score_weights(before, level, end))


def plain_weight(level: float, end: float) -> float:
    """Weight of eps in eq. 8, x' = x + (v - v')/2 score."""
    return -0.5 * square_drop(level, end) / level


def score_weights(before: float, level: float, end: float) -> tuple[float, float]:
    """Weights of eps at s and of eps at s+ in eqs. 15 and 22."""
    v_before, v = 1 + before * before, 1 + level * level
    drop = square_drop(level, end)
    momentum = drop * drop * v_before / (4 * v * square_drop(before, level))
    return plain_weight(level, end) - momentum / level, momentum / before


@dataclass(frozen=True)
class EpsRule(EpsOutput):
    """Eq. 28 (memory 0), which is DDIM; eq. 30 (memory 1): x' = x + (s' - s) eps + w (eps - eps+).

    The first step of eq. 30 is DDIM's. Host levels only: no learned solver builds on it.
    """

    memory: int

    def weights(self, after: Level, levels: Sequence[Level], position: int, steps: int) -> Weights:
        """Weights of eps at s, and at s+."""
        level, end = float(levels[0]), float(after)
        if end == 0 or len(levels) == 1:
            return Weights(None, (end - level,))
        w = eps_momentum(float(levels[1]), level, end)
        return Weights(None, (end - level + w, -w))


def eps_momentum(before: float, level: float, end: float) -> float:
    """w of eq. 30: ((atan s' - atan s) - abar (s' - s)) / (abar - abar+).

    With u = tan(atan s - atan s') = (s - s') / (1 + s s'), the numerator is
    (u - atan u) - s u^2 / (1 + s u). At low noise the first term is at most a third of the second,
    where the printed form subtracts numbers that agree in most of their digits.
    """
    u = (level - end) / (1 + level * end)
    numerator = _beyond_atan(u) - level * u * u / (1 + level * u)
    v_before, v = 1 + before * before, 1 + level * level
    return numerator * v * v_before / square_drop(before, level)


def _beyond_atan(u: float) -> float:
    """u - atan(u), u >= 0, to full relative precision."""
    if u >= _SERIES_BELOW:
        return u - math.atan(u)
    square = u * u
    total = 0.0
    for k in range(_SERIES_TERMS, 0, -1):
        total = 1 / (2 * k + 1) - square * total
    return u * square * total


class _Back(NamedTuple):
    """A step of eq. 15: the level s+, the weight of eps in x-, and those of eps and eps+ in x'."""

    level: float
    weight: float
    final: tuple[float, float]


def _looking_back(levels: Levels, before_first: float | None) -> Step:
    """Eq. 15: from x back to x- at s+, and forth with both scores; two calls a step.

    x- = x - (v+ - v)/2 (v/v+) score. Without a level before the first, that step is eq. 8's.
    """
    befores = (before_first, *levels)
    backs = [
        None if before is None or end == 0 else _back(before, level, end)
        for before, (level, end) in zip(befores, pairwise(levels), strict=False)
    ]

    def step(problem: Problem, state: State) -> State:
        x_BCHW, level, end, back = (
            state.x_BCHW,
            levels[state.i],
            levels[state.i + 1],
            backs[state.i],
        )
        eps_BCHW = slope(problem, x_BCHW, level)
        if back is None:
            weight = -level if end == 0 else plain_weight(level, end)
            return State(state.i + 1, x_BCHW + weight * eps_BCHW)
        behind_BCHW = x_BCHW + back.weight * eps_BCHW
        eps_behind_BCHW = slope(problem, behind_BCHW, back.level)
        moved_BCHW = weighted_sum(back.final, (eps_BCHW, eps_behind_BCHW))
        return State(state.i + 1, x_BCHW + moved_BCHW)

    return step


def _back(before: float, level: float, end: float) -> _Back:
    shrink = (1 + level * level) / (1 + before * before)
    weight = 0.5 * square_drop(before, level) * shrink / level
    return _Back(before, weight, score_weights(before, level, end))


def accelerated_ddpm(levels: Levels, spec: AcceleratedDdpmSpec) -> Step:
    """The stochastic samplers, eqs. 10 and 23; no noise in a step to zero, which is x' = D."""
    inside = spec.noise == "inside"
    if spec.equation == 10:
        return reverse_steps(levels, score_spread if inside else beta_spread)
    return _twice_noised(levels, spec.noise)


def score_spread(before: float, after: float) -> float:
    """sqrt(s^2 - s'^2): the spread of the noise inside eq. 10's bracket, in these coordinates."""
    return math.sqrt(square_drop(before, after))


def _twice_noised(levels: Levels, placed: Literal["inside", "printed"]) -> Step:
    """Eq. 23: x+ = x + sqrt((s^2 - s'^2)/2) Z, x' = x+ + (s^2 - s'^2) score(x+, s) + kappa Z+.

    Step i draws noises 2i and 2i + 1.
    """
    spread = score_spread if placed == "inside" else beta_spread
    half = math.sqrt(0.5)
    table = [
        (
            -square_drop(before, after) / before,
            half * score_spread(before, after),
            half * spread(before, after),
        )
        for before, after in pairwise(levels)
    ]

    def step(problem: Problem, state: State) -> State:
        i, x_BCHW, (weight, first, last) = state.i, state.x_BCHW, table[state.i]
        if levels[i + 1] == 0:
            return State(i + 1, x_BCHW + weight * slope(problem, x_BCHW, levels[i]))
        first_BCHW, last_BCHW = problem.noise(2 * i), problem.noise(2 * i + 1)
        noised_BCHW = x_BCHW + first * first_BCHW
        denoised_BCHW = noised_BCHW + weight * slope(problem, noised_BCHW, levels[i])
        return State(i + 1, denoised_BCHW + last * last_BCHW)

    return step
