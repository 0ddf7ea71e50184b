"""The objective: all that loss and denoiser read, as one frozen record that strategies rewrite."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from fleetstep.diffusion.adaptive import Adaptive, State
from fleetstep.diffusion.coupling import Coupling, Independent
from fleetstep.diffusion.noise_levels import NoiseLevels, build_law
from fleetstep.diffusion.precondition import Denoiser, Network, Preconditioning, coefficients_of
from fleetstep.diffusion.process import Process, build_process
from fleetstep.diffusion.spec import (
    AntUwSpec,
    CltsSpec,
    DdpmSpec,
    FdmSpec,
    LogitNormalSpec,
    LogNormalSpec,
    MinSnrSpec,
    P2Spec,
    ProcessSpec,
    SpeedSpec,
    StrategySpec,
    TskDifCurSpec,
    UniformSpec,
    WarmupSpec,
    check_strategies,
)
from fleetstep.diffusion.strategies import (
    curriculum,
    fdm,
    resampling,
    reweighting,
    speed,
    uncertainty,
    warmup,
)
from fleetstep.diffusion.strategies.context import Context
from fleetstep.diffusion.variance import VarianceBound
from fleetstep.diffusion.weighting import Clamp, Weighting, base_weight_of, own_weight_of
from fleetstep.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What is trained. Two equal records train the same thing.

    Attributes:
        process: how data is noised.
        coefficients: sigma_B -> preconditioning; the denoiser is built from it, so that sampling
            sees FDM's too.
        noise_levels: the law of training noise levels.
        law_at: optimiser step -> law, in place of `noise_levels`, if it follows a schedule.
        coupling: how the draws of neighbouring stream positions are tied together.
        adaptive: what changes with the losses of the run.
        base_weight: loss weight in x0-space before clamps and multipliers.
        clamps: applied to the base weight, as a function of the optimiser step.
        multipliers: applied after all clamps.
        variance: the bound that trains a learned variance; it is not weighted.
        reduction: of an image's squared error: EDM sums it, DDPM takes its mean.
        base_noise_levels: the process's own law, which no strategy changes: held-out levels.
        own_weight: the process's own weight, which neither strategies nor the prediction change:
            held-out errors.
    """

    process: Process
    coefficients: Preconditioning
    noise_levels: NoiseLevels
    law_at: Callable[[int], NoiseLevels] | None = None
    coupling: Coupling = field(default_factory=Independent)
    adaptive: Adaptive | None = None
    base_weight: Weighting
    clamps: tuple[Clamp, ...] = ()
    multipliers: tuple[Weighting, ...] = ()
    variance: VarianceBound | None = None
    reduction: Literal["sum", "mean"] = "sum"
    base_noise_levels: NoiseLevels
    own_weight: Weighting

    def law(self, step: int, state: State | None = None) -> NoiseLevels:
        """The law at an optimiser step, under the state of what is adaptive (None: its start)."""
        law = self.noise_levels if self.law_at is None else self.law_at(step)
        if self.adaptive is None:
            return law
        return self.adaptive.law(law, self.adaptive.start() if state is None else state)

    def levels(self, u_B: Tensor, first: int, step: int, state: State | None = None) -> Tensor:
        """Noise levels sigma_B of stream positions first .. first+B-1, from the numbers that the
        coupling drew for them.
        """
        return self.coupling.tied(self.law(step, state).icdf(u_B), first)

    def weight(self, sigma_B: Tensor, step: int) -> Tensor:
        """clamp(base(sigma), step) * multipliers, float64 [B]; `step` counts from 0."""
        weight_B = self.base_weight(sigma_B)
        for clamp in self.clamps:
            weight_B = clamp(weight_B, step)
        for multiplier in self.multipliers:
            weight_B = weight_B * multiplier(sigma_B)
        return weight_B

    def denoiser(self, network: Network) -> Denoiser:
        """D(x; sigma) around `network`, with this objective's preconditioning.

        Its range is the process's under every strategy, so that runs of one process are sampled on
        the same levels.
        """
        return Denoiser(network, self.coefficients, self.process.sigma_min, self.process.sigma_max)


def build_objective(
    process: ProcessSpec,
    strategies: Sequence[StrategySpec],
    *,
    budget_images: int,
    global_batch: int,
) -> Objective:
    """The objective of a process under strategies; their order in the list does not matter.

    Args:
        process: the process's config.
        strategies: any combination that `check_strategies` accepts.
        budget_images: the run's image budget, of which windows may be shares.
        global_batch: images per optimiser step.

    Raises:
        ConfigError: if two strategies change the same piece, or one does not fit the process.
    """
    if problems := check_strategies(process, strategies, global_batch):
        raise ConfigError(problems)
    context = Context(process=process, budget_images=budget_images, global_batch=global_batch)
    objective = _plain(process)
    for spec in sorted(strategies, key=lambda s: _ORDER.index(type(s))):
        objective = _apply(spec, objective, context)
    return objective


# What replaces a piece goes before what wraps it (SpeeD wraps the law), whatever the order in the
# config. Clamps and multipliers are kept apart in the record, where every clamp precedes every
# multiplier.
_ORDER: tuple[type[StrategySpec], ...] = (
    UniformSpec,
    LogNormalSpec,
    LogitNormalSpec,
    CltsSpec,
    P2Spec,
    MinSnrSpec,
    FdmSpec,
    WarmupSpec,
    SpeedSpec,
    AntUwSpec,
    TskDifCurSpec,
)


def _apply(spec: StrategySpec, objective: Objective, context: Context) -> Objective:
    match spec:
        case UniformSpec() | LogNormalSpec() | LogitNormalSpec():
            return resampling.apply(spec, objective, context)
        case P2Spec() | MinSnrSpec():
            return reweighting.apply(spec, objective)
        case FdmSpec():
            return fdm.apply(spec, objective, context)
        case WarmupSpec():
            return warmup.apply(spec, objective, context)
        case SpeedSpec():
            return speed.apply(spec, objective, context)
        case CltsSpec() | TskDifCurSpec():
            return curriculum.apply(spec, objective, context)
        case AntUwSpec():
            return uncertainty.apply(spec, objective)


def _plain(process: ProcessSpec) -> Objective:
    """The process's own objective, without any strategy."""
    law = build_law(process)
    discrete = isinstance(process, DdpmSpec)
    return Objective(
        process=build_process(process),
        coefficients=coefficients_of(process),
        noise_levels=law,
        base_weight=base_weight_of(process),
        variance=(
            VarianceBound.of(process)
            if isinstance(process, DdpmSpec) and process.learned_variance
            else None
        ),
        reduction="mean" if discrete else "sum",
        base_noise_levels=law,
        own_weight=own_weight_of(process),
    )
