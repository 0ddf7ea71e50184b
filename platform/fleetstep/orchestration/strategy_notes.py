"""What a process and its strategies mean in one experiment, with every number worked out."""

from __future__ import annotations

from collections.abc import Iterator

from fleetstep.config import Experiment
from fleetstep.diffusion.spec import (
    AntUwSpec,
    CltsSpec,
    DdpmSpec,
    FdmSpec,
    LogitNormalSpec,
    LogNormalSpec,
    MagnitudeThreshold,
    MinSnrSpec,
    P2Spec,
    ProcessSpec,
    SpeedSpec,
    StrategySpec,
    TskDifCurSpec,
    UniformSpec,
    VpSpec,
    WarmupSpec,
    base_law,
    magnitude_sigma,
    nearly_inert,
    reference_std,
    suppressed_mass,
    threshold_quantile,
)
from fleetstep.spec import span_images


def process_note(process: ProcessSpec) -> str:
    """The process and what the network predicts: "process ddpm (cosine, 1000 steps), ..."."""
    learned = isinstance(process, DdpmSpec) and process.learned_variance
    variance = " and the variance of each step" if learned else ""
    return (
        f"process {process.kind}{_details(process)}, the network predicts "
        f"{process.prediction}{variance}"
    )


def _details(process: ProcessSpec) -> str:
    match process:
        case VpSpec() if process.beta_scale != 1:
            return f" (beta x {process.beta_scale:g})"
        case DdpmSpec():
            return f" ({process.schedule}, {process.steps} steps)"
        case _:
            return ""


def strategy_notes(experiment: Experiment) -> Iterator[str]:
    """A line for every strategy, and a warning after one that can hardly change anything."""
    for strategy in experiment.strategies:
        yield f"{strategy.label}: {_meaning(experiment, strategy)}"
        if isinstance(strategy, SpeedSpec):
            warning = nearly_inert(experiment.process, strategy, experiment.strategies)
            if warning is not None:
                yield f"warning: {warning}"


def _meaning(experiment: Experiment, spec: StrategySpec) -> str:
    match spec:
        case WarmupSpec():
            return _clamp(experiment, spec)
        case FdmSpec():
            clamp = "no warm-up" if spec.warmup is None else _clamp(experiment, spec.warmup)
            kernel = ", additive kernel" if spec.kernel == "additive" else ""
            return f"c_in = exp(-m B)(1 + m B) with m = {spec.multiplier:g}{kernel}; {clamp}"
        case SpeedSpec():
            return "; ".join(_speed(experiment, spec))
        case UniformSpec():
            return "every time as likely"
        case P2Spec():
            return f"eps-loss weighted by ({spec.k:g} + SNR)^-{spec.gamma:g}"
        case MinSnrSpec():
            return f"x0-loss weighted by min(SNR, {spec.gamma:g})"
        case LogNormalSpec():
            return f"noise levels ln sigma ~ N({spec.mean:g}, {spec.std:g}^2)"
        case LogitNormalSpec():
            return f"times sigmoid(z), z ~ N({spec.mean:g}, {spec.std:g}^2)"
        case CltsSpec():
            return (
                f"from uniform steps to N({spec.mean:g} T, ({spec.std:g} T)^2) over "
                f"{_span(experiment, spec.window)}"
            )
        case AntUwSpec():
            return (
                f"{spec.clusters} clusters of noise levels with "
                f"{experiment.training.global_batch // spec.clusters} images each of every batch, "
                f"weighted by learned uncertainties (AdamW, lr {spec.lr:g})"
            )
        case TskDifCurSpec():
            return (
                f"noise levels in {spec.clusters} shares, the noisiest first; the next is added "
                f"after {spec.patience} steps without a lower loss"
            )


def _clamp(experiment: Experiment, warmup: WarmupSpec) -> str:
    after = "" if warmup.release == "drop" else ", and grows on"
    return (
        f"loss weight capped at {warmup.start:g}, growing to {warmup.stop:g} over "
        f"{_span(experiment, warmup.window)}{after}"
    )


def _speed(experiment: Experiment, spec: SpeedSpec) -> Iterator[str]:
    process = experiment.process
    if spec.sampling or spec.tail_weight is not None:
        yield f"threshold at {_threshold(process, spec)}"
    if spec.sampling:
        mass = suppressed_mass(process, spec, experiment.strategies)
        share = f"{_percent(mass)} of the law's mass lies beyond the threshold"
        if spec.k > 1:
            left = mass / (spec.k * (1 - mass) + mass)
            reflected = ", before reflection" if spec.reflected_pairs else ""
            yield (
                f"{share}; its share of the draws falls to {_percent(left)} (k = "
                f"{spec.k:g}{reflected})"
            )
        else:
            yield f"{share} and keeps its share of the draws (k = 1)"
    if spec.reflected_pairs:
        yield "every second level is the reflection of the one before"
    if spec.weighting:
        tail = "" if spec.tail_weight is None else f", {spec.tail_weight:g} beyond the threshold"
        scaled = ", divided by their mean" if spec.normalize == "mean_one" else ""
        yield f"change-aware weights in [{1 - spec.lam:g}, {spec.lam:g}]{tail}{scaled}"


def _threshold(process: ProcessSpec, spec: SpeedSpec) -> str:
    q = threshold_quantile(process, spec)
    if isinstance(process, DdpmSpec):
        return f"step {round(q * process.steps)} of {process.steps}"
    if isinstance(spec.threshold, MagnitudeThreshold):
        return f"sigma = {magnitude_sigma(spec.threshold.r, reference_std(process, spec)):.4g}"
    return f"sigma = {base_law(process).icdf(q):.4g} (quantile {q:g})"


def _span(experiment: Experiment, span: int | str) -> str:
    """ "102.4 kimg = 200 steps (0.05 % of the run)"."""
    training = experiment.training
    images = span_images(span, training.images)
    steps = -(-images // training.global_batch)
    share = _percent(images / training.images)
    return f"{images / 1000:g} kimg = {steps} steps ({share} of the run)"


def _percent(share: float) -> str:
    return f"{100 * share:.{1 if share >= 0.01 else 2}f} %"
