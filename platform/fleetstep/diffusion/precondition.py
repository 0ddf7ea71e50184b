"""Preconditioning: D(x; sigma) = c_skip x + c_out F(c_in x, c_noise) (Karras et al. 2022, eq. 7).

Coefficients are float64 and cast last: in float32 the small noise levels lose percents (c_noise,
1/sigma^2).

Shapes: B batch, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Coefficients(NamedTuple):
    """The four coefficients of a batch of noise levels, each float64 of shape [B]."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


Preconditioning = Callable[[Tensor], Coefficients]
"""sigma_B (float64) -> coefficients."""

Network = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(x_BCHW float32, c_noise_B float32, labels_B int64 or None) -> F_BCHW."""


@dataclass(frozen=True)
class EdmCoefficients:
    """EDM's: unit variance of network input and training target (Karras et al. 2022, table 1)."""

    sigma_data: float

    def __call__(self, sigma_B: Tensor) -> Coefficients:
        """Coefficients of noise levels > 0, shape [B]."""
        total_B = torch.hypot(sigma_B, torch.full_like(sigma_B, self.sigma_data))
        return Coefficients(
            c_skip=(self.sigma_data / total_B) ** 2,
            c_out=sigma_B * self.sigma_data / total_B,
            c_in=1 / total_B,
            c_noise=sigma_B.log() / 4,
        )


def edm_coefficients(sigma_data: float) -> Preconditioning:
    """EDM's preconditioning for data of standard deviation `sigma_data`."""
    return EdmCoefficients(sigma_data)


class Denoiser(nn.Module):
    """D(x; sigma): the expected clean image, built from a network whose calls it counts.

    Args:
        network: F; registered as a submodule if it is a module.
        preconditioning: sigma_B -> coefficients.
        sigma_min, sigma_max: the range that samplers walk, within [0.002, 80]; D itself takes any
            level, for training levels are not cut to it.

    Attributes:
        nfe: network calls since construction or `reset`; one call on a batch counts one.
    """

    def __init__(
        self,
        network: Network,
        preconditioning: Preconditioning,
        sigma_min: float,
        sigma_max: float,
    ) -> None:
        super().__init__()
        self.network = network
        self.preconditioning = preconditioning
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max
        self.nfe = 0

    def reset(self) -> None:
        """Start counting network calls from zero."""
        self.nfe = 0

    def forward(
        self, x_BCHW: Tensor, sigma: Tensor | float, labels_B: Tensor | None = None
    ) -> Tensor:
        """The denoised image D_BCHW in x's dtype; the network itself sees float32.

        Args:
            x_BCHW: x0 + sigma eps; float64 keeps a sampler's state in float64 around a float32
                network.
            sigma: noise level > 0, one for the batch or one a row (shape [B]).
            labels_B: class ids (int64), or None.
        """
        batch = x_BCHW.shape[0]
        sigma_B = torch.as_tensor(sigma, dtype=torch.float64, device=x_BCHW.device).expand(batch)
        *scales, c_noise_B = self.preconditioning(sigma_B)
        c_skip, c_out, c_in = (c.to(x_BCHW.dtype).view(batch, 1, 1, 1) for c in scales)
        # Multiplied in x's dtype, and only then rounded: FDM's c_in falls to 4e-8, subnormal in
        # half precision.
        f_BCHW = self.network((c_in * x_BCHW).float(), c_noise_B.float(), labels_B)
        self.nfe += 1
        return c_skip * x_BCHW + c_out * f_BCHW.to(x_BCHW.dtype)
