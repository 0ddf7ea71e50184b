"""Linear multistep solvers: x' = lead x + sum_j w_j M_j over the newest outputs M of the network.

Euler, Adams-Bashforth, DEIS, DPM-Solver(++) and the accelerated DDIM are rules of this form; a
rule is written once, for levels on the host and for levels that differ between images (AMED).

Legend: s levels, K steps of a trajectory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from fleetstep.sampling.solvers.step import (
    Level,
    Levels,
    Problem,
    State,
    Step,
    matched,
    slope,
    weighted_sum,
)


class Weights(NamedTuple):
    """Of x (None for one), and of the outputs, newest first."""

    lead: Level | None
    terms: tuple[Level, ...]


class Rule(Protocol):
    """A linear multistep method."""

    @property
    def memory(self) -> int:
        """Earlier outputs it uses at most, beside the newest."""

    def output(self, problem: Problem, x_BCHW: Tensor, sigma: Level) -> Tensor:
        """The network's output in the method's form: eps, D or the score; one call."""

    def weights(self, after: Level, levels: Sequence[Level], position: int, steps: int) -> Weights:
        """Weights of the step from levels[0] to `after`.

        Args:
            after: the level to reach; zero only as the last of all.
            levels: of the outputs at hand, newest first, at most memory + 1.
            position: 0 for the first of all steps.
            steps: K.
        """


class EpsOutput:
    """The output of rules on dx/dsigma."""

    def output(self, problem: Problem, x_BCHW: Tensor, sigma: Level) -> Tensor:
        """Eps = (x - D) / sigma."""
        return slope(problem, x_BCHW, sigma)


class DataOutput:
    """The output of rules on the denoised image."""

    def output(self, problem: Problem, x_BCHW: Tensor, sigma: Level) -> Tensor:
        """D."""
        return problem.denoise(x_BCHW, sigma)


def combine(weights: Weights, x_BCHW: Tensor, outputs: Sequence[Tensor]) -> Tensor:
    """lead x + sum_j w_j M_j, over as many outputs as there are weights."""
    moved_BCHW = weighted_sum(weights.terms, outputs[: len(weights.terms)])
    moved_BCHW += x_BCHW if weights.lead is None else matched(weights.lead, x_BCHW) * x_BCHW
    return moved_BCHW


def linear_multistep(levels: Levels, rule: Rule) -> Step:
    """The steps of `rule` on host levels, every weight computed here."""
    steps = len(levels) - 1
    table = [
        rule.weights(
            levels[i + 1], [levels[i - j] for j in range(min(i, rule.memory) + 1)], i, steps
        )
        for i in range(steps)
    ]

    def step(problem: Problem, state: State) -> State:
        output_BCHW = rule.output(problem, state.x_BCHW, levels[state.i])
        outputs = (output_BCHW, *state.history)
        x_BCHW = combine(table[state.i], state.x_BCHW, outputs)
        return State(state.i + 1, x_BCHW, outputs[: rule.memory])

    return step
