"""DPM-Solver++ for the reverse SDE (Lu et al. 2022b, section 5): k-diffusion's 2M and 3M SDE."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from fleetstep.sampling.solvers.arithmetic import exp, is_zero
from fleetstep.sampling.solvers.exponential import bracket, log_ratio, rising_order, to_zero
from fleetstep.sampling.solvers.linear import DataOutput, Weights, linear_multistep
from fleetstep.sampling.solvers.step import Level, Levels, Problem, State, Step
from fleetstep.sampling.spec import DpmppSdeSpec


@dataclass(frozen=True)
class _DriftRule(DataOutput):
    """The deterministic part: DPM-Solver++ with the exponent -(1 + eta) h."""

    spec: DpmppSdeSpec

    @property
    def memory(self) -> int:
        """All but the newest output."""
        return self.spec.order - 1

    def weights(self, after: Level, levels: Sequence[Level], position: int, steps: int) -> Weights:
        """See `bracket`; order 3 starts with the second-order term that it has itself."""
        spec = self.spec
        if is_zero(after):
            return to_zero(levels[0], "data")
        h = log_ratio(levels[0], after)
        order = rising_order(spec.order, len(levels), None)
        variant = spec.variant if spec.order == 2 else "taylor"
        inside = bracket(-(1 + spec.eta) * h, h, levels, order, variant)
        lead = after / levels[0] * exp(-spec.eta * h)
        return Weights(lead, tuple(-weight for weight in inside))


def dpmpp_sde(levels: Levels, spec: DpmppSdeSpec) -> Step:
    """The steps; step k draws the trajectory's k-th noise, a step to zero none."""
    drift = linear_multistep(levels, _DriftRule(spec))
    deviations = [_deviation(before, after, spec.eta) for before, after in pairwise(levels)]

    def step(problem: Problem, state: State) -> State:
        moved, deviation = drift(problem, state), deviations[state.i]
        if deviation == 0:
            return moved
        x_BCHW = moved.x_BCHW + deviation * problem.noise(state.i)
        return State(moved.i, x_BCHW, moved.history)

    return step


def _deviation(before: float, after: float, eta: float) -> float:
    """Of the noise that a step adds: s' sqrt(1 - exp(-2 eta h)), with exp(-h) = s' / s."""
    if after == 0:
        return 0.0
    h = math.log(before) - math.log(after)
    return after * math.sqrt(-math.expm1(-2 * eta * h))
