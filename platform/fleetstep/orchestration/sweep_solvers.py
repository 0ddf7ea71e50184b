"""What a sweep makes of its list of solvers: pairs with a number of network calls, their names in
records, and what cannot be run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import ValidationError

from fleetstep.errors import SamplingError
from fleetstep.sampling.spec import AmedSpec, GuidanceSpec, ScheduleSpec, SolverSpec

StateDtype = Literal["float64", "float32"]


@dataclass(frozen=True)
class Skipped:
    """A solver at a number of calls that cannot be run, on any snapshot or on one, and why.

    Args:
        solver: with its schedule, and the snapshot if it is one alone.
        nfe: network calls; None if no number works.
        reason: in one line.
    """

    solver: str
    nfe: int | None
    reason: str

    @property
    def at(self) -> str:
        """ " at 4 calls", or nothing."""
        return "" if self.nfe is None else f" at {self.nfe} calls"


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


def evaluation_calls(guidance: GuidanceSpec | None) -> int:
    """Network calls per image in one evaluation of the denoiser."""
    return 1 if guidance is None else guidance.calls


@dataclass(frozen=True)
class Setting:
    """A point of the grid, on any network: how an image is drawn."""

    solver: SolverSpec
    nfe: int | None
    guidance: GuidanceSpec | None = None


def settings_of(
    solvers: Sequence[SolverSpec],
    nfe: Sequence[int],
    schedules: Sequence[ScheduleSpec | None] = (None,),
    guidance: Sequence[GuidanceSpec | None] = (None,),
) -> tuple[list[Setting], list[Skipped]]:
    """The points of the product that make exactly that many network calls, and the others.

    A solver whose calls cannot be chosen is there once, whatever `nfe` says: one with levels of
    its own (a predictor, a list) at the calls they make, an adaptive one at None. Such a solver
    keeps its own levels.

    Args:
        solvers: each with its settings.
        nfe: network calls per image, guidance's included.
        schedules: in place of a solver's own; None is its own.
        guidance: each doubles the calls of an evaluation, unless its scale is 1.
    """
    settings: dict[Setting, None] = {}
    skipped: list[Skipped] = []
    for solver in solvers:
        for schedule in schedules:
            walked = _on(solver, schedule)
            if isinstance(walked, str):
                label = "" if schedule is None else f" on {schedule.label}"
                skipped.append(Skipped(f"{solver_text(solver)}{label}", None, walked))
                continue
            for guide in guidance:
                for point in _points(walked, nfe, guide):
                    if isinstance(point, Skipped):
                        skipped.append(point)
                    else:
                        settings[point] = None
    return list(settings), skipped


def _on(solver: SolverSpec, schedule: ScheduleSpec | None) -> SolverSpec | str:
    """`solver` with that schedule, or why that cannot be."""
    if schedule is None or (not solver.adaptive and schedule == solver.chosen_schedule):
        return solver
    if solver.adaptive or solver.learned:
        return "its levels are its own; list it without schedules, or null among them"
    try:
        return type(solver).model_validate(solver.model_dump() | {"schedule": schedule})
    except ValidationError as error:
        return "; ".join(str(item["msg"]) for item in error.errors())


def _points(
    solver: SolverSpec, nfe: Sequence[int], guidance: GuidanceSpec | None
) -> Iterator[Setting | Skipped]:
    each = evaluation_calls(guidance)
    if solver.adaptive:
        yield Setting(solver, None, guidance)
        return
    if (points := solver.chosen_schedule.fixed_points) is not None:
        yield Setting(solver, solver.nfe_for(points, each), guidance)
        return
    for calls in nfe:
        try:
            solver.points_for(calls, each)
        except SamplingError as error:
            yield Skipped(solver_text(solver), calls, reason_of(error))
        else:
            yield Setting(solver, calls, guidance)


def reason_of(error: SamplingError) -> str:
    """A refusal in one line."""
    return "; ".join(part for part in (error.message, error.remedy) if part)
