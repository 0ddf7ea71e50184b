"""Process and strategies as closed configs, with laws and checks in plain Python (no torch)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, FiniteFloat, NonNegativeFloat, PositiveFloat, model_validator

from fleetstep.spec import Span, Spec

_NORMAL = NormalDist()


class EdmSpec(Spec):
    """The EDM process: sigma(t) = t, no signal scaling (Karras et al. 2022, table 1).

    Attributes:
        sigma_data: standard deviation of the data, in units of images in [-1, 1].
        p_mean, p_std: training noise levels, ln sigma ~ N(p_mean, p_std^2).
        sigma_min, sigma_max: the range that samplers walk, within [0.002, 80], and the one FDM
            maps to its clock. Training levels are not cut to it.
    """

    kind: Literal["edm"] = "edm"
    sigma_data: PositiveFloat = 0.5
    p_mean: FiniteFloat = -1.2
    p_std: PositiveFloat = 1.2
    sigma_min: PositiveFloat = 0.002
    sigma_max: PositiveFloat = 80.0

    @model_validator(mode="after")
    def _range(self) -> Self:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(
                f"sigma_min must lie below sigma_max, got {self.sigma_min} and {self.sigma_max}"
            )
        return self


ProcessSpec: TypeAlias = EdmSpec
"""Every process a config can name: a union, told apart by `kind`, as soon as there are two."""


class WarmupSpec(Spec):
    """Weight warm-up: a cap on the loss weight that grows from `start` to `stop` over `window`.

    Attributes:
        window: images, or a share of the budget, after which the cap reaches `stop`.
        release: "drop" removes the cap at the end of the window (FDM as released), "never" lets it
            grow on (paper).
    """

    kind: Literal["warmup"] = "warmup"
    start: PositiveFloat = 5.0
    stop: PositiveFloat = 500.0
    window: Span = 102_400
    release: Literal["drop", "never"] = "drop"

    @model_validator(mode="after")
    def _grows(self) -> Self:
        if self.stop < self.start:
            raise ValueError(f"the cap cannot shrink: start is {self.start}, stop {self.stop}")
        return self


class FdmSpec(Spec):
    """FDM: a critically damped mean in place of c_in (FDM, eq. 5 and table 1).

    Attributes:
        multiplier: m of mu(m B(t')); 1 in the paper, 2 for EDM on CIFAR-10 and AFHQv2 as released.
        beta_min, beta_d: B(t') = beta_min t' + beta_d t'^2 / 2.
        clamp_t: keep t' within [0, 1]; released code lets noise levels beyond the process's range
            extrapolate.
        warmup: FDM's weight warm-up; None switches it off.
    """

    kind: Literal["fdm"] = "fdm"
    multiplier: NonNegativeFloat = 1.0
    beta_min: NonNegativeFloat = 0.1
    beta_d: NonNegativeFloat = 19.9
    clamp_t: bool = False
    warmup: WarmupSpec | None = WarmupSpec()


class QuantileThreshold(Spec):
    """The threshold lies where the base law's cumulative probability is `q`."""

    kind: Literal["quantile"] = "quantile"
    q: Annotated[float, Field(gt=0, lt=1)]


class MagnitudeThreshold(Spec):
    """The threshold lies where 1 + (sigma / sd_ref)^2 = r; SpeeD's 700 of 1000 is r = 138.6."""

    kind: Literal["magnitude"] = "magnitude"
    r: Annotated[float, Field(gt=1)] = 138.6


class SpeedSpec(Spec):
    """SpeeD: asymmetric noise levels and change-aware weights (SpeeD, eq. 3 and section 2.6).

    Attributes:
        k: how many times denser levels below the threshold are drawn, relative to the base law,
            than those above.
        lam: change-aware weights lie in [1 - lam, lam].
        threshold: where suppression begins.
        sampling, weighting: the two halves of the method, each of which can be switched off.
        sd_ref: standard deviation that measures a noise level; None takes the process's
            (sigma_data for EDM).
    """

    kind: Literal["speed"] = "speed"
    k: Annotated[float, Field(ge=1)] = 5.0
    lam: Annotated[float, Field(ge=0.5, le=1)] = 0.6
    threshold: Annotated[QuantileThreshold | MagnitudeThreshold, Field(discriminator="kind")] = (
        MagnitudeThreshold()
    )
    sampling: bool = True
    weighting: bool = True
    sd_ref: PositiveFloat | None = None


StrategySpec = Annotated[WarmupSpec | FdmSpec | SpeedSpec, Field(discriminator="kind")]
"""Every strategy a config can name, told apart by `kind`."""


@dataclass(frozen=True)
class LogNormalLaw:
    """ln sigma ~ N(mean, std^2), in plain Python."""

    mean: float
    std: float

    def cdf(self, sigma: float) -> float:
        """Probability of a noise level at or below `sigma` > 0."""
        return _NORMAL.cdf((math.log(sigma) - self.mean) / self.std)

    def tail(self, sigma: float) -> float:
        """Probability of a noise level above `sigma` > 0, without the cancellation of 1 - cdf."""
        return _NORMAL.cdf((self.mean - math.log(sigma)) / self.std)

    def icdf(self, u: float) -> float:
        """The noise level below which a share `u` in (0, 1) lies."""
        return math.exp(self.mean + self.std * _NORMAL.inv_cdf(u))


def base_law(process: ProcessSpec) -> LogNormalLaw:
    """The process's own law of training noise levels."""
    return LogNormalLaw(process.p_mean, process.p_std)


def reference_std(process: ProcessSpec, speed: SpeedSpec) -> float:
    """The standard deviation SpeeD measures noise levels by: the spec's, else the process's."""
    return process.sigma_data if speed.sd_ref is None else speed.sd_ref


def magnitude_sigma(r: float, sd_ref: float) -> float:
    """The noise level at which 1 + (sigma / sd_ref)^2 = r."""
    return sd_ref * math.sqrt(r - 1)


def suppressed_mass(process: ProcessSpec, speed: SpeedSpec) -> float:
    """The base law's mass above SpeeD's threshold: the share that asymmetric sampling makes rarer.

    0.3 for SpeeD's own 700 of 1000 steps; 0.0067 for EDM's law under the same magnitude rule.
    """
    if isinstance(speed.threshold, QuantileThreshold):
        return 1 - speed.threshold.q
    return base_law(process).tail(
        magnitude_sigma(speed.threshold.r, reference_std(process, speed))
    )


# Total variation between base and asymmetric law below which a run can hardly differ from one
# without it.
_NEARLY_INERT = 0.02


def nearly_inert(process: ProcessSpec, speed: SpeedSpec) -> str | None:
    """A warning if asymmetric sampling moves under 2 % of the draws, None otherwise.

    The share of draws that move is the total variation distance of the two laws, a (1-a) (k-1) /
    (1 + a (k-1)) with a the mass below the threshold. k = 1 and sampling = false ask for no
    change, and are not warned of.
    """
    if not speed.sampling or speed.k == 1:
        return None
    mass = suppressed_mass(process, speed)
    below = 1 - mass
    moved = below * mass * (speed.k - 1) / (1 + below * (speed.k - 1))
    if moved >= _NEARLY_INERT:
        return None
    if isinstance(speed.threshold, MagnitudeThreshold):
        sigma = magnitude_sigma(speed.threshold.r, reference_std(process, speed))
        where = f"the magnitude rule r = {speed.threshold.r:g} (sigma = {sigma:.4g})"
    else:
        where = f"the quantile {speed.threshold.q:g}"
    return (
        f"SpeeD's asymmetric sampling is nearly inert: {mass:.3g} of the {process.kind} "
        f"noise-level law lies above {where}, so k = {speed.k:g} moves {moved:.2g} of the draws. "
        "Use threshold={kind: quantile, q: 0.7} for the share that SpeeD suppresses in DDPM, "
        "or sampling=false."
    )


def check_strategies(process: ProcessSpec, strategies: Sequence[StrategySpec]) -> list[str]:
    """Every reason why these strategies cannot be combined; an empty list if they can."""
    problems = []
    for kind in dict.fromkeys(spec.kind for spec in strategies):
        places = [f"strategies[{i}]" for i, spec in enumerate(strategies) if spec.kind == kind]
        if len(places) > 1:
            problems.append(
                f"{' and '.join(places)} are both {kind}, which change the same piece: keep one"
            )
    warmups = [i for i, spec in enumerate(strategies) if spec.kind == "warmup"]
    for i, spec in enumerate(strategies):
        if isinstance(spec, FdmSpec) and spec.warmup is not None and warmups:
            problems.append(
                f"strategies[{i}] (fdm) brings its own weight warm-up and "
                f"strategies[{warmups[0]}] is another: set strategies[{i}].warmup to null, "
                f"or remove strategies[{warmups[0]}]"
            )
        if isinstance(spec, SpeedSpec) and not (spec.sampling or spec.weighting):
            problems.append(
                f"strategies[{i}] (speed) has sampling=false and weighting=false and changes "
                "nothing: remove it, or switch one of the two on"
            )
    return problems
