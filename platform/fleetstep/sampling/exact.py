"""Closed-form denoisers: data whose D is known exactly, so that a solver's error is its own.

Legend: B batch, C channels, H W pixels, D = C H W, K components, h w bottleneck.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fleetstep.sampling.spec import SIGMA_MAX, SIGMA_MIN


class _Counted:
    """A denoiser that counts its calls; its bottleneck features are D's channel means."""

    def __init__(self, sigma_min: float, sigma_max: float) -> None:
        self.sigma_min, self.sigma_max, self.nfe = sigma_min, sigma_max, 0

    def __call__(self, x_BCHW: Tensor, sigma_B: Tensor, labels_B: Tensor | None = None) -> Tensor:
        """D at float64 levels sigma_B, in the dtype of x; one call. Labels are not read."""
        self.nfe += 1
        return self._denoised(x_BCHW, sigma_B)

    def with_features(
        self, x_BCHW: Tensor, sigma_B: Tensor, labels_B: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """D, and its channel means laid on 8 x 8: features [B, 1, 8, 8] of the same call.

        A closed form has no bottleneck; these depend smoothly on (x, sigma), as a network's do.
        """
        denoised_BCHW = self(x_BCHW, sigma_B, labels_B)
        mean_B1HW = denoised_BCHW.mean(dim=1, keepdim=True)
        return denoised_BCHW, torch.nn.functional.adaptive_avg_pool2d(mean_B1HW, (8, 8))

    def _denoised(self, x_BCHW: Tensor, sigma_B: Tensor) -> Tensor:
        raise NotImplementedError


class PointMass(_Counted):
    """All data at one place: D = mu, and the flow is x(s) = mu + s eps with eps constant.

    Args:
        mu_CHW: the place.
        sigma_min, sigma_max: the range of levels it claims to know.
    """

    def __init__(
        self, mu_CHW: Tensor, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX
    ) -> None:
        super().__init__(sigma_min, sigma_max)
        self.mu_CHW = mu_CHW

    def _denoised(self, x_BCHW: Tensor, sigma_B: Tensor) -> Tensor:
        return self.mu_CHW.to(x_BCHW).expand_as(x_BCHW)


class GaussianMixture(_Counted):
    """Data from K axis-aligned Gaussians; D is the posterior mean of the clean image.

    With s_kd = v_kd + sigma^2, component k has responsibility
    r_k ~ w_k prod_d N(x_d; m_kd, s_kd), and D_d = sum_k r_k (m_kd + v_kd / s_kd (x_d - m_kd)).
    All of it is computed in float64, whatever the state is.

    Args:
        weights_K: w, positive; they are used as they are up to a common factor.
        means_KD: m.
        variances_KD: v, zero or more.
        sigma_min, sigma_max: the range of levels it claims to know.
    """

    def __init__(
        self,
        weights_K: Tensor,
        means_KD: Tensor,
        variances_KD: Tensor,
        sigma_min: float = SIGMA_MIN,
        sigma_max: float = SIGMA_MAX,
    ) -> None:
        super().__init__(sigma_min, sigma_max)
        self.weights_K, self.means_KD = weights_K.double(), means_KD.double()
        self.variances_KD = variances_KD.double()

    def _denoised(self, x_BCHW: Tensor, sigma_B: Tensor) -> Tensor:
        x_BKD = x_BCHW.flatten(1).double().unsqueeze(1)
        total_BKD = self.variances_KD + sigma_B.double().square()[:, None, None]
        away_BKD = x_BKD - self.means_KD
        log_BK = self.weights_K.log() - 0.5 * (
            away_BKD.square() / total_BKD + total_BKD.log()
        ).sum(2)
        posterior_BKD = self.means_KD + self.variances_KD / total_BKD * away_BKD
        denoised_BD = (log_BK.softmax(1).unsqueeze(2) * posterior_BKD).sum(1)
        return denoised_BD.reshape(x_BCHW.shape).to(x_BCHW.dtype)
