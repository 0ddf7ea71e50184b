"""Adams-Bashforth methods: the newest slope eps is combined with remembered ones."""

from __future__ import annotations

from itertools import pairwise

from fleetstep.sampling.solvers.step import Denoise, Levels, State, Step, slope, weighted_sum

# Weights of equal steps, newest slope first (Liu et al. 2022, PNDM; lower orders are the same
# family).
_ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


def ipndm(levels: Levels, *, order: int) -> Step:
    """iPNDM (Zhang and Chen 2023): one call a step; the order rises by one a step up to `order`.

    The weights are those of equal steps whatever the grid, so the global order is 2 for any
    `order` above one.
    """
    weights = [
        [(after - before) * weight for weight in _ADAMS_BASHFORTH[min(order, i + 1)]]
        for i, (before, after) in enumerate(pairwise(levels))
    ]

    def step(denoise: Denoise, state: State) -> State:
        eps_BCHW = slope(denoise, state.x_BCHW, levels[state.i])
        slopes = (eps_BCHW, *state.history)
        moved_BCHW = weighted_sum(weights[state.i], slopes)
        return State(state.i + 1, state.x_BCHW + moved_BCHW, slopes[: order - 1])

    return step
