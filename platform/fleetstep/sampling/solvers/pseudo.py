"""Pseudo numerical methods: PNDM and PLMS (Liu et al. 2022).

Their transfer map (eq. 9) is x' = x + (s' - s) e in sigma, so both are classical methods on
dx/dsigma with the weights of equal steps.

Legend: B batch, C channels, H W pixels; s a level, t the next, m the one between them.
"""

from __future__ import annotations

from fleetstep.sampling.solvers.adams import IpndmRule
from fleetstep.sampling.solvers.linear import linear_multistep
from fleetstep.sampling.solvers.step import Levels, Problem, State, Step, slope, weighted_sum

_ORDER = 4

# The steps that start PNDM cross two intervals each: onto their middle, and from there.
_STARTING_INTERVALS = 6


def plms(levels: Levels) -> Step:
    """PLMS: one improved Euler step, then Adams-Bashforth of orders 2, 3, 4, 4, ... (as latent
    diffusion starts it; the second evaluation of the first step is not remembered).
    """
    later = linear_multistep(levels, IpndmRule(_ORDER))

    def step(problem: Problem, state: State) -> State:
        return _improved_euler(levels, problem, state) if state.i == 0 else later(problem, state)

    return step


def pndm(levels: Levels) -> Step:
    """PNDM: three pseudo Runge-Kutta steps (eq. 10), then Adams-Bashforth of order 4.

    Args:
        levels: those of the schedule, with the middle of each of the first three steps in its
            place.
    """
    later = linear_multistep(levels, IpndmRule(_ORDER))

    def step(problem: Problem, state: State) -> State:
        if state.i >= _STARTING_INTERVALS:
            return later(problem, state)
        half = _onto_middle if state.i % 2 == 0 else _from_middle
        return half(levels, problem, state)

    return step


def _improved_euler(levels: Levels, problem: Problem, state: State) -> State:
    s, t = levels[0], levels[1]
    eps_BCHW = slope(problem, state.x_BCHW, s)
    guess_BCHW = state.x_BCHW + (t - s) * eps_BCHW
    slopes = (eps_BCHW, slope(problem, guess_BCHW, t))
    moved_BCHW = weighted_sum(((t - s) / 2, (t - s) / 2), slopes)
    return State(1, state.x_BCHW + moved_BCHW, (eps_BCHW,))


def _onto_middle(levels: Levels, problem: Problem, state: State) -> State:
    """Euler's step to the middle; the image it leaves goes before the slopes in the history."""
    s, m = levels[state.i], levels[state.i + 1]
    eps_BCHW = slope(problem, state.x_BCHW, s)
    between_BCHW = state.x_BCHW + (m - s) * eps_BCHW
    history = (state.x_BCHW, eps_BCHW, *state.history)
    return State(state.i + 1, between_BCHW, history)


def _from_middle(levels: Levels, problem: Problem, state: State) -> State:
    """The other three slopes of the Runge-Kutta step; only the first is remembered."""
    s, m, t = levels[state.i - 1 : state.i + 2]
    x_BCHW, *slopes = state.history
    second_BCHW = slope(problem, state.x_BCHW, m)
    third_BCHW = slope(problem, x_BCHW + (m - s) * second_BCHW, m)
    fourth_BCHW = slope(problem, x_BCHW + (t - s) * third_BCHW, t)
    sixth = (t - s) / 6
    moved_BCHW = weighted_sum(
        (sixth, 2 * sixth, 2 * sixth, sixth), (slopes[0], second_BCHW, third_BCHW, fourth_BCHW)
    )
    return State(state.i + 1, x_BCHW + moved_BCHW, tuple(slopes[: _ORDER - 1]))
