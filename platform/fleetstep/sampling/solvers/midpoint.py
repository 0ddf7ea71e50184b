"""Two-slope Runge-Kutta methods with a free intermediate level (DPM-Solver-2, Heun).

Legend: B batch, C channels, H W pixels; s a level, t the next, m the one between them.
"""

from __future__ import annotations

import math
from itertools import pairwise

from fleetstep.sampling.solvers.step import Levels, Problem, State, Step, slope, weighted_sum


def dpm2(levels: Levels, *, r: float) -> Step:
    """Generalised DPM-Solver-2 (Lu et al. 2022, Algorithm 1; Karras et al. 2022, Algorithm 3).

    The second slope is taken at m = t^r s^(1-r), and the two weigh 1 - 1/(2r) and 1/(2r): r = 1/2
    is the geometric mean and r = 1 Heun's method. A step to zero has no second slope: x' = D.
    """
    # r = 1 gives the next level to the bit.
    middles = [math.pow(t, r) * math.pow(s, 1 - r) for s, t in pairwise(levels)]
    second = 1 / (2 * r)

    def step(problem: Problem, state: State) -> State:
        s, t, m = levels[state.i], levels[state.i + 1], middles[state.i]
        x_BCHW = state.x_BCHW
        if t == 0:
            return State(state.i + 1, problem.denoise(x_BCHW, s))
        eps_BCHW = slope(problem, x_BCHW, s)
        between_BCHW = x_BCHW + (m - s) * eps_BCHW
        slopes = (eps_BCHW, slope(problem, between_BCHW, m))
        weights = ((t - s) * (1 - second), (t - s) * second)
        return State(state.i + 1, x_BCHW + weighted_sum(weights, slopes))

    return step
