"""What a sweep makes of its list of solvers: pairs with a number of network calls, their names in
records, and what cannot be run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fleetstep.errors import SamplingError
from fleetstep.sampling.spec import AmedSpec, SolverSpec

StateDtype = Literal["float64", "float32"]


@dataclass(frozen=True)
class Skipped:
    """A solver at a number of calls that cannot be run, on any snapshot or on one, and why."""

    solver: str
    nfe: int
    reason: str


def solver_text(solver: SolverSpec) -> str:
    """Solver and, where it is not the default, schedule: "ipndm(order=4) on logsnr"."""
    if solver.schedule in (None, solver.default_schedule):
        return solver.label
    return f"{solver.label} on {solver.schedule.label}"


def schedule_label(solver: SolverSpec) -> str:
    """The schedule as records name it; "adaptive" where the solver chooses its levels."""
    if solver.adaptive:
        return "adaptive"
    if isinstance(solver, AmedSpec):
        return solver.facts.schedule.label
    return solver.chosen_schedule.label


def state_dtype(solver: SolverSpec, asked: StateDtype) -> StateDtype:
    """What is asked for; a predictor's state is as in its training."""
    return solver.facts.dtype if isinstance(solver, AmedSpec) else asked


def reachable(
    solvers: Sequence[SolverSpec], nfe: Sequence[int]
) -> tuple[list[tuple[SolverSpec, int | None]], list[Skipped]]:
    """The pairs of the product that make exactly that many network calls, and the others.

    A solver whose calls cannot be chosen is there once, whatever `nfe` says: one with levels of
    its own (a predictor, a list) at the calls they make, an adaptive one at None.
    """
    pairs: list[tuple[SolverSpec, int | None]] = []
    skipped: list[Skipped] = []
    for solver in solvers:
        if solver.adaptive:
            pairs.append((solver, None))
            continue
        if (points := solver.chosen_schedule.fixed_points) is not None:
            pairs.append((solver, solver.nfe_for(points)))
            continue
        for calls in nfe:
            try:
                solver.points_for(calls)
            except SamplingError as error:
                skipped.append(Skipped(solver_text(solver), calls, reason_of(error)))
            else:
                pairs.append((solver, calls))
    return pairs, skipped


def reason_of(error: SamplingError) -> str:
    """A refusal in one line."""
    return "; ".join(part for part in (error.message, error.remedy) if part)
