"""The objective: all that loss and denoiser read, as one frozen record that strategies rewrite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fleetstep.diffusion.noise_levels import LogNormal, NoiseLevels
from fleetstep.diffusion.precondition import Denoiser, Network, Preconditioning, edm_coefficients
from fleetstep.diffusion.process import Process, build_process
from fleetstep.diffusion.spec import (
    EdmSpec,
    FdmSpec,
    ProcessSpec,
    SpeedSpec,
    StrategySpec,
    WarmupSpec,
    check_strategies,
)
from fleetstep.diffusion.strategies import fdm, speed, warmup
from fleetstep.diffusion.weighting import Clamp, EdmWeight, Weighting
from fleetstep.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What is trained. Two equal records train the same thing.

    Attributes:
        process: how data is noised.
        coefficients: sigma_B -> preconditioning; the denoiser is built from it, so that sampling
            sees FDM's too.
        noise_levels: the law of training noise levels.
        base_weight: loss weight in x0-space before clamps and multipliers.
        clamps: applied to the base weight, as a function of the optimiser step.
        multipliers: applied after all clamps.
        base_noise_levels: the process's own law, which no strategy changes: held-out levels.
    """

    process: Process
    coefficients: Preconditioning
    noise_levels: NoiseLevels
    base_weight: Weighting
    clamps: tuple[Clamp, ...] = ()
    multipliers: tuple[Weighting, ...] = ()
    base_noise_levels: NoiseLevels

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


# What replaces a piece goes before what wraps it (SpeeD wraps the law), whatever the order in the
# config. Clamps and multipliers are kept apart in the record, where every clamp precedes every
# multiplier.
_ORDER: tuple[type[StrategySpec], ...] = (FdmSpec, WarmupSpec, SpeedSpec)


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
        ConfigError: if two strategies change the same piece.
    """
    if problems := check_strategies(process, strategies):
        raise ConfigError(problems)
    objective = _plain(process)
    for spec in sorted(strategies, key=lambda s: _ORDER.index(type(s))):
        match spec:
            case FdmSpec():
                objective = fdm.apply(
                    spec, objective, budget_images=budget_images, global_batch=global_batch
                )
            case WarmupSpec():
                objective = warmup.apply(
                    spec, objective, budget_images=budget_images, global_batch=global_batch
                )
            case SpeedSpec():
                objective = speed.apply(spec, objective)
    return objective


def _plain(process: ProcessSpec) -> Objective:
    """The process's own objective, without any strategy."""
    match process:
        case EdmSpec():
            law = LogNormal(process.p_mean, process.p_std)
            return Objective(
                process=build_process(process),
                coefficients=edm_coefficients(process.sigma_data),
                noise_levels=law,
                base_weight=EdmWeight(process.sigma_data),
                base_noise_levels=law,
            )
