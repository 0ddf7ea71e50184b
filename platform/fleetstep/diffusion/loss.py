"""The training loss, the draws it needs by stream position, and the held-out error.

Shapes: B batch, C channels, H W pixels, J bins of held-out noise levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fleetstep import rng
from fleetstep.diffusion.objective import Objective
from fleetstep.diffusion.precondition import Denoiser
from fleetstep.diffusion.weighting import Weighting


def noise_levels_at(
    objective: Objective, seed: int, first: int, count: int, step: int = 0
) -> Tensor:
    """Noise levels of stream positions first .. first+count-1, float64 [count], on the CPU.

    Of what adapts to the run's losses, those at its start: the loop asks the objective itself.
    """
    return objective.levels(objective.coupling.uniforms(seed, first, count), first, step)


def noise_at(seed: int, first: int, count: int, shape: tuple[int, ...]) -> Tensor:
    """Normal noise of stream positions first .. first+count-1, float32 [count, *shape], on CPU."""
    return torch.from_numpy(rng.draw(seed, "noise", first, count, shape))


class Losses(NamedTuple):
    """Loss of each sample, float32 [B], in two parts: strategies weigh the first alone.

    Attributes:
        denoising_B: w(sigma) times the squared error.
        bound_B: the bound of a learned variance, None without one.
    """

    denoising_B: Tensor
    bound_B: Tensor | None

    def total_B(self) -> Tensor:
        """Their sum."""
        return self.denoising_B if self.bound_B is None else self.denoising_B + self.bound_B


@dataclass(frozen=True)
class DiffusionLoss:
    """w(sigma) ||D(x0 + sigma eps; sigma) - x0||^2, plus the bound of a learned variance.

    The squared error of an image is summed over C, H and W (EDM's reduction) or averaged (DDPM's).
    """

    objective: Objective

    def __call__(self, *inputs: Any) -> Tensor:
        """Loss of each sample, float32 [B]: both parts together; inputs as in `parts`."""
        return self.parts(*inputs).total_B()

    def parts(
        self,
        denoise: Denoiser,
        x0_BCHW: Tensor,
        labels_B: Tensor | None,
        sigma_B: Tensor,
        eps_BCHW: Tensor,
        step: int,
        augment_BA: Tensor | None = None,
    ) -> Losses:
        """Loss of each sample, in its two parts.

        Args:
            denoise: D, in training mode.
            x0_BCHW: clean images in [-1, 1], float32.
            labels_B: class ids (int64), -1 where dropped, or None.
            sigma_B: noise levels, float64, on the images' device.
            eps_BCHW: standard normal noise, float32.
            step: optimiser step, from 0: `images_seen // global_batch`.
            augment_BA: how the images were augmented, or None.
        """
        objective = self.objective
        x_BCHW = _noised(x0_BCHW, sigma_B, eps_BCHW)
        d_BCHW, rest_BCHW = denoise.with_rest(x_BCHW, sigma_B, labels_B, augment_BA)
        square_BCHW = (d_BCHW - x0_BCHW).square()
        sums = objective.reduction == "sum"
        error_B = square_BCHW.sum((1, 2, 3)) if sums else square_BCHW.mean((1, 2, 3))
        denoising_B = (objective.weight(sigma_B, step) * error_B).float()
        if objective.variance is None:
            return Losses(denoising_B, None)
        return Losses(denoising_B, objective.variance(x0_BCHW, d_BCHW, rest_BCHW, sigma_B))


def _noised(x0_BCHW: Tensor, sigma_B: Tensor, eps_BCHW: Tensor) -> Tensor:
    """x0 + sigma eps in float64, which D keeps around its float32 network.

    The eps-loss is (x0 + sigma eps - sigma F - x0) / sigma: at sigma = 1e-3 a float32 sum would
    leave four digits of eps.
    """
    return x0_BCHW.double() + sigma_B.view(-1, 1, 1, 1) * eps_BCHW


def held_out_levels(objective: Objective, bins: int, seed: int, first: int, count: int) -> Tensor:
    """Noise levels sigma_BJ of held-out images first .. first+count-1, float64, on the CPU.

    Bin j is the j-th of J equal shares of the process's own law, and image i has one level drawn
    from each: together they cover the law, where J fixed levels would see nothing between them or
    beyond the last. Strategies change the training law, never these levels: a training loss cannot
    be compared across strategies, the error on these levels can.
    """
    v = rng.uniform(seed, "held-out-level", first * bins, count * bins)
    v_BJ = torch.from_numpy(v.reshape(count, bins))
    u_BJ = (torch.arange(bins, dtype=torch.float64) + v_BJ) / bins
    # The sum can round to J, whose quantile 1 is an infinite level.
    return objective.base_noise_levels.icdf(u_BJ.clamp(max=1 - 2.0**-53).flatten()).view_as(u_BJ)


@torch.no_grad()
def held_out_errors(
    denoiser: Denoiser,
    weight: Weighting,
    x0_BCHW: Tensor,
    labels_B: Tensor | None,
    first: int,
    sigma_BJ: Tensor,
    seed: int,
) -> Tensor:
    """Sums over images of the weighted denoising error, float64 [J] on the CPU.

    They add over batches and workers.

    The error of one image is the mean over C, H and W of (D - x0)^2 under the process's own
    weight, free of clamps and multipliers, whatever the network predicts.

    Args:
        denoiser: D in evaluation mode (dropout would count as error).
        weight: the objective's `own_weight`.
        x0_BCHW: held-out images `first` .. `first + B - 1`, in [-1, 1], float32.
        labels_B: class ids (int64), or None.
        first: index of the first image in the held-out set; image i meets noise (seed, i J + j) in
            bin j.
        sigma_BJ: their levels, from `held_out_levels`.
        seed: the seed of the noise.
    """
    count, bins = sigma_BJ.shape
    noise = rng.draw(seed, "held-out-noise", first * bins, count * bins, tuple(x0_BCHW.shape[1:]))
    eps_BJCHW = torch.from_numpy(noise.reshape(count, bins, *noise.shape[1:])).to(x0_BCHW.device)
    sums_J = torch.empty(bins, dtype=torch.float64)
    for j, sigma_B in enumerate(sigma_BJ.to(x0_BCHW.device).unbind(1)):
        d_BCHW = denoiser(_noised(x0_BCHW, sigma_B, eps_BJCHW[:, j]), sigma_B, labels_B)
        error_B = (d_BCHW - x0_BCHW).square().mean((1, 2, 3))
        sums_J[j] = (error_B * weight(sigma_B)).sum()
    return sums_J
