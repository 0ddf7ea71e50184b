"""Loss weights in x0-space: w(sigma) multiplies ||D(x; sigma) - x0||^2. All float64, shape [B]."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fleetstep.diffusion.spec import EdmSpec, ProcessSpec, sigma_data_of

Weighting = Callable[[Tensor], Tensor]
"""sigma_B -> weight_B."""

Clamp = Callable[[Tensor, int], Tensor]
"""(weight_B, optimiser step) -> weight_B."""


@dataclass(frozen=True)
class EpsWeight:
    """1 / sigma^2: the eps-loss, unweighted."""

    def __call__(self, sigma_B: Tensor) -> Tensor:
        """Weight of noise levels > 0."""
        return sigma_B**-2


@dataclass(frozen=True)
class CleanWeight:
    """1: the x0-loss, unweighted."""

    def __call__(self, sigma_B: Tensor) -> Tensor:
        """Weight of noise levels."""
        return torch.ones_like(sigma_B)


@dataclass(frozen=True)
class EdmWeight:
    """(sigma^2 + sd^2) / (sigma sd)^2: EDM's F unweighted; with sd = 1 the v-loss unweighted."""

    sigma_data: float

    def __call__(self, sigma_B: Tensor) -> Tensor:
        """Weight of noise levels > 0 (Karras et al. 2022, table 1)."""
        return (sigma_B**2 + self.sigma_data**2) / (sigma_B * self.sigma_data) ** 2


def base_weight_of(process: ProcessSpec) -> Weighting:
    """1 / c_out^2: the loss of what the network predicts, unweighted, as every process of the
    papers is trained.
    """
    match process.prediction:
        case "eps":
            return EpsWeight()
        case "x0":
            return CleanWeight()
        case "v":
            return EdmWeight(1.0)
        case "F":
            return EdmWeight(sigma_data_of(process))


def own_weight_of(process: ProcessSpec) -> Weighting:
    """The weight a process is published with, whatever the network here predicts: EDM's for edm,
    1 / sigma^2 for the others.

    An eps-prediction makes errors of D that grow with sigma^2: under EDM's weight the highest
    levels of VP, whose sigma is 150, would be all that counts.
    """
    return EdmWeight(process.sigma_data) if isinstance(process, EdmSpec) else EpsWeight()


@dataclass(frozen=True)
class WarmupClamp:
    """min(w, c_k) with the cap c_k = start (stop/start)^(k/steps) at optimiser step k (FDM).

    A function of the step, never a counter: it survives resume, accumulation and a change of world
    size. (The released loss multiplies a counter on each call, so it drifts, runs ahead under
    accumulation and starts anew on resume.)

    Args:
        start, stop: the cap at step 0 and at the end of the window.
        steps: length of the window in optimiser steps; 0 is no clamp at all.
        release: "drop" ends the clamp with the window, "never" lets the cap grow on.
    """

    start: float
    stop: float
    steps: int
    release: Literal["drop", "never"]

    def cap(self, step: int) -> float:
        """c_k, infinite once there is no clamp any more."""
        if self.steps == 0 or (self.release == "drop" and step >= self.steps):
            return math.inf
        growth = step / self.steps * math.log(self.stop / self.start)
        # Beyond e^700 a float64 overflows, and no weight is that large.
        return self.start * math.exp(growth) if growth < 700 else math.inf

    def __call__(self, weight_B: Tensor, step: int) -> Tensor:
        """The weight, clamped from above."""
        return weight_B.clamp(max=self.cap(step))
