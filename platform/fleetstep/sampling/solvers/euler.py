"""Euler's method, the same as DDIM in any parametrisation (Song et al. 2021, eq. 13)."""

from __future__ import annotations

from itertools import pairwise

from fleetstep.sampling.solvers.step import Denoise, Levels, State, Step, slope


def euler(levels: Levels) -> Step:
    """First order, one call a step: x' = x + (s' - s) eps(x, s)."""
    widths = [after - before for before, after in pairwise(levels)]

    def step(denoise: Denoise, state: State) -> State:
        eps_BCHW = slope(denoise, state.x_BCHW, levels[state.i])
        return State(state.i + 1, state.x_BCHW + widths[state.i] * eps_BCHW)

    return step
