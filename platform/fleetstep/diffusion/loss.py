"""The training loss, the draws it needs by stream position, and the held-out error.

Shapes: B batch, C channels, H W pixels, J bins of held-out noise levels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fleetstep import rng
from fleetstep.diffusion.objective import Objective
from fleetstep.diffusion.precondition import Denoiser


def noise_levels_at(objective: Objective, seed: int, first: int, count: int) -> Tensor:
    """Noise levels of stream positions first .. first+count-1, float64 [count], on the CPU."""
    u_B = torch.from_numpy(rng.uniform(seed, "noise-level", first, count))
    return objective.noise_levels.icdf(u_B)


def noise_at(seed: int, first: int, count: int, shape: tuple[int, ...]) -> Tensor:
    """Normal noise of stream positions first .. first+count-1, float32 [count, *shape], on CPU."""
    return torch.from_numpy(rng.draw(seed, "noise", first, count, shape))


@dataclass(frozen=True)
class DiffusionLoss:
    """w(sigma) ||D(x0 + sigma eps; sigma) - x0||^2, summed over C, H and W (EDM's reduction)."""

    objective: Objective

    def __call__(
        self,
        denoise: Denoiser,
        x0_BCHW: Tensor,
        labels_B: Tensor | None,
        sigma_B: Tensor,
        eps_BCHW: Tensor,
        step: int,
    ) -> Tensor:
        """Loss of each sample, float32 [B].

        Args:
            denoise: D, in training mode.
            x0_BCHW: clean images in [-1, 1], float32.
            labels_B: class ids (int64), or None.
            sigma_B: noise levels, float64, on the images' device.
            eps_BCHW: standard normal noise, float32.
            step: optimiser step, from 0: `images_seen // global_batch`.
        """
        x_BCHW = x0_BCHW + sigma_B.to(x0_BCHW.dtype).view(-1, 1, 1, 1) * eps_BCHW
        error_B = (denoise(x_BCHW, sigma_B, labels_B) - x0_BCHW).square().sum((1, 2, 3))
        loss_B: Tensor = self.objective.weight(sigma_B, step).to(error_B.dtype) * error_B
        return loss_B


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
    x0_BCHW: Tensor,
    labels_B: Tensor | None,
    first: int,
    sigma_BJ: Tensor,
    seed: int,
) -> Tensor:
    """Sums over images of the weighted denoising error, float64 [J] on the CPU.

    They add over batches and workers.

    The error of one image is the mean over C, H and W of (D - x0)^2 / c_out^2: the process's own
    weight (EDM's for EDM), free of clamps and multipliers.

    Args:
        denoiser: D in evaluation mode (dropout would count as error).
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
        x_BCHW = x0_BCHW + sigma_B.to(x0_BCHW.dtype).view(-1, 1, 1, 1) * eps_BJCHW[:, j]
        d_BCHW = denoiser(x_BCHW, sigma_B, labels_B)
        error_B = (d_BCHW - x0_BCHW).double().square().mean((1, 2, 3))
        sums_J[j] = (error_B * denoiser.preconditioning(sigma_B).c_out ** -2).sum()
    return sums_J
