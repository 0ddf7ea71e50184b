"""Solvers and time schedules as plain facts: a solver's cost is known without importing torch.

Legend: N points (positive noise levels of a schedule), NFE network calls per image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from fleetstep.errors import SamplingError
from fleetstep.spec import Spec

SIGMA_MIN: Final = 0.002
"""Level at which sampling ends, unless a solver goes on to zero (Karras et al. 2022, Table 1)."""

SIGMA_MAX: Final = 80.0
"""Noise level at which sampling starts (Karras et al. 2022, Table 1)."""

MIN_POINTS: Final = 2
"""A schedule has at least the two ends of its range."""


def _label(spec: Spec) -> str:
    """Kind and every setting: one left out would change its meaning with the default."""
    kind, *settings = spec.model_dump().items()
    inside = ", ".join(
        f"{key}={value:.12g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in settings
    )
    return f"{kind[1]}({inside})" if inside else f"{kind[1]}"


class PolynomialSpec(Spec):
    """Levels equally spaced in sigma^(1/rho) (Karras et al. 2022, eq. 5)."""

    kind: Literal["polynomial"] = "polynomial"
    rho: float = Field(7.0, gt=0, description="larger rho puts more levels at low noise")

    @property
    def label(self) -> str:
        """The schedule with all its settings, as written in records: "polynomial(rho=7)"."""
        return _label(self)


class LogSnrSpec(Spec):
    """Levels equally spaced in log sigma: uniform log-SNR steps (Lu et al. 2022, DPM-Solver)."""

    kind: Literal["logsnr"] = "logsnr"

    @property
    def label(self) -> str:
        """The schedule as written in records."""
        return _label(self)


ScheduleSpec = Annotated[PolynomialSpec | LogSnrSpec, Field(discriminator="kind")]


class SolverFacts(Spec, ABC):
    """What every solver declares about itself; the contract suite measures that it is true.

    Facts:
        evals_per_step: network calls in a step between two positive levels. A step to level zero
            always makes one, because dx/dsigma = (x - D) / sigma cannot be evaluated there.
        ends_at_zero: whether a last step from sigma_min to zero follows the schedule.
        stochastic: whether fresh noise enters after the latent.
        learned: whether the solver holds trained parameters of its own.
        default_schedule: the schedule its authors published results with.
    """

    evals_per_step: ClassVar[int] = 1
    ends_at_zero: ClassVar[bool] = False
    stochastic: ClassVar[bool] = False
    learned: ClassVar[bool] = False
    default_schedule: ClassVar[PolynomialSpec | LogSnrSpec]

    @property
    @abstractmethod
    def global_order(self) -> int:
        """p such that the error on a fixed range falls as N^-p for small steps."""

    @property
    def label(self) -> str:
        """The solver with all its settings, as written in records: "ipndm(order=4)"."""
        return _label(self)

    def nfe_for(self, points: int, calls: int = 1) -> int:
        """Network calls per image on a schedule of `points` positive levels.

        Args:
            points: positive levels.
            calls: network calls in one evaluation of the denoiser, see `GuidanceSpec.calls`.

        Raises:
            SamplingError: if there are fewer than two points.
        """
        if points < MIN_POINTS:
            raise SamplingError(
                f"a schedule has at least {MIN_POINTS} points, got {points}",
                f"give {self.label} {MIN_POINTS} points or more",
            )
        return calls * (self.evals_per_step * (points - 1) + self.ends_at_zero)

    def points_for(self, nfe: int, calls: int = 1) -> int:
        """Schedule points with which the solver makes exactly `nfe` network calls per image.

        Args:
            nfe: network calls per image.
            calls: network calls in one evaluation of the denoiser, see `GuidanceSpec.calls`.

        Raises:
            SamplingError: if no number of points does; it names the nearest reachable numbers of
                calls.
        """
        # Calls grow with points, by one or more for each: the answer lies within nfe + 1.
        candidates = range(MIN_POINTS, MIN_POINTS + max(nfe, 1))
        points = candidates[
            bisect_left(candidates[:-1], nfe, key=lambda n: self.nfe_for(n, calls))
        ]
        reached = self.nfe_for(points, calls)
        if reached == nfe:
            return points
        below = [] if points == MIN_POINTS else [self.nfe_for(points - 1, calls)]
        reachable = [*below, reached]
        ending = " and one call for the last step to zero" if self.ends_at_zero else ""
        guided = f", each {calls} times for guidance" if calls > 1 else ""
        raise SamplingError(
            f"{self.label} cannot make exactly {nfe} network calls: "
            f"it makes {self.evals_per_step} per step{ending}{guided}",
            f"nearest that works: nfe={' or nfe='.join(map(str, reachable))}",
        )


class EulerSpec(SolverFacts):
    """Euler's method on dx/dsigma, the same as DDIM (Song et al. 2021, eq. 13): first order."""

    kind: Literal["euler"] = "euler"
    default_schedule: ClassVar = PolynomialSpec()

    @property
    def global_order(self) -> int:
        """First order."""
        return 1


class HeunSpec(SolverFacts):
    """EDM's deterministic sampler, ends at zero: NFE 2N - 1 (Karras et al. 2022, Algorithm 1)."""

    kind: Literal["heun"] = "heun"
    evals_per_step: ClassVar[int] = 2
    ends_at_zero: ClassVar[bool] = True
    default_schedule: ClassVar = PolynomialSpec()

    @property
    def global_order(self) -> int:
        """Second order."""
        return 2


class IpndmSpec(SolverFacts):
    """Adams-Bashforth on the last `order` slopes, with a rising start (Zhang and Chen 2023)."""

    kind: Literal["ipndm"] = "ipndm"
    order: int = Field(4, ge=1, le=4, description="slopes combined in a step")
    default_schedule: ClassVar = PolynomialSpec()

    @property
    def global_order(self) -> int:
        """Two for any `order` above one: weights of equal steps are applied to unequal ones."""
        return min(self.order, 2)


class Dpmpp2mSpec(SolverFacts):
    """DPM-Solver++(2M), data prediction, first-order last step (Lu et al. 2022b, Algorithm 2)."""

    kind: Literal["dpmpp_2m"] = "dpmpp_2m"
    default_schedule: ClassVar = LogSnrSpec()

    @property
    def global_order(self) -> int:
        """Second order."""
        return 2


SolverSpec = Annotated[EulerSpec | HeunSpec | IpndmSpec | Dpmpp2mSpec, Field(discriminator="kind")]


class GuidanceSpec(Spec):
    """Classifier-free guidance: D = D_u + scale (D_c - D_u) (Ho and Salimans 2022, eq. 6).

    The network must have been trained with label drop-out: D_u is its image for no class.

    Attributes:
        scale: 1 is the plain conditional image, 0 the unconditional one; the paper's w is
            scale - 1.
        channels: which channels are guided. "first_three" leaves the others conditional, as the
            released DiT samples its four latent channels.
    """

    scale: float = Field(ge=0)
    channels: Literal["all", "first_three"] = "all"

    @property
    def calls(self) -> int:
        """Network calls per image in one evaluation of the denoiser: 2, or 1 at scale 1."""
        return 1 if self.scale == 1 else 2
