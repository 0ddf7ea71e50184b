"""How far a solver ends from where the flow itself ends: the quality that AMED is trained for.

Legend: B batch, C channels, H W pixels, K solvers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fleetstep.sampling.amed.latents import training_latents
from fleetstep.sampling.nodes import nodes
from fleetstep.sampling.spec import SIGMA_MAX, SIGMA_MIN, HeunAbSpec, SolverSpec
from fleetstep.sampling.trajectory import Denoiser, levels_for, sample

_REFERENCE = HeunAbSpec()


@dataclass(frozen=True)
class Distance:
    """Of one solver at one number of network calls.

    Args:
        solver: its label.
        nfe: network calls per image, counted.
        rmse: square root of the mean, over images, of the squared distance to the reference.
    """

    solver: str
    nfe: int
    rmse: float


@dataclass(frozen=True)
class Reference:
    """Where the flow takes a batch, to the error of Heun's method with `points` levels.

    Args:
        x_BCHW: at the lowest level of the range.
        denoised_BCHW: D there, for solvers that go on to zero.
    """

    x_BCHW: Tensor
    denoised_BCHW: Tensor


def reference_of(
    denoiser: Denoiser, z_BCHW: Tensor, labels_B: Tensor | None, points: int = 400
) -> Reference:
    """The end of the flow from standard normal z, by Heun's method on a polynomial schedule.

    Args:
        denoiser: with guidance, if there is any.
        z_BCHW: float64.
        labels_B: class ids, or None.
        points: levels; 2 (points - 1) evaluations.
    """
    low, high = max(SIGMA_MIN, denoiser.sigma_min), min(SIGMA_MAX, denoiser.sigma_max)
    levels = nodes(_REFERENCE, points, low, high)
    x_BCHW = sample(denoiser, _REFERENCE, levels, levels[0].item() * z_BCHW, labels_B).x_BCHW
    sigma_B = levels[-1].to(z_BCHW.device).expand(len(z_BCHW))
    return Reference(x_BCHW, denoiser(x_BCHW, sigma_B, labels_B))


@torch.inference_mode()
def distances_to_reference(
    denoiser: Denoiser,
    cells: Sequence[tuple[SolverSpec, int]],
    *,
    shape: tuple[int, int, int],
    classes: int,
    device: torch.device,
    seed: int = 0,
    count: int = 256,
    batch: int = 64,
    points: int = 400,
) -> tuple[Distance, ...]:
    """The distance of each solver's images to the flow's, on held-out latents.

    Args:
        denoiser: with guidance, if there is any; in evaluation mode.
        cells: K solvers, each with its network calls per image.
        shape: (C, H, W) of an image.
        classes: number of classes; 0 for an unconditional network.
        device: where the denoiser is.
        seed: of a training: the latents are none that it saw.
        count: latents.
        batch: latents at a time.
        points: see `reference_of`.

    Raises:
        SamplingError: a solver cannot make its number of calls.
    """
    squares, calls = [0.0] * len(cells), [0] * len(cells)
    for first in range(0, count, batch):
        z_BCHW, labels_B = training_latents(
            seed, first, min(batch, count - first), shape, classes, device, "held out"
        )
        reference = reference_of(denoiser, z_BCHW, labels_B, points)
        for k, (solver, nfe) in enumerate(cells):
            levels = levels_for(denoiser, solver, nfe)
            result = sample(denoiser, solver, levels, levels[0].item() * z_BCHW, labels_B)
            to_zero = solver.ends_at_zero or solver.denoise_to_zero
            end_BCHW = reference.denoised_BCHW if to_zero else reference.x_BCHW
            squares[k] += (result.x_BCHW - end_BCHW).square().sum().item()
            calls[k] = result.nfe
    return tuple(
        Distance(solver.label, nfe, math.sqrt(square / count))
        for (solver, _), nfe, square in zip(cells, calls, squares, strict=True)
    )
