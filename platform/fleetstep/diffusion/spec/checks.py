"""Which strategies fit a process and each other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from fleetstep.diffusion.spec.laws import LogNormalLaw, base_law, level_range
from fleetstep.diffusion.spec.processes import (
    HIGHEST_LEVEL,
    DdpmSpec,
    EdmSpec,
    ProcessSpec,
    VpSpec,
)
from fleetstep.diffusion.spec.strategies import (
    AntUwSpec,
    CltsSpec,
    FdmSpec,
    LogitNormalSpec,
    LogNormalSpec,
    MinSnrSpec,
    P2Spec,
    SpeedSpec,
    StrategySpec,
    TskDifCurSpec,
    UniformSpec,
    WarmupSpec,
)
from fleetstep.diffusion.spec.thresholds import (
    reflection_step,
    suppressed_mass,
    threshold_quantile,
    threshold_sigma,
)


def check_range(process: ProcessSpec, sigma_min: float, sigma_max: float) -> list[str]:
    """Why samplers, which walk [sigma_min, sigma_max], cannot sample the process; [] if they can.

    Training does not need it: a grid of samples or a sweep does.
    """
    low, high = level_range(process)
    if max(low, sigma_min) < min(high, sigma_max):
        return []
    return [
        f"the noise levels {low:.4g} .. {high:.4g} of {process.kind} do not meet the range "
        f"{sigma_min:g} .. {sigma_max:g} that samplers walk: widen them"
    ]


def check_strategies(
    process: ProcessSpec, strategies: Sequence[StrategySpec], global_batch: int | None = None
) -> list[str]:
    """Every reason why these strategies cannot be combined; an empty list if they can.

    Args:
        process: what they are applied to.
        strategies: in any order.
        global_batch: images per optimiser step, if known: some strategies divide it.
    """
    problems = list(_repeated(strategies))
    problems += _conflicts(strategies)
    problems += _beside_additive(strategies)
    for i, spec in enumerate(strategies):
        found = [*_misfits(process, spec, global_batch)]
        if isinstance(spec, SpeedSpec) and not found:
            found += _outside_replaced_law(process, spec, strategies)
        problems += [f"strategies[{i}] ({spec.kind}) {problem}" for problem in found]
    return problems


def _outside_replaced_law(
    process: ProcessSpec, speed: SpeedSpec, strategies: Sequence[StrategySpec]
) -> Iterator[str]:
    """A threshold within the process's law can lie outside one that another strategy put there."""
    replaced = [s for s in strategies if isinstance(s, LogNormalSpec | LogitNormalSpec)]
    if not (speed.sampling and replaced):
        return
    mass = suppressed_mass(process, speed, strategies)
    if not 0 < mass < 1:
        where = "above" if mass == 0 else "below"
        yield (
            f"threshold: sigma = {threshold_sigma(process, speed):.4g} lies {where} all levels of "
            f"the {replaced[0].kind} law with mean {replaced[0].mean:g} and std "
            f"{replaced[0].std:g}: move mean, or set sampling: false"
        )


def _repeated(strategies: Sequence[StrategySpec]) -> Iterator[str]:
    for kind in dict.fromkeys(spec.kind for spec in strategies):
        places = [f"strategies[{i}]" for i, spec in enumerate(strategies) if spec.kind == kind]
        if len(places) > 1:
            yield f"{' and '.join(places)} are both {kind}, which change the same piece: keep one"


def _claims(spec: StrategySpec) -> dict[str, str]:
    """What a strategy claims for itself -> the switch that gives it up."""
    match spec:
        case WarmupSpec():
            return {"the clamp of the loss weight": ""}
        case FdmSpec():
            return {"the clamp of the loss weight": "warmup: null"} if spec.warmup else {}
        case P2Spec() | MinSnrSpec():
            return {"the base weight": ""}
        case UniformSpec() | LogNormalSpec() | LogitNormalSpec():
            return {"the law of noise levels": ""}
        case CltsSpec():
            return {"the law of noise levels": "", "a law that training wraps or moves": ""}
        case TskDifCurSpec():
            return {
                "the law of noise levels": "",
                "a law that training wraps or moves": "",
                "what is learned from the losses": "",
                "where levels may lie": "",
            }
        case AntUwSpec():
            return {"how draws are tied together": "", "what is learned from the losses": ""}
        case SpeedSpec():
            claims = {}
            if spec.sampling:
                claims["a law that training wraps or moves"] = "sampling: false"
            if spec.reflected_pairs:
                claims["how draws are tied together"] = "reflected_pairs: false"
                claims["where levels may lie"] = "reflected_pairs: false"
            return claims


def _conflicts(strategies: Sequence[StrategySpec]) -> Iterator[str]:
    """Pairs of different kinds that claim the same piece, named once."""
    for j, second in enumerate(strategies):
        for i, first in enumerate(strategies[:j]):
            if first.kind == second.kind:
                continue
            theirs, ours = _claims(first), _claims(second)
            shared = next((piece for piece in theirs if piece in ours), None)
            if shared is None:
                continue
            switches = [
                f"set {claims[shared]} in strategies[{place}]"
                for place, claims in ((i, theirs), (j, ours))
                if claims[shared]
            ]
            yield (
                f"strategies[{i}] ({first.kind}) and strategies[{j}] ({second.kind}) both change "
                f"{shared}: {', or '.join([*switches, 'remove one of them'])}"
            )


def _beside_additive(strategies: Sequence[StrategySpec]) -> Iterator[str]:
    """Strategies that cannot stand beside FDM's additive kernel: all but a warm-up."""
    kernels = [s.kernel if isinstance(s, FdmSpec) else None for s in strategies]
    if "additive" not in kernels:
        return
    place = kernels.index("additive")
    for i, spec in enumerate(strategies):
        if not isinstance(spec, FdmSpec | WarmupSpec):
            yield (
                f"strategies[{place}] (fdm) with kernel additive changes the noise levels "
                f"themselves, and strategies[{i}] ({spec.kind}) reads the process's own: set "
                f"kernel: multiplicative in strategies[{place}], or remove strategies[{i}]"
            )


def _misfits(process: ProcessSpec, spec: StrategySpec, global_batch: int | None) -> Iterator[str]:
    match spec:
        case FdmSpec():
            yield from _fdm(process, spec)
        case SpeedSpec():
            yield from _speed(process, spec)
        case P2Spec() if process.prediction not in ("eps", "F"):
            yield (
                "weighs the loss of an eps-prediction, and process.prediction is "
                f"{process.prediction}: use prediction eps (or F), or min_snr, which has a form "
                "for every prediction"
            )
        case UniformSpec() | LogitNormalSpec() if not isinstance(process, DdpmSpec | VpSpec):
            yield (
                f"is a law of times in [0, 1], which {process.kind} does not have: use a ddpm or "
                "vp process, or log_normal"
            )
        case CltsSpec() if not isinstance(process, DdpmSpec):
            yield f"is a law of DDPM's steps, and the process is {process.kind}: use ddpm"
        case LogNormalSpec() if isinstance(process, EdmSpec):
            yield "is EDM's own law: set process.p_mean and process.p_std instead"
        case LogNormalSpec():
            yield from _log_normal(process, spec)
        case AntUwSpec() if global_batch is not None and global_batch % spec.clusters:
            yield (
                f"gives each of {spec.clusters} clusters an equal share of the global batch, and "
                f"{global_batch} is not divisible by {spec.clusters}: use clusters "
                f"{_divisor(global_batch, spec.clusters)}, or a global_batch that {spec.clusters} "
                "divides"
            )
        case _:
            pass


def _divisor(batch: int, wanted: int) -> int:
    """The divisor of a batch, above 1, that is nearest to what was wanted."""
    divisors = [n for n in range(2, batch + 1) if batch % n == 0]
    return min(divisors, key=lambda n: (abs(n - wanted), n), default=wanted)


# A law cut to the process's range that keeps less than this is not the law that was asked for.
_LEAST_INSIDE = 0.01


def _log_normal(process: ProcessSpec, spec: LogNormalSpec) -> Iterator[str]:
    law, (low, high) = LogNormalLaw(spec.mean, spec.std), level_range(process)
    inside = law.cdf(high) - law.cdf(low)
    if inside < _LEAST_INSIDE:
        yield (
            f"has {inside:.2g} of its levels within the process's range {low:.4g} .. {high:.4g}, "
            f"and needs {_LEAST_INSIDE}: move mean ({spec.mean:g}) between {math.log(low):.3g} "
            f"and {math.log(high):.3g}"
        )


def _fdm(process: ProcessSpec, spec: FdmSpec) -> Iterator[str]:
    if isinstance(process, DdpmSpec):
        yield "is defined on vp, ve and edm, and the process is ddpm: use vp"
        return
    if spec.time_map == "process_time" and not isinstance(process, VpSpec):
        yield (
            f"time_map process_time is VP's own time, which {process.kind} does not have: use "
            "linear"
        )
    eps_on_vp = isinstance(process, VpSpec) and process.prediction == "eps"
    if spec.kernel == "additive" and not eps_on_vp:
        yield (
            "kernel additive is for the eps-prediction of vp, and the process is "
            f"{process.kind} with prediction {process.prediction}: use multiplicative"
        )
    elif spec.kernel == "additive":
        yield from _additive_range(process, spec)


def _additive_range(process: ProcessSpec, spec: FdmSpec) -> Iterator[str]:
    b = spec.multiplier * (spec.beta_min + spec.beta_d / 2)
    highest = math.log(base_law(process).icdf(1.0)) + b - math.log1p(b)
    if highest > math.log(HIGHEST_LEVEL):
        yield (
            "kernel additive divides noise levels by the mean mu, and the highest would be "
            f"1e{highest / math.log(10):.0f}, above {HIGHEST_LEVEL:.0e}: use a smaller "
            "multiplier or beta, or multiplicative"
        )


def _speed(process: ProcessSpec, spec: SpeedSpec) -> Iterator[str]:
    if not ((spec.sampling and spec.k > 1) or spec.weighting or spec.reflected_pairs):
        off = "sampling=false" if not spec.sampling else "k=1"
        yield (
            f"has {off} and weighting=false and changes nothing: remove it, or switch one of the "
            "two on"
        )
    if spec.sampling or spec.tail_weight is not None:
        try:
            threshold_quantile(process, spec)
        except ValueError as error:
            yield f"threshold: {error}"
    yield from _speed_weights(process, spec)
    yield from _speed_pairs(process, spec)


def _speed_weights(process: ProcessSpec, spec: SpeedSpec) -> Iterator[str]:
    if spec.change == "closed_form" and not (
        isinstance(process, DdpmSpec) and process.schedule == "linear"
    ):
        yield "change closed_form is for ddpm with the linear schedule: use quantile, or null"
    if spec.change == "finite_difference" and not isinstance(process, DdpmSpec):
        yield f"change finite_difference is for ddpm, not {process.kind}: use quantile, or null"
    idle = {
        "change": spec.change is not None,
        "tail_weight": spec.tail_weight is not None,
        "normalize": spec.normalize != "none",
    }
    if not spec.weighting and any(idle.values()):
        names = " and ".join(name for name, is_set in idle.items() if is_set)
        yield f"sets {names}, which weighting: false leaves without effect"


def _speed_pairs(process: ProcessSpec, spec: SpeedSpec) -> Iterator[str]:
    if not spec.reflected_pairs:
        if spec.reflect_at is not None:
            yield "sets reflect_at, which reflected_pairs: false leaves without effect"
        return
    if isinstance(process, DdpmSpec):
        try:
            reflection_step(process, spec)
        except ValueError as error:
            yield f"reflected_pairs: {error}"
    elif spec.reflect_at is None:
        yield (
            f"reflects the steps of ddpm, and the process is {process.kind}: give reflect_at, the "
            "quantile of the law to reflect at (0.642 for DDPM's linear schedule)"
        )
