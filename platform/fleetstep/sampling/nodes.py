"""The levels at which a solver stops: a schedule's, and those that the solver puts between them.

Legend: N points.
"""

from __future__ import annotations

import math
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from fleetstep.errors import SamplingError
from fleetstep.sampling.discrete_schedules import FractionalSteps
from fleetstep.sampling.schedules import sigmas
from fleetstep.sampling.spec import (
    AcceleratedScheduleSpec,
    DdpmSubsetSpec,
    DpmppSinglestepSpec,
    LogSnrSpec,
    PndmSpec,
    ScheduleFacts,
    SolverSpec,
)

# Steps that start PNDM, each with its middle between its ends.
_STARTING_STEPS = 3


def nodes(solver: SolverSpec, points: int, sigma_min: float, sigma_max: float) -> Tensor:
    """The `points` positive levels that `solver` walks, float64, strictly descending.

    Most solvers take the schedule's levels as they are. A single-step solver and PNDM's start need
    levels between them, and have the schedule's at fewer points. Levels that the user wrote down
    are taken for all of them.

    Raises:
        SamplingError: see `sigmas`; or the schedule has no levels between its own.
    """
    schedule = solver.chosen_schedule
    if schedule.fixed_points is None:
        if isinstance(solver, PndmSpec):
            return _with_middles(schedule, points - _STARTING_STEPS, sigma_min, sigma_max)
        if isinstance(solver, DpmppSinglestepSpec):
            orders = step_orders(solver.order, points - 1)
            return _subdivided(_ends(schedule, orders, sigma_min, sigma_max), orders)
    return sigmas(schedule, points, sigma_min, sigma_max)


def step_orders(order: int, calls: int) -> tuple[int, ...]:
    """Orders of a single-step solver's steps, which add up to `calls`.

    All steps but the last one or two are of the full order. Order 3 always ends with a step of
    lower order (Lu et al. 2022, section 3.4 and appendix).

    Args:
        order: 2 or 3.
        calls: network calls, at least one.
    """
    full, rest = divmod(calls, order)
    if rest:
        return (*[order] * full, rest)
    if order == 3:
        return (*[order] * (full - 1), 2, 1)
    return (order,) * full


def _ends(
    schedule: ScheduleFacts, orders: tuple[int, ...], sigma_min: float, sigma_max: float
) -> list[float]:
    """Where the steps of a single-step solver begin and end: equally spaced in log sigma by
    logsnr; of another schedule at one point a call, those at which a step has its calls (as Lu et
    al.'s code places them).
    """
    if isinstance(schedule, LogSnrSpec):
        return sigmas(schedule, len(orders) + 1, sigma_min, sigma_max).tolist()
    levels = sigmas(schedule, sum(orders) + 1, sigma_min, sigma_max).tolist()
    return [levels[done] for done in accumulate(orders, initial=0)]


def _subdivided(outer: list[float], orders: tuple[int, ...]) -> Tensor:
    """Each interval of `outer` cut in equal parts of log sigma, as many as its step's order."""
    levels = [outer[0]]
    for (s, t), order in zip(pairwise(outer), orders, strict=True):
        parts = (j / order for j in range(1, order))
        levels += [math.exp(math.log(s) + part * (math.log(t) - math.log(s))) for part in parts]
        levels.append(t)
    return torch.tensor(levels, dtype=torch.float64)


def _with_middles(
    schedule: ScheduleFacts, points: int, sigma_min: float, sigma_max: float
) -> Tensor:
    """The schedule at `points`, with the middles of its first three steps."""
    levels = sigmas(schedule, points, sigma_min, sigma_max).tolist()
    if isinstance(schedule, DdpmSubsetSpec):
        middles = [_middle_step(schedule, s, t) for s, t in pairwise(levels)]
    elif isinstance(schedule, AcceleratedScheduleSpec):
        raise SamplingError(
            f"pndm needs levels between those of its schedule, and {schedule.label} has none: its "
            "levels depend on how many there are",
            "use another schedule, or plms",
        )
    else:
        middles = sigmas(schedule, 2 * points - 1, sigma_min, sigma_max).tolist()[1::2]
    begun = zip(levels, middles[:_STARTING_STEPS], strict=False)
    merged = [*(level for pair in begun for level in pair), *levels[_STARTING_STEPS:]]
    if not all(before > after for before, after in pairwise(merged)):
        raise SamplingError(
            f"pndm needs levels between those of its schedule, and {schedule.label} with {points} "
            "points has none between two of the first four",
            "use fewer network calls, or plms",
        )
    return torch.tensor(merged, dtype=torch.float64)


def _middle_step(schedule: DdpmSubsetSpec, s: float, t: float) -> float:
    """The level at half the steps from s to t, rounded to the noisier (Liu et al. 2022)."""
    process = FractionalSteps.of(schedule.betas, schedule.steps)
    start, end = (round(process.time(level) * schedule.steps) - 1 for level in (s, t))
    return math.sqrt(math.expm1(process.logs[start - (start - end) // 2]))
