"""What every solver declares about itself; the contract suite measures that it is true.

Legend: N points (positive noise levels of a schedule), NFE network calls per image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from typing import Any, ClassVar, Self

from pydantic import model_validator

from fleetstep.errors import SamplingError
from fleetstep.sampling.spec.guidance import ThresholdingSpec
from fleetstep.sampling.spec.labels import label_of
from fleetstep.sampling.spec.schedules import MIN_POINTS, ScheduleFacts, ScheduleSpec
from fleetstep.spec import Spec


class SolverFacts(Spec, ABC):
    """A solver's settings, and what follows from them without running it.

    Attributes:
        schedule: None is the one its authors published results with.
        afs: analytical first step: the first evaluation is eps = x / sqrt(1 + sigma^2), which
            needs no network (Dockhorn et al. 2022); one call less.
        denoise_to_zero: end with x = D(x; sigma_min); one call more.
        thresholding: of every D, after guidance; None is none.

    Facts:
        evals_per_step: evaluations in a step between two positive levels, where no setting
            changes them; `evaluations` counts in every case.
        goes_to_zero: whether a last step from sigma_min to zero follows every schedule.
        learned: whether the solver holds trained parameters of its own.
        adaptive: whether it chooses its own number of calls.
        default_schedule: see `schedule`.
        shown: settings that a label names even at their defaults.
    """

    schedule: ScheduleSpec | None = None
    afs: bool = False
    denoise_to_zero: bool = False
    thresholding: ThresholdingSpec | None = None

    evals_per_step: ClassVar[int] = 1
    goes_to_zero: ClassVar[bool] = False
    learned: ClassVar[bool] = False
    adaptive: ClassVar[bool] = False
    default_schedule: ClassVar[ScheduleFacts]
    shown: ClassVar[tuple[str, ...]] = ()

    @model_validator(mode="after")
    def _denoised_once(self) -> Self:
        if self.denoise_to_zero and self.ends_at_zero:
            raise ValueError(
                "denoise_to_zero: the solver or its schedule already ends at sigma = 0; "
                "use denoise_to_zero: false"
            )
        return self

    @property
    @abstractmethod
    def global_order(self) -> int:
        """p such that the error on a fixed range falls as N^-p for small steps."""

    @property
    def stochastic(self) -> bool:
        """Whether fresh noise enters after the latent."""
        return False

    @property
    def chosen_schedule(self) -> ScheduleFacts:
        """The schedule asked for, or the solver's own."""
        return self.default_schedule if self.schedule is None else self.schedule

    @property
    def ends_at_zero(self) -> bool:
        """Whether the last level is zero, by the solver's nature or its schedule's."""
        return self.goes_to_zero or self.chosen_schedule.ends_at_zero

    @property
    def starts_analytically(self) -> bool:
        """Whether the first evaluation is analytical."""
        return self.afs

    @property
    def chosen_thresholding(self) -> ThresholdingSpec | None:
        """What is done to every D."""
        return self.thresholding

    @property
    def label(self) -> str:
        """The solver with its settings, as written in records: "ipndm(order=4, afs=True)".

        The schedule stands beside it in records, and is not part of it.
        """
        return label_of(self, self.shown, hidden=("schedule",))

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that decides what the solver computes, as JSON values; paths do not."""
        return self.model_dump(mode="json")

    def evaluations(self, points: int, to_zero: bool) -> int:
        """Evaluations of D on `points` positive levels, and a level zero after them if `to_zero`.

        A step to zero makes one: dx/dsigma = (x - D) / sigma has no second slope there.
        """
        return self.evals_per_step * (points - 1) + to_zero

    def nfe_for(self, points: int, calls: int = 1, *, to_zero: bool | None = None) -> int:
        """Network calls per image on a schedule of `points` positive levels.

        Args:
            points: positive levels.
            calls: network calls in one evaluation of the denoiser, see `GuidanceSpec.calls`.
            to_zero: whether level zero follows them; None is what solver and schedule say.

        Raises:
            SamplingError: if there are too few points, or the solver chooses its calls itself.
        """
        least = self.least_points
        if points < least:
            raise SamplingError(
                f"a schedule has at least {least} points, got {points}",
                f"give {self.label} {least} points or more",
            )
        ends_at_zero = self.ends_at_zero if to_zero is None else to_zero
        evaluations = self.evaluations(points, ends_at_zero) + self.denoise_to_zero - self.afs
        return calls * evaluations

    @property
    def least_points(self) -> int:
        """Fewest positive levels on which the solver can work."""
        return MIN_POINTS

    def points_for(self, nfe: int, calls: int = 1) -> int:
        """Schedule points with which the solver makes exactly `nfe` network calls per image.

        Args:
            nfe: network calls per image.
            calls: network calls in one evaluation of the denoiser, see `GuidanceSpec.calls`.

        Raises:
            SamplingError: if no number of points does; it names the nearest reachable numbers of
                calls.
        """
        fixed = self.chosen_schedule.fixed_points
        if fixed is not None:
            self._check_only(nfe, self.nfe_for(fixed, calls), fixed)
            return fixed
        # Calls grow with points, by one or more for each, and are at least one less than they
        # (AFS): the answer lies within nfe + 3. No call at all is no sampler: AFS on two points.
        least = self.least_points
        least += self.nfe_for(least, calls) == 0
        candidates = range(least, least + max(nfe, 1) + 1)
        points = candidates[
            bisect_left(candidates[:-1], nfe, key=lambda n: self.nfe_for(n, calls))
        ]
        reached = self.nfe_for(points, calls)
        if reached == nfe:
            return points
        reachable = [reached] if points == least else [self.nfe_for(points - 1, calls), reached]
        raise SamplingError(
            f"{self.label} cannot make exactly {nfe} network calls: {self._cost(calls)}",
            f"nearest that works: nfe={' or nfe='.join(map(str, reachable))}",
        )

    def _check_only(self, nfe: int, reached: int, points: int) -> None:
        if nfe != reached:
            raise SamplingError(
                f"{self.label} cannot make exactly {nfe} network calls: its schedule "
                f"{self.chosen_schedule.label} has {points} positive levels",
                f"nearest that works: nfe={reached}",
            )

    def _cost(self, calls: int) -> str:
        """How the calls add up, for a refusal."""
        least = self.least_points
        per_step = self.evaluations(least + 1, False) - self.evaluations(least, False)
        at_start = self.evaluations(least, False) - per_step * (least - 1)
        parts = [f"it makes {per_step} per step"]
        if at_start:
            parts.append(f"{abs(at_start)} {'more' if at_start > 0 else 'fewer'} at the start")
        if self.ends_at_zero:
            parts.append("one call for the last step to zero")
        if self.denoise_to_zero:
            parts.append("one to denoise at the end")
        text = " and ".join(parts) + (", none at the first evaluation" if self.afs else "")
        return text + (f", each {calls} times for guidance" if calls > 1 else "")
