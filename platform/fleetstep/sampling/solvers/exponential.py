"""Exponential integrators in log sigma: what DPM-Solver(++), its SDE form and UniPC share.

With L = -log sigma and h = L' - L, a step is exact but for one integral (Lu et al. 2022,
proposition 3.1; 2022b, proposition 4.1): x' = lead x - scale [expm1(z) M_0 + terms in differences
of M], where M = D has z = -h, lead = s'/s, scale = 1, and M = eps has z = h, lead = 1, scale = s'.

Legend: s levels, M the network's outputs, newest first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import Tensor

from fleetstep.sampling.solvers.arithmetic import expm1, log
from fleetstep.sampling.solvers.linear import Weights
from fleetstep.sampling.solvers.step import Level, Problem, slope
from fleetstep.sampling.spec import Prediction


class Crossing(NamedTuple):
    """The exact part of a step, see above; lead None is one."""

    h: Level
    z: Level
    lead: Level | None
    scale: Level


def crossing(before: Level, after: Level, prediction: Prediction) -> Crossing:
    """The exact part of the step between two positive levels."""
    h = log_ratio(before, after)
    if prediction == "data":
        return Crossing(h, -h, after / before, 1.0)
    return Crossing(h, h, None, after)


def log_ratio(before: Level, after: Level) -> Level:
    """h = log(s / s'), the width of a step in L."""
    return log(before) - log(after)


def output_of(problem: Problem, x_BCHW: Tensor, sigma: Level, prediction: Prediction) -> Tensor:
    """D or eps at (x, sigma), [B, C, H, W]; one call."""
    return (
        problem.denoise(x_BCHW, sigma) if prediction == "data" else slope(problem, x_BCHW, sigma)
    )


def to_zero(before: Level, prediction: Prediction) -> Weights:
    """The step to level zero, first order in either form: x' = D = x - s eps."""
    return Weights(0.0, (1.0,)) if prediction == "data" else Weights(None, (-before,))


def rising_order(highest: int, history: int, left: int | None) -> int:
    """The order of a step: while the history grows it is all there is; then `highest`, or the
    steps left where they are given and fewer.
    """
    return history if history < highest else min(highest, highest if left is None else left)


def remainders(z: Level, count: int) -> list[Level]:
    """psi_1 ... psi_count: psi_1 = expm1(z) / z - 1, psi_{j+1} = psi_j / z - 1 / (j + 1)!.

    psi_j / z is the integral of exp((1 - u) z) u^j / j! over the step, u from 0 to 1.
    """
    found, factorial = [expm1(z) / z - 1], 1
    for j in range(2, count + 1):
        factorial *= j
        found.append(found[-1] / z - 1 / factorial)
    return found


def bracket(
    z: Level,
    h: Level,
    levels: Sequence[Level],
    order: int,
    variant: Literal["dpmsolver", "taylor"],
    d2_factor: int = 1,
) -> tuple[Level, ...]:
    """expm1(z) M_0 + c_1 D1 + c_2 D2 as weights of M_0, M_1, ... (Lu et al. 2022b, Algorithm 2).

    D1 and D2 are first and second divided differences of M over L, in units of h.

    Args:
        z: the exponent of the step.
        h: its width in L; not |z| for the SDE.
        levels: of the outputs, newest first, at least `order`.
        order: 1, 2 or 3.
        variant: c_1 at order 2: "dpmsolver" has expm1(z) / 2, "taylor" psi_1, which is what
            order 3 has.
        d2_factor: of D2; see `DpmppSpec`.
    """
    whole = expm1(z)
    if order == 1:
        return (whole,)
    r0 = log_ratio(levels[1], levels[0]) / h
    if order == 2:
        first = (whole / 2 if variant == "dpmsolver" else remainders(z, 1)[0]) / r0
        return (whole + first, -first)
    r1 = log_ratio(levels[2], levels[1]) / h
    psi_1, psi_2 = remainders(z, 2)
    # D1 = D10 + r0 (D10 - D11) / (r0 + r1) and D2 = (D10 - D11) / (r0 + r1), with
    # D10 = (M_0 - M_1) / r0 and D11 = (M_1 - M_2) / r1: collected by D10 and D11, then by M.
    bend = (r0 * psi_1 + d2_factor * psi_2) / (r0 + r1)
    of_D10, of_D11 = (psi_1 + bend) / r0, -bend / r1
    return (whole + of_D10, of_D11 - of_D10, -of_D11)
