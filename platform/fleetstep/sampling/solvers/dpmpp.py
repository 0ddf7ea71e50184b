"""DPM-Solver(++) multistep (Lu et al. 2022, 2022b)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fleetstep.sampling.solvers.arithmetic import is_zero
from fleetstep.sampling.solvers.exponential import (
    bracket,
    crossing,
    output_of,
    rising_order,
    to_zero,
)
from fleetstep.sampling.solvers.linear import Weights
from fleetstep.sampling.solvers.step import Level, Problem
from fleetstep.sampling.spec import DpmppSpec


@dataclass(frozen=True)
class DpmppRule:
    """One call a step; the order rises with the history (Lu et al. 2022b, Algorithm 2).

    The terms of its weights are the whole bracket with its sign: x' = lead x - scale [...].
    """

    spec: DpmppSpec

    @property
    def memory(self) -> int:
        """All but the newest output."""
        return self.spec.order - 1

    def output(self, problem: Problem, x_BCHW: Tensor, sigma: Level) -> Tensor:
        """D, or eps with prediction "noise"; [B, C, H, W]."""
        return output_of(problem, x_BCHW, sigma, self.spec.prediction)

    def weights(self, after: Level, levels: Sequence[Level], position: int, steps: int) -> Weights:
        """See `bracket`; a step to zero is of first order."""
        spec = self.spec
        if is_zero(after):
            return to_zero(levels[0], spec.prediction)
        left = steps - position if spec.lower_order_final else None
        order = rising_order(spec.order, len(levels), left)
        h, z, lead, scale = crossing(levels[0], after, spec.prediction)
        inside = bracket(z, h, levels, order, spec.variant, spec.d2_factor)
        return Weights(lead, tuple(-scale * weight for weight in inside))
