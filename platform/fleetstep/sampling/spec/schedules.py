"""Time schedules as plain facts: which noise levels a solver walks, from the highest down.

Legend: N points (positive noise levels of a schedule), T training steps of a discrete process.
"""

from __future__ import annotations

from abc import ABC
from itertools import pairwise
from typing import Annotated, ClassVar, Final, Literal, Self

from pydantic import Field, model_validator

from fleetstep.sampling.spec.labels import label_of
from fleetstep.spec import Spec

SIGMA_MIN: Final = 0.002
"""Level at which sampling ends, unless a solver goes on to zero (Karras et al. 2022, Table 1)."""

SIGMA_MAX: Final = 80.0
"""Noise level at which sampling starts (Karras et al. 2022, Table 1)."""

MIN_POINTS: Final = 2
"""A schedule has at least the two ends of its range."""

Betas = Literal["linear", "quadratic", "cosine", "latent"]
"""beta of a process of T steps: DDPM's linear and quadratic, IDDPM's cosine, and "latent", the
quadratic one of latent diffusion (0.00085 to 0.012)."""


class ScheduleFacts(Spec, ABC):
    """What every schedule declares.

    Facts:
        shown: settings that a label names even at their defaults.
        own_range: whether the levels follow from the settings alone; else they span the range that
            the network and the sampler share.
    """

    shown: ClassVar[tuple[str, ...]] = ()
    own_range: ClassVar[bool] = False

    @property
    def label(self) -> str:
        """The schedule with its settings, as written in records: "polynomial(rho=7)"."""
        return label_of(self, self.shown)

    @property
    def ends_at_zero(self) -> bool:
        """Whether a level zero follows the positive ones."""
        return False

    @property
    def fixed_points(self) -> int | None:
        """The one number of positive levels that this schedule has; None if any is possible."""
        return None


class PolynomialSpec(ScheduleFacts):
    """Levels equally spaced in sigma^(1/rho) (Karras et al. 2022, eq. 5)."""

    kind: Literal["polynomial"] = "polynomial"
    rho: float = Field(7.0, gt=0, description="larger rho puts more levels at low noise")
    shown: ClassVar = ("rho",)


class LogSnrSpec(ScheduleFacts):
    """Levels equally spaced in log sigma: uniform log-SNR steps (Lu et al. 2022, DPM-Solver).

    It is also EDM's discretisation of VE, which is geometric in sigma^2.
    """

    kind: Literal["logsnr"] = "logsnr"


class TimeUniformSpec(ScheduleFacts):
    """Levels whose t^(1/rho) is equally spaced from 1 to 1e-3, in the time of the VP process that
    has sigma(1) and sigma(1e-3) at the ends of the range (Karras et al. 2022, Table 1, "VP").

    rho = 1 is AMED-Solver's "time_uniform", rho = 2 DEIS's "time_quadratic".
    """

    kind: Literal["time_uniform"] = "time_uniform"
    rho: float = Field(1.0, gt=0)
    shown: ClassVar = ("rho",)


class VpTimeSpec(ScheduleFacts):
    """Levels equally spaced in the time t of a given VP process, or in sqrt(t) (Lu et al. 2022).

    Attributes:
        spacing: "uniform" in t, or "quadratic": uniform in sqrt(t).
        beta_min, beta_max: of that process; the ends of the range become its times.
    """

    kind: Literal["vp_time"] = "vp_time"
    spacing: Literal["uniform", "quadratic"] = "uniform"
    beta_min: float = Field(0.1, gt=0)
    beta_max: float = Field(20.0, gt=0)
    shown: ClassVar = ("spacing",)

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if self.beta_max <= self.beta_min:
            raise ValueError(
                f"beta_max must be above beta_min, got {self.beta_min:g} and {self.beta_max:g}"
            )
        return self


class DiscreteSpec(ScheduleFacts):
    """Levels equally spaced in t^(1/rho), t the fractional step of a process of T steps (latent
    diffusion, as AMED samples it).

    Attributes:
        rho: 1 is uniform in time.
        betas: of the process.
        steps: T.
    """

    kind: Literal["discrete"] = "discrete"
    rho: float = Field(1.0, gt=0)
    betas: Betas = "latent"
    steps: int = Field(1000, ge=2)
    shown: ClassVar = ("rho", "betas")


class IddpmSpec(ScheduleFacts):
    """EDM's form of the improved DDPM's levels (Karras et al. 2022, Table 1, "iDDPM").

    Attributes:
        c1, c2, steps: C_1, C_2 and M of the table.
    """

    kind: Literal["iddpm"] = "iddpm"
    c1: float = Field(0.001, gt=0, lt=1)
    c2: float = Field(0.008, gt=0)
    steps: int = Field(1000, ge=2)


class DdpmSubsetSpec(ScheduleFacts):
    """A subset of the T levels of a discrete process, as DDIM and diffusers take it.

    Attributes:
        spacing: leading {i floor(T/S)}, trailing round(T - i T/S) - 1, linspace
            round(linspace(0, T-1, S)), or quad floor(linspace(0, sqrt(0.8 T), S)^2).
        offset: added to the steps of "leading".
        betas, steps: of the process.
        end: "zero" goes on to sigma = 0 after the last level (`set_alpha_to_one`), "first" to the
            level of step 0, "none" stops at the last of the subset.
    """

    kind: Literal["ddpm_subset"] = "ddpm_subset"
    spacing: Literal["leading", "trailing", "linspace", "quad"] = "leading"
    offset: int = Field(0, ge=0)
    betas: Betas = "linear"
    steps: int = Field(1000, ge=2)
    end: Literal["zero", "first", "none"] = "zero"
    shown: ClassVar = ("spacing",)
    own_range: ClassVar = True

    @model_validator(mode="after")
    def _offsets_what_it_can(self) -> Self:
        if self.offset and self.spacing != "leading":
            raise ValueError(
                f"offset: {self.offset} is for spacing leading, got {self.spacing}; use offset: 0"
            )
        return self

    @property
    def ends_at_zero(self) -> bool:
        """Whether the final alpha is one."""
        return self.end == "zero"


class AcceleratedScheduleSpec(ScheduleFacts):
    """Schedule (13) of Li et al. 2024: beta_1 = T^-c0, beta_t = h min(beta_1 (1 + h)^t, 1) with
    h = c1 ln(T) / T; N = T levels that end at sigma_1. Made for theory: T is in the hundreds.

    Attributes:
        c0, c1: abar_T is about T^-(c1 - c0), so c1 must exceed c0.
    """

    kind: Literal["accelerated"] = "accelerated"
    c0: float = Field(2.0, gt=0)
    c1: float = Field(6.0, gt=0)
    shown: ClassVar = ("c0", "c1")
    own_range: ClassVar = True

    @model_validator(mode="after")
    def _reaches_noise(self) -> Self:
        if self.c1 <= self.c0:
            raise ValueError(
                f"c1 must exceed c0, or the last level is not noise; got c0={self.c0:g}, "
                f"c1={self.c1:g}"
            )
        return self


class LevelsSpec(ScheduleFacts):
    """Levels written down by the user.

    Attributes:
        sigmas: strictly descending; only the last may be zero.
    """

    kind: Literal["levels"] = "levels"
    sigmas: tuple[Annotated[float, Field(ge=0)], ...] = Field(min_length=MIN_POINTS)
    shown: ClassVar = ("sigmas",)
    own_range: ClassVar = True

    @model_validator(mode="after")
    def _descend(self) -> Self:
        for i, (before, after) in enumerate(pairwise(self.sigmas)):
            if not before > after:
                raise ValueError(
                    f"levels must descend strictly: sigmas[{i + 1}] = {after:g} after {before:g}"
                )
        if sum(sigma > 0 for sigma in self.sigmas) < MIN_POINTS:
            raise ValueError(f"at least {MIN_POINTS} levels must be positive")
        return self

    @property
    def ends_at_zero(self) -> bool:
        """Whether the last level is zero."""
        return self.sigmas[-1] == 0

    @property
    def fixed_points(self) -> int | None:
        """The positive levels of the list."""
        return sum(sigma > 0 for sigma in self.sigmas)


ScheduleSpec = Annotated[
    PolynomialSpec
    | LogSnrSpec
    | TimeUniformSpec
    | VpTimeSpec
    | DiscreteSpec
    | IddpmSpec
    | DdpmSubsetSpec
    | AcceleratedScheduleSpec
    | LevelsSpec,
    Field(discriminator="kind"),
]
"""Every schedule a config can name, told apart by `kind`."""
