"""Heun's method as EDM uses it (Karras et al. 2022, Algorithm 1)."""

from __future__ import annotations

from itertools import pairwise

from fleetstep.sampling.solvers.step import Denoise, Levels, State, Step, slope


def heun(levels: Levels) -> Step:
    """Second order, two calls a step: the mean slope of both ends; a step to zero is Euler's."""
    widths = [after - before for before, after in pairwise(levels)]

    def step(denoise: Denoise, state: State) -> State:
        x_BCHW, width, after = state.x_BCHW, widths[state.i], levels[state.i + 1]
        eps_BCHW = slope(denoise, x_BCHW, levels[state.i])
        guess_BCHW = x_BCHW + width * eps_BCHW
        if after == 0:
            return State(state.i + 1, guess_BCHW)
        mean_BCHW = 0.5 * (eps_BCHW + slope(denoise, guess_BCHW, after))
        return State(state.i + 1, x_BCHW + width * mean_BCHW)

    return step
