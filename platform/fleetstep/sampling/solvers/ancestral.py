"""DDPM's ancestral sampler (Ho et al. 2020).

Legend: B batch, C channels, H W pixels; s noise level, v = 1 + s^2 = 1 / abar.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

from fleetstep.sampling.solvers.step import Levels, Problem, State, Step, slope
from fleetstep.sampling.spec import DdpmSolverSpec


def ddpm(levels: Levels, spec: DdpmSolverSpec) -> Step:
    """x' = D + (s'/s)^2 (x - D) + tau n, tau^2 the posterior's variance or beta's (eq. 11)."""
    match spec.variance:
        case "fixed_small":
            return reverse_steps(levels, posterior_spread)
        case "fixed_large":
            return reverse_steps(levels, beta_spread)


def reverse_steps(levels: Levels, spread: Callable[[float, float], float]) -> Step:
    """Steps of x' = x - (s^2 - s'^2) / s eps + tau n, of which step i draws noise i.

    A step to zero draws none, and is x' = D. The mean of Ho et al.'s step and that of Li et al.'s
    eq. 10 are the same in these coordinates.

    Args:
        levels: descending; the last may be zero.
        spread: tau of a step between two positive levels (s, s').
    """
    table = [
        (-square_drop(before, after) / before, spread(before, after) if after > 0 else None)
        for before, after in pairwise(levels)
    ]

    def step(problem: Problem, state: State) -> State:
        x_BCHW, (weight, tau) = state.x_BCHW, table[state.i]
        x_BCHW = x_BCHW + weight * slope(problem, x_BCHW, levels[state.i])
        if tau is not None:
            noise_BCHW = problem.noise(state.i)
            x_BCHW = x_BCHW + tau * noise_BCHW
        return State(state.i + 1, x_BCHW)

    return step


def square_drop(before: float, after: float) -> float:
    """s^2 - s'^2, as a product: the difference of squares cancels for small steps."""
    return (before - after) * (before + after)


def posterior_spread(before: float, after: float) -> float:
    """tau of the posterior q(x' | x, x0): s' sqrt(s^2 - s'^2) / s ("fixed_small")."""
    return after * math.sqrt(square_drop(before, after)) / before


def beta_spread(before: float, after: float) -> float:
    """tau of variance beta in VP's scale: sqrt((1 - v'/v) v') ("fixed_large")."""
    return math.sqrt(square_drop(before, after) * (1 + after * after) / (1 + before * before))
