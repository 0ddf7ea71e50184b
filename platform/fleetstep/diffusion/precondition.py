"""Preconditioning: D(x; sigma) = c_skip x + c_out F(c_in x, c_noise) (Karras et al. 2022, eq. 7).

Coefficients are float64 and cast last: in float32 the small noise levels lose percents (c_noise,
1/sigma^2).

Shapes: B batch, C channels, H W pixels, A augmentation conditions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from fleetstep.diffusion.process import Process, build_process
from fleetstep.diffusion.spec import (
    DdpmSpec,
    EdmSpec,
    Prediction,
    ProcessSpec,
    VeSpec,
    VpSpec,
    sigma_data_of,
)


class Coefficients(NamedTuple):
    """The four coefficients of a batch of noise levels, each float64 of shape [B]."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


Preconditioning = Callable[[Tensor], Coefficients]
"""sigma_B (float64) -> coefficients."""

Network = Callable[..., Any]
"""(x_BCHW float32, c_noise_B float32, labels_B int64 or None[, augment_BA]) -> F_BCHW float32.

A network that learns the variance gives 2C channels, F first."""


@dataclass(frozen=True)
class LogCondition:
    """c_noise = ln(sigma / unit) * factor: EDM's ln(sigma) / 4 and VE's ln(sigma / 2)."""

    factor: float = 1.0
    unit: float = 1.0

    def __call__(self, sigma_B: Tensor) -> Tensor:
        """c_noise of noise levels > 0, shape [B]."""
        return (sigma_B / self.unit).log() * self.factor


@dataclass(frozen=True)
class TimeCondition:
    """c_noise = factor t(sigma): VP's 999 t, and DDPM's step index."""

    process: Process
    factor: float = 1.0

    def __call__(self, sigma_B: Tensor) -> Tensor:
        """c_noise of noise levels > 0, shape [B]."""
        return self.factor * self.process.t_of_sigma(sigma_B)


@dataclass(frozen=True)
class ProcessCoefficients:
    """The coefficients of a process for a prediction (Karras et al. 2022, table 1).

    c_skip and c_out follow from what F stands for: eps gives D = x - sigma F (VE's network gives
    -eps: D = x + sigma F); x0 gives D = F; v = s eps - s sigma x0 with s = 1 / sqrt(1 + sigma^2)
    gives D = s^2 x - s sigma F; EDM's F has unit variance for data of standard deviation
    sigma_data.

    Args:
        prediction: what F stands for.
        sigma_data: standard deviation of the data.
        condition: sigma_B -> c_noise_B.
        scaled_input: divide the input by its standard deviation; VE does not.
        eps_sign: of c_out under eps-prediction.
    """

    prediction: Prediction
    sigma_data: float
    condition: Callable[[Tensor], Tensor]
    scaled_input: bool = True
    eps_sign: float = -1.0

    def __call__(self, sigma_B: Tensor) -> Coefficients:
        """Coefficients of noise levels > 0, shape [B]."""
        total_B = torch.hypot(sigma_B, torch.full_like(sigma_B, self.sigma_data))
        c_skip_B, c_out_B = self._skip_and_out(sigma_B, total_B)
        c_in_B = 1 / total_B if self.scaled_input else torch.ones_like(sigma_B)
        return Coefficients(c_skip_B, c_out_B, c_in_B, self.condition(sigma_B))

    def _skip_and_out(self, sigma_B: Tensor, total_B: Tensor) -> tuple[Tensor, Tensor]:
        match self.prediction:
            case "eps":
                return torch.ones_like(sigma_B), self.eps_sign * sigma_B
            case "x0":
                return torch.zeros_like(sigma_B), torch.ones_like(sigma_B)
            case "v":
                unit_B = torch.hypot(sigma_B, torch.ones_like(sigma_B))
                return unit_B**-2, -sigma_B / unit_B
            case "F":
                return (self.sigma_data / total_B) ** 2, sigma_B * self.sigma_data / total_B


def coefficients_of(process: ProcessSpec) -> Preconditioning:
    """The preconditioning of a process, as its authors trained it."""
    prediction, sigma_data = process.prediction, sigma_data_of(process)
    match process:
        case VpSpec():
            time = TimeCondition(build_process(process), 999.0)
            return ProcessCoefficients(prediction, sigma_data, time)
        case VeSpec():
            return ProcessCoefficients(
                prediction, sigma_data, LogCondition(unit=2.0), scaled_input=False, eps_sign=1.0
            )
        case EdmSpec():
            return ProcessCoefficients(prediction, sigma_data, LogCondition(factor=0.25))
        case DdpmSpec():
            time = TimeCondition(build_process(process))
            return ProcessCoefficients(prediction, sigma_data, time)


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
        self,
        x_BCHW: Tensor,
        sigma: Tensor | float,
        labels_B: Tensor | None = None,
        augment_BA: Tensor | None = None,
    ) -> Tensor:
        """The denoised image D_BCHW in x's dtype; the network itself sees float32.

        Args:
            x_BCHW: x0 + sigma eps; float64 keeps a sampler's state in float64 around a float32
                network.
            sigma: noise level > 0, one for the batch or one a row (shape [B]).
            labels_B: class ids (int64), -1 for "no class", or None.
            augment_BA: how training images were augmented, or None.
        """
        return self.with_rest(x_BCHW, sigma, labels_B, augment_BA)[0]

    def with_rest(
        self,
        x_BCHW: Tensor,
        sigma: Tensor | float,
        labels_B: Tensor | None = None,
        augment_BA: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """D_BCHW, and what the network gives beyond the image's channels: [B, C, H, W] of a
        network that learns the variance, else [B, 0, H, W].
        """
        conditions = (labels_B,) if augment_BA is None else (labels_B, augment_BA)
        c_skip, c_out, inputs = self._prepared(x_BCHW, sigma)
        out = self.network(*inputs, *conditions)
        self.nfe += 1
        return self._restored(x_BCHW, c_skip, c_out, out)

    def with_features(
        self, x_BCHW: Tensor, sigma: Tensor | float, labels_B: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """D_BCHW, and the network's bottleneck features [B, c, h, w] of the same call.

        See `fleetstep.networks.spec.feature_shape` for what they are.
        """
        c_skip, c_out, inputs = self._prepared(x_BCHW, sigma)
        network = cast("Any", self.network)
        out, features = network.forward_with_features(*inputs, labels_B)
        self.nfe += 1
        return self._restored(x_BCHW, c_skip, c_out, out)[0], features

    def _prepared(
        self, x_BCHW: Tensor, sigma: Tensor | float
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """c_skip and c_out, [B, 1, 1, 1] in x's dtype, and the network's (x, c_noise)."""
        batch = len(x_BCHW)
        sigma_B = torch.as_tensor(sigma, dtype=torch.float64, device=x_BCHW.device).expand(batch)
        *scales, c_noise_B = self.preconditioning(sigma_B)
        c_skip, c_out, c_in = (c.to(x_BCHW.dtype).view(batch, 1, 1, 1) for c in scales)
        # Multiplied in x's dtype, and only then rounded: FDM's c_in falls to 4e-8, subnormal in
        # half precision.
        return c_skip, c_out, ((c_in * x_BCHW).float(), c_noise_B.float())

    def _restored(
        self, x_BCHW: Tensor, c_skip: Tensor, c_out: Tensor, out: Tensor
    ) -> tuple[Tensor, Tensor]:
        """D, and the channels beyond the image's, from the network's output."""
        channels = x_BCHW.shape[1]
        f_BCHW, rest = out[:, :channels], out[:, channels:]
        return c_skip * x_BCHW + c_out * f_BCHW.to(x_BCHW.dtype), rest
