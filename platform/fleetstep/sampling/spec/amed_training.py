"""How an AMED predictor is trained (Zhou et al. 2024, section 3.4), as plain facts.

Legend: N points of the schedule, M teacher levels between two of them.
"""

from __future__ import annotations

import math
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from fleetstep.sampling.spec.facts import SolverFacts
from fleetstep.sampling.spec.guidance import GuidanceSpec, ThresholdingSpec
from fleetstep.sampling.spec.learned import AmedStudentSpec, StudentSpec
from fleetstep.sampling.spec.multistep import DeisSpec, DpmppSpec, IpndmSpec, IpndmVSpec, UnipcSpec
from fleetstep.sampling.spec.schedules import (
    MIN_POINTS,
    ScheduleFacts,
    ScheduleSpec,
    TimeUniformSpec,
)
from fleetstep.sampling.spec.single_step import Dpm2Spec, EulerSpec, HeunAbSpec
from fleetstep.spec import Spec

TeacherSpec = Annotated[
    EulerSpec | HeunAbSpec | Dpm2Spec | IpndmSpec | IpndmVSpec | DeisSpec | DpmppSpec | UnipcSpec,
    Field(discriminator="kind"),
]
"""Solvers that stop at every level of the student's schedule, and end where it does."""

RESTARTING: Final = ("amed", "euler", "dpm2")
"""Students that remember nothing between steps: in training each step starts at the teacher's."""

_SCALE_DIR = 0.01
# Of the student whose published figures use a; the others' do without (Table 2).
_SCALE_TIME = {"ipndm": 0.2}


class AmedTrainingSpec(Spec):
    """Training of a predictor; None is the authors' choice for the student.

    Attributes:
        student: the solver it will serve.
        points, nfe: N, or the network calls per image that it follows from; give one.
        schedule: None is uniform VP time for AMED-Solver, else the student's own.
        afs: analytical first step of the student; the teacher never takes one.
        scale_dir, scale_time: c in 1 +- scale_dir, a in 1 +- scale_time; 0 leaves the output out.
        teacher: None is Heun's method for AMED-Solver, else the student's own solver.
        intermediate: M; None is 1 for students of two evaluations a step, else 2.
        guidance, thresholding: what is done to D, for teacher and student.
        batch: latents per loop, over all workers.
        images: latents in all; the last loop is a whole one.
        lr: of Adam.
        seed: of the predictor's start, the latents and the labels.
        dtype: of the state, and of the predictor.
    """

    student: StudentSpec = AmedStudentSpec()
    points: int | None = Field(None, ge=MIN_POINTS)
    nfe: int | None = Field(None, ge=1)
    schedule: ScheduleSpec | None = None
    afs: bool = True
    scale_dir: float = Field(_SCALE_DIR, ge=0, lt=1)
    scale_time: float | None = Field(None, ge=0, lt=1)
    teacher: TeacherSpec | None = None
    intermediate: int | None = Field(None, ge=1)
    guidance: GuidanceSpec | None = None
    thresholding: ThresholdingSpec | None = None
    batch: int = Field(128, ge=1)
    images: int = Field(10_000, ge=1)
    lr: float = Field(5e-3, gt=0)
    seed: int = Field(0, ge=0)
    dtype: Literal["float32", "float64"] = "float64"

    @model_validator(mode="after")
    def _can_be_trained(self) -> Self:
        if (self.points is None) == (self.nfe is None):
            raise ValueError("give either points or nfe: one follows from the other")
        for name, solver in (("student", self.student), ("teacher", self.teacher)):
            if isinstance(solver, SolverFacts):
                _check_plain(name, solver)
        if isinstance(self.student, Dpm2Spec) and self.student.r != Dpm2Spec().r:
            raise ValueError("student.r: the predictor learns it; leave it out")
        schedule = self.chosen_schedule
        if schedule.fixed_points is not None or schedule.ends_at_zero:
            raise ValueError(
                f"schedule: {schedule.label} has no finer grid for the teacher, or ends at zero; "
                "use one that any number of points can have, such as polynomial"
            )
        self._check_budget()
        return self

    def _check_budget(self) -> None:
        if self.nfe is None:
            return
        points = self.chosen_points
        reached = self._nfe_of(points)
        if reached != self.nfe or points < MIN_POINTS:
            nearest = sorted({self._nfe_of(max(points + more, MIN_POINTS)) for more in (0, 1)})
            raise ValueError(
                f"nfe: a student of two evaluations a step{' with AFS' if self.afs else ''} "
                f"cannot make exactly {self.nfe} network calls; nearest that works: "
                f"{' or '.join(map(str, nearest))}, or change afs"
            )

    def _nfe_of(self, points: int) -> int:
        return self._calls * (2 * (points - 1) - self.afs)

    @property
    def _calls(self) -> int:
        return 1 if self.guidance is None else self.guidance.calls

    @property
    def chosen_points(self) -> int:
        """N."""
        if self.points is not None:
            return self.points
        assert self.nfe is not None, "one of the two is given"
        return (self.nfe // self._calls + self.afs) // 2 + 1

    @property
    def chosen_nfe(self) -> int:
        """Network calls per image of the trained solver, guidance's included."""
        return self._nfe_of(self.chosen_points)

    @property
    def chosen_schedule(self) -> ScheduleFacts:
        """The schedule asked for, or the one of the student's published results."""
        if self.schedule is not None:
            return self.schedule
        if isinstance(self.student, AmedStudentSpec):
            return TimeUniformSpec()
        return self.student.default_schedule

    @property
    def chosen_scale_time(self) -> float:
        """The scale asked for, or the one of the student's published results."""
        if self.scale_time is not None:
            return self.scale_time
        return _SCALE_TIME.get(self.student.kind, 0.0)

    @property
    def chosen_teacher(self) -> TeacherSpec:
        """The teacher asked for, or the authors'."""
        if self.teacher is not None:
            return self.teacher
        return HeunAbSpec() if isinstance(self.student, AmedStudentSpec) else self.student

    @property
    def chosen_intermediate(self) -> int:
        """M asked for, or the authors'."""
        if self.intermediate is not None:
            return self.intermediate
        return 1 if self.student.kind in ("amed", "dpm2") else 2

    @property
    def restarts(self) -> bool:
        """Whether each step of a loop starts at the teacher's image, and not the student's."""
        return self.student.kind in RESTARTING

    @property
    def loops(self) -> int:
        """Loops over a batch, of N - 1 updates each."""
        return math.ceil(self.images / self.batch)


def _check_plain(name: str, solver: SolverFacts) -> None:
    for setting in ("schedule", "afs", "denoise_to_zero", "thresholding"):
        if getattr(solver, setting) != type(solver).model_fields[setting].default:
            raise ValueError(
                f"{name}.{setting}: set it for the training, which student and teacher share"
                if setting != "denoise_to_zero"
                else f"{name}.{setting}: not part of a training; set it when sampling"
            )
