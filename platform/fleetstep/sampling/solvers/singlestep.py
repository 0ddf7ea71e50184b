"""DPM-Solver(++) in single steps (Lu et al. 2022, Algorithms 1 and 2; 2022b, Algorithm 1).

A step of k evaluations runs over k intervals of the levels: each evaluation is made at one level,
and the image moves to the next by a formula of its own, always from where the step began.

Legend: s levels, m the step's first output, M its newest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fleetstep.sampling.nodes import step_orders
from fleetstep.sampling.solvers.arithmetic import expm1
from fleetstep.sampling.solvers.exponential import (
    crossing,
    log_ratio,
    output_of,
    remainders,
    to_zero,
)
from fleetstep.sampling.solvers.linear import Weights, combine
from fleetstep.sampling.solvers.step import Level, Levels, Problem, State, Step
from fleetstep.sampling.spec import DpmppSinglestepSpec, Prediction


@dataclass(frozen=True)
class _Stage:
    """One interval: weights of x at the step's start and of M and m; whether the step goes on."""

    weights: Weights
    continues: bool


def dpmpp_singlestep(levels: Levels, spec: DpmppSinglestepSpec) -> Step:
    """The steps on merged levels, see `nodes`; a level zero after them is reached by x' = D.

    Between two calls of a step the history is (x at its start, m).
    """
    stages = _stages(levels, spec)

    def step(problem: Problem, state: State) -> State:
        stage, sigma = stages[state.i], levels[state.i]
        newest_BCHW = output_of(problem, state.x_BCHW, sigma, spec.prediction)
        start_BCHW, first_BCHW = state.history or (state.x_BCHW, newest_BCHW)
        x_BCHW = combine(stage.weights, start_BCHW, (newest_BCHW, first_BCHW))
        return State(state.i + 1, x_BCHW, (start_BCHW, first_BCHW) if stage.continues else ())

    return step


def _stages(levels: Levels, spec: DpmppSinglestepSpec) -> list[_Stage]:
    positive = [level for level in levels if level > 0]
    stages, begin = [], 0
    for order in step_orders(spec.order, len(positive) - 1):
        within = positive[begin : begin + order + 1]
        for reached in range(1, order + 1):
            weights = _weights(within[: reached + 1], order, spec.prediction)
            stages.append(_Stage(weights, continues=reached < order))
        begin += order
    if len(levels) > len(positive):
        stages.append(_Stage(to_zero(positive[-1], spec.prediction), continues=False))
    return stages


def _weights(within: Sequence[Level], order: int, prediction: Prediction) -> Weights:
    """From the step's first level to the last of `within`, M being of the one before."""
    start, newest, target = within[0], within[-2], within[-1]
    h, z, lead, scale = crossing(start, target, prediction)
    whole = expm1(z)
    if len(within) == 2:
        return Weights(lead, (-scale * whole,))
    # One difference quotient, from m to M, stretched to this stage; the second of two evaluations
    # has the midpoint's weight, the others the integral's.
    second = whole / 2 if order == 2 else remainders(z, 1)[0]
    bent = second * h / log_ratio(start, newest)
    return Weights(lead, (-scale * bent, -scale * (whole - bent)))
