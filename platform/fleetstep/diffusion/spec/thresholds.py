"""Where SpeeD's suppression begins, as a share of the base law, and how much it suppresses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from statistics import NormalDist
from typing import Literal

from fleetstep.diffusion.spec.laws import (
    LogNormalLaw,
    base_law,
    ddpm_betas,
    ddpm_sigmas,
    level_range,
)
from fleetstep.diffusion.spec.processes import DdpmSpec, ProcessSpec, sigma_data_of
from fleetstep.diffusion.spec.strategies import (
    LogitNormalSpec,
    LogNormalSpec,
    MagnitudeThreshold,
    QuantileThreshold,
    SlopeThreshold,
    SpeedSpec,
    StepsThreshold,
    StrategySpec,
)


def reference_std(process: ProcessSpec, speed: SpeedSpec) -> float:
    """The standard deviation SpeeD measures noise levels by: the spec's, else the process's."""
    return sigma_data_of(process) if speed.sd_ref is None else speed.sd_ref


def magnitude_sigma(r: float, sd_ref: float) -> float:
    """The noise level at which 1 + (sigma / sd_ref)^2 = r."""
    return sd_ref * math.sqrt(r - 1)


def closed_form_tau(r: float, process: DdpmSpec) -> float:
    """SpeeD's tau(r): the time at which its bound exp(b0 t + dbeta t^2 / 2T) reaches r.

    Theorem 1, for the linear schedule; t counts from 1.
    """
    betas, steps = ddpm_betas(process.schedule, process.steps), process.steps
    spread = betas[-1] - betas[0]
    offset = steps * (betas[0] - spread / steps) / spread
    return math.sqrt(2 * steps * math.log(r) / spread + offset**2) - offset


@cache
def slope_count(
    schedule: Literal["linear", "quadratic", "cosine"], steps: int, slope: float
) -> int | None:
    """Steps up to and with the first at which sqrt(1 - abar) grows by less than `slope` a step.

    Central differences, one-sided at the ends; None if there is no such step.
    """
    noise = [sigma / math.hypot(1, sigma) for sigma in ddpm_sigmas(schedule, steps)]
    for i in range(steps):
        low, high = max(i - 1, 0), min(i + 1, steps - 1)
        if (noise[high] - noise[low]) / (high - low) < slope:
            return i + 1
    return None


def threshold_quantile(process: ProcessSpec, speed: SpeedSpec) -> float:
    """The threshold as a share of the process's base law, in (0, 1].

    Raises:
        ValueError: the rule does not fit the process, or lies outside the law's support; the text
            says what works.
    """
    threshold = speed.threshold
    if isinstance(threshold, QuantileThreshold):
        return threshold.q
    if isinstance(threshold, MagnitudeThreshold) and threshold.rule == "exact":
        sigma = magnitude_sigma(threshold.r, reference_std(process, speed))
        share = base_law(process).cdf(sigma)
        if not 0 < share < 1:
            raise ValueError(
                f"the magnitude rule r = {threshold.r:g} puts the threshold at sigma = "
                f"{sigma:.4g}, outside the support of the {process.kind} law of noise levels: use "
                f"{_advice(process)}"
            )
        return share
    if not isinstance(process, DdpmSpec):
        raise ValueError(
            f"a threshold by {_rule(threshold)} counts the steps of a ddpm process, and this is "
            f"{process.kind}: use {_advice(process)}"
        )
    return _count(process, threshold) / process.steps


def threshold_sigma(process: ProcessSpec, speed: SpeedSpec) -> float:
    """The threshold as a noise level: levels above it are suppressed.

    For a ddpm process it is the level of the last step that is not.

    Raises:
        ValueError: see `threshold_quantile`.
    """
    share, threshold = threshold_quantile(process, speed), speed.threshold
    if isinstance(process, DdpmSpec):
        count = max(round(share * process.steps), 1)
        return ddpm_sigmas(process.schedule, process.steps)[count - 1]
    if isinstance(threshold, MagnitudeThreshold):
        return magnitude_sigma(threshold.r, reference_std(process, speed))
    return base_law(process).icdf(share)


def reflection_step(process: DdpmSpec, speed: SpeedSpec) -> int:
    """M of SpeeD's reflected pairs, i -> |M - i|: `reflect_at` of T steps, or the released rule.

    That rule is `slope_count` at 1e-4: 642, 829 and 959 of 1000 steps of the linear, quadratic and
    cosine schedules.

    Raises:
        ValueError: if M is 0, or there is no step that the rule asks for; the text says what
            works.
    """
    if speed.reflect_at is not None:
        step = round(speed.reflect_at * process.steps)
        if step == 0:
            raise ValueError(
                f"reflect_at = {speed.reflect_at:g} of T = {process.steps} steps is step 0, which "
                f"reflects nothing: use at least {1 / process.steps:g}"
            )
        return step
    found = slope_count(process.schedule, process.steps, SlopeThreshold().slope)
    if found is None:
        raise ValueError(
            f"the released rule finds no step of the {process.schedule} schedule with T = "
            f"{process.steps} to reflect at: give reflect_at (0.642 for 1000 linear steps)"
        )
    return found


def _count(
    process: DdpmSpec, threshold: StepsThreshold | MagnitudeThreshold | SlopeThreshold
) -> int:
    count: int | None
    match threshold:
        case StepsThreshold():
            count = threshold.count
        case MagnitudeThreshold():
            if process.schedule != "linear":
                raise ValueError(
                    "the closed form of tau(r) holds for the linear schedule, and this is "
                    f"{process.schedule}: use rule: exact"
                )
            # r of a whole tau, such as 138.597 of 700, may come back a rounding below it.
            count = math.floor(closed_form_tau(threshold.r, process) + 1e-9)
        case SlopeThreshold():
            count = slope_count(process.schedule, process.steps, threshold.slope)
    if count is None or not 1 <= count <= process.steps:
        found = "no step" if count is None else f"tau = {count}"
        raise ValueError(
            f"the threshold by {_rule(threshold)} is {found}, and tau must lie in 1 .. T = "
            f"{process.steps}: use {_advice(process)}"
        )
    return count


def _rule(threshold: StepsThreshold | MagnitudeThreshold | SlopeThreshold) -> str:
    match threshold:
        case StepsThreshold():
            return "steps"
        case MagnitudeThreshold():
            return "magnitude (closed form)"
        case SlopeThreshold():
            return "slope"


def _advice(process: ProcessSpec) -> str:
    if isinstance(process, DdpmSpec):
        return f"{{kind: steps, count: {round(0.7 * process.steps)}}}"
    return "{kind: quantile, q: 0.7}"


def suppressed_mass(
    process: ProcessSpec, speed: SpeedSpec, strategies: Sequence[StrategySpec] = ()
) -> float:
    """The law's mass above SpeeD's threshold: the share that asymmetric sampling makes rarer.

    0.3 for SpeeD's own 700 of 1000 steps; 0.0067 for EDM's law under the same magnitude rule.

    Args:
        process: whose law it is.
        speed: the threshold's rule.
        strategies: of the run; one of them may have replaced the process's law. The threshold
            stays at its noise level.

    Raises:
        ValueError: see `threshold_quantile`.
    """
    for other in strategies:
        if isinstance(other, LogNormalSpec | LogitNormalSpec):
            return _replaced_mass(process, other, threshold_sigma(process, speed))
    threshold = speed.threshold
    if isinstance(threshold, MagnitudeThreshold) and threshold.rule == "exact":
        threshold_quantile(process, speed)
        return base_law(process).tail(magnitude_sigma(threshold.r, reference_std(process, speed)))
    return 1 - threshold_quantile(process, speed)


def _replaced_mass(
    process: ProcessSpec, law: LogNormalSpec | LogitNormalSpec, sigma: float
) -> float:
    own = base_law(process)
    if isinstance(law, LogitNormalSpec):
        share = own.cdf(sigma)
        if share == 1:
            return 0.0
        return NormalDist().cdf((law.mean - math.log(share / (1 - share))) / law.std)
    wide = LogNormalLaw(law.mean, law.std)
    if isinstance(process, DdpmSpec):
        # Two neighbouring steps share the mass between them; the ends have all beyond them.
        beyond_steps = [s for s in ddpm_sigmas(process.schedule, process.steps) if s > sigma]
        return (wide.tail(sigma) + wide.tail(beyond_steps[0])) / 2 if beyond_steps else 0.0
    low, high = level_range(process)
    beyond = wide.tail(high)
    return (wide.tail(max(sigma, low)) - beyond) / (wide.tail(low) - beyond)


# Total variation between base and asymmetric law below which a run can hardly differ from one
# without it.
_NEARLY_INERT = 0.02


def nearly_inert(
    process: ProcessSpec, speed: SpeedSpec, strategies: Sequence[StrategySpec] = ()
) -> str | None:
    """A warning if asymmetric sampling moves under 2 % of the draws, None otherwise.

    The share of draws that move is the total variation distance of the two laws, a (1-a) (k-1) /
    (1 + a (k-1)) with a the mass below the threshold. k = 1 and sampling = false ask for no
    change, and are not warned of.

    Raises:
        ValueError: see `threshold_quantile`.
    """
    if not speed.sampling or speed.k == 1:
        return None
    mass = suppressed_mass(process, speed, strategies)
    below = 1 - mass
    moved = below * mass * (speed.k - 1) / (1 + below * (speed.k - 1))
    if moved >= _NEARLY_INERT:
        return None
    if isinstance(speed.threshold, MagnitudeThreshold):
        sigma = magnitude_sigma(speed.threshold.r, reference_std(process, speed))
        where = f"the magnitude rule r = {speed.threshold.r:g} (sigma = {sigma:.4g})"
    else:
        where = f"the quantile {below:g}"
    return (
        f"SpeeD's asymmetric sampling is nearly inert: {mass:.3g} of the {process.kind} "
        f"noise-level law lies above {where}, so k = {speed.k:g} moves {moved:.2g} of the draws. "
        "Use threshold={kind: quantile, q: 0.7} for the share that SpeeD suppresses in DDPM, "
        "or sampling=false."
    )
