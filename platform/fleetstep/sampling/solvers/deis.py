"""DEIS: Adams-Bashforth with a polynomial in another variable than sigma (Zhang and Chen 2023).

Weight j of a step is the integral over sigma of l_j(c(sigma)), the Lagrange basis in a clock c: VP
time, or log sigma. The reference adds 10^4 rectangles, and its weights are off by up to 6e-5; here
they are exact to float64 by Gauss-Legendre nodes in log sigma, where both clocks are smooth.

Legend: B batch, Q nodes of the quadrature.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import Final

import numpy as np
from torch import Tensor

from fleetstep.diffusion.tables import Table
from fleetstep.sampling.schedules import VpTime
from fleetstep.sampling.solvers.adams import basis_integrals
from fleetstep.sampling.solvers.arithmetic import exp, is_zero, log, log1p, sqrt
from fleetstep.sampling.solvers.linear import EpsOutput, Rule, Weights
from fleetstep.sampling.solvers.step import Level, Levels
from fleetstep.sampling.spec import DeisSpec

# A power of two. The nearest singularity of either clock is pi/2 beside the line of log sigma:
# exact to float64 even where one step goes from 8 to 0.002.
_NODES_OF_A_STEP: Final = 64


def deis_rule(spec: DeisSpec, levels: Levels) -> Rule:
    """The rule of DEIS; VP time runs from 1e-3 to 1 over the positive ones of `levels`.

    Raises:
        SamplingError: no VP process spans that range.
    """
    if spec.basis == "log_sigma":
        return DeisRule(spec.order, spec.lower_order_final, log)
    low, high = min(level for level in levels if level > 0), max(levels)
    return DeisRule(spec.order, spec.lower_order_final, VpClock(VpTime.spanning(low, high)))


@dataclass(frozen=True)
class VpClock:
    """Time of a VP process, of levels of either kind (see `VpTime.time`)."""

    process: VpTime

    def __call__(self, sigma: Level) -> Level:
        """t with log(1 + sigma^2) = beta_d t^2 / 2 + beta_min t, without cancellation."""
        beta_d, beta_min = self.process.beta_d, self.process.beta_min
        log_variance = log1p(sigma * sigma)
        root = sqrt(beta_min * beta_min + 2 * beta_d * log_variance)
        if beta_min > 0:
            return 2 * log_variance / (root + beta_min)
        return (root - beta_min) / beta_d


@dataclass(frozen=True)
class DeisRule(EpsOutput):
    """x' = x + sum_j w_j eps_j, w_j the integral of l_j(c(sigma)) over the step.

    Args:
        order: slopes combined in a step; it rises by one a step up to this.
        lower_order_final: the last steps fall back to orders 2 and 1.
        clock: c, strictly increasing.
    """

    order: int
    lower_order_final: bool
    clock: Callable[[Level], Level]

    @property
    def memory(self) -> int:
        """All but the newest slope."""
        return self.order - 1

    def weights(self, after: Level, levels: Sequence[Level], position: int, steps: int) -> Weights:
        """Integrals of the basis through `levels`; a step to zero is Euler's, to D.

        The logarithm has no value at zero, and VP time is not smooth there.
        """
        order = min(len(levels), steps - position) if self.lower_order_final else len(levels)
        if order == 1 or is_zero(after):
            return Weights(None, (after - levels[0],))
        newest, *older = (self.clock(level) for level in levels[:order])

        def powers(sigma: Level) -> list[Level]:
            """0 to order - 1, of the time since the newest slope."""
            since = self.clock(sigma) - newest
            return list(accumulate([since] * (order - 1), mul, initial=1.0))

        moments = integrals(powers, levels[0], after)
        roots: list[Level] = [0.0, *(clock - newest for clock in older)]
        return Weights(None, tuple(basis_integrals(roots, moments)))


def integrals(
    functions: Callable[[Level], Sequence[Level]], start: Level, end: Level
) -> tuple[Level, ...]:
    """The integrals over sigma from `start` to `end`, both positive, of several functions.

    With levels of images they are called once, with the nodes in front: [Q, B, 1, 1, 1].
    """
    low = log(start)
    width = log(end) - low
    if isinstance(width, Tensor):
        nodes_Q, weights_Q = _NODES.on(width.device), _WEIGHTS.on(width.device)
        sigma_QB111 = exp(low + width * nodes_Q.view(-1, 1, 1, 1, 1))
        measure_QB111 = weights_Q.view(-1, 1, 1, 1, 1) * sigma_QB111
        values = functions(sigma_QB111)
        return tuple(width * _sum_of_first(measure_QB111 * value_QB111) for value_QB111 in values)
    at = [exp(low + width * node) for node in _NODES.values]
    measure = [weight * sigma for weight, sigma in zip(_WEIGHTS.values, at, strict=True)]
    values_of = zip(*(functions(sigma) for sigma in at), strict=True)
    return tuple(width * sum(map(mul, measure, values)) for values in values_of)


def _sum_of_first(parts_Q: Tensor) -> Tensor:
    """The sum over the first dimension, a power of two, by halves.

    A reduction adds in an order that depends on the other dimensions: an image's weights would
    depend on its place in the batch.
    """
    while len(parts_Q) > 1:
        half = len(parts_Q) // 2
        parts_Q = parts_Q[:half] + parts_Q[half:]
    return parts_Q[0]


def _quadrature() -> tuple[Table, Table]:
    """Gauss-Legendre nodes and weights on [0, 1]."""
    nodes_Q, weights_Q = np.polynomial.legendre.leggauss(_NODES_OF_A_STEP)
    return Table(tuple(((nodes_Q + 1) / 2).tolist())), Table(tuple((weights_Q / 2).tolist()))


_NODES, _WEIGHTS = _quadrature()
