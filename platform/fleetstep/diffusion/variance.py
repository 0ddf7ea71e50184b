"""The learned variance of a DDPM's reverse step, and the bound that trains it.

Nichol and Dhariwal 2021, section 3.1, as DiT trains it. The network gives v beside its prediction,
and the reverse step's variance is interpolated between the forward one and the posterior one:
ln var = f ln beta_i + (1-f) ln beta~_i, f = (v+1)/2.

Shapes: B batch, C channels, H W pixels, T steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from fleetstep.diffusion.process import Ddpm
from fleetstep.diffusion.spec import DdpmSpec, ddpm_betas, ddpm_sigmas
from fleetstep.diffusion.tables import Table

# Images have 256 values in [-1, 1], 2/255 apart.
_HALF_BIN = 1 / 255

_LEAST_PROBABILITY = 1e-12
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class VarianceBound:
    """L_vb: the variational bound of one step, in bits per value.

    For i > 0 it is KL(q(x_{i-1} | x_i, x0) || p), for i = 0 the negative log-likelihood of x0
    under a Gaussian cut into bins. The probability of a bin counts as 1e-12 (40 bits) at least, as
    in the released code of Nichol and Dhariwal and of DiT: one outlier would otherwise weigh
    thousands of bits. Below 1e-12, v has no gradient.

    The means are posterior means, of x0 and of D: both contain the same share of x_i, which
    cancels, so x_i is not asked for. D is detached: the bound trains the variance alone.

    Args:
        process: the steps and their levels.
        betas: beta_0 .. beta_{T-1}.
    """

    process: Ddpm
    betas: tuple[float, ...]

    @classmethod
    def of(cls, process: DdpmSpec) -> Self:
        """The bound of a DDPM's schedule."""
        return cls(
            Ddpm(ddpm_sigmas(process.schedule, process.steps)),
            ddpm_betas(process.schedule, process.steps),
        )

    def __call__(self, x0_BCHW: Tensor, d_BCHW: Tensor, v_BCHW: Tensor, sigma_B: Tensor) -> Tensor:
        """The bound of each sample, float32 [B], computed in float64.

        It is multiplied by T/1000: the whole bound is the sum over T steps, its share in the loss
        0.001 (Nichol and Dhariwal 2021, section 3.1). At T = 1000 that is 1.

        Args:
            x0_BCHW: clean images, not clipped; for i = 0 the ends of [-1, 1] are open.
            d_BCHW: the predicted clean images.
            v_BCHW: what the network gives beyond its prediction, unbounded.
            sigma_B: noise levels of the table, float64.
        """
        index_B = self.process.index_of(sigma_B)
        error_BCHW = x0_BCHW.double() - d_BCHW.detach().double()
        log_variance_BCHW = self.log_variance(v_BCHW.double(), index_B)
        first_B111 = (index_B == 0).view(-1, 1, 1, 1)
        # Both sides of a `where` are differentiated: each gets a variance of 1 where the other is
        # used, so that no 0 * inf arises. Picking rows instead would make the host wait.
        probability_BCHW = bin_probability(
            x0_BCHW.double(), error_BCHW, log_variance_BCHW.where(first_B111, 0)
        )
        nats_BCHW = torch.where(
            first_B111,
            -probability_BCHW.clamp(min=_LEAST_PROBABILITY).log(),
            self._divergence(error_BCHW, log_variance_BCHW.where(~first_B111, 0), index_B),
        )
        bits_B = nats_BCHW.mean((1, 2, 3)) / math.log(2)
        return (bits_B * (self.process.steps / 1000)).float()

    def log_variance(self, v_BCHW: Tensor, index_B: Tensor) -> Tensor:
        """Ln of the reverse step's variance at steps index_B (int64), in units of x_i."""
        f_BCHW = (v_BCHW + 1) / 2
        high_B, low_B = (
            table.on(v_BCHW.device)[index_B].view(-1, 1, 1, 1)
            for table in (self._log_betas, self._log_posterior_variances)
        )
        return f_BCHW * high_B + (1 - f_BCHW) * low_B

    def _divergence(
        self, error_BCHW: Tensor, log_variance_BCHW: Tensor, index_B: Tensor
    ) -> Tensor:
        """KL of the posterior from the reverse step, in nats: means c0 error apart."""
        c0_B, posterior_B = (
            table.on(error_BCHW.device)[index_B].view(-1, 1, 1, 1)
            for table in (self._clean_coefficients, self._log_posterior_variances)
        )
        ratio_BCHW = log_variance_BCHW - posterior_B
        distance_BCHW = (c0_B * error_BCHW).square() * torch.exp(-log_variance_BCHW)
        return (ratio_BCHW + torch.expm1(-ratio_BCHW) + distance_BCHW) / 2

    @property
    def log_betas(self) -> Tensor:
        """Ln beta_i, float64 [T], on the CPU."""
        return self._log_betas.on(_CPU)

    @property
    def log_posterior_variances(self) -> Tensor:
        """Ln of beta~_i = beta_i (1 - abar_{i-1}) / (1 - abar_i), float64 [T], on the CPU.

        That of i = 0 is 0; it is replaced by that of i = 1.
        """
        return self._log_posterior_variances.on(_CPU)

    @property
    def clean_coefficients(self) -> Tensor:
        """What x0 is multiplied by in the posterior mean, sqrt(abar_{i-1}) beta_i / (1 - abar_i).

        Float64 [T], on the CPU; 1 at i = 0.
        """
        return self._clean_coefficients.on(_CPU)

    @cached_property
    def _log_betas(self) -> Table:
        return Table.of(self._betas.log())

    @cached_property
    def _log_posterior_variances(self) -> Table:
        noise_T = self._noise
        before_T = torch.cat([noise_T.new_zeros(1), noise_T[:-1]])
        log_variances_T = self.log_betas + before_T.log() - noise_T.log()
        return Table.of(torch.cat([log_variances_T[1:2], log_variances_T[1:]]))

    @cached_property
    def _clean_coefficients(self) -> Table:
        signal_T = 1 / (1 + self.process.table.square())
        before_T = torch.cat([signal_T.new_ones(1), signal_T[:-1]])
        return Table.of(before_T.sqrt() * self._betas / self._noise)

    @property
    def _betas(self) -> Tensor:
        return torch.tensor(self.betas, dtype=torch.float64)

    @property
    def _noise(self) -> Tensor:
        """1 - abar_i = sigma_i^2 / (1 + sigma_i^2), float64 [T]."""
        squares_T = self.process.table.square()
        return squares_T / (1 + squares_T)


def bin_probability(x0: Tensor, error: Tensor, log_variance: Tensor) -> Tensor:
    """Probability of the bin of x0 under N(x0 - error, exp(log_variance)), float64, any shape.

    Bins are 2/255 wide; those of -1 and of 1 (and of anything beyond) reach to infinity (Ho et al.
    2020, eq. 13). With the normal CDF itself, where released code has an approximation by tanh.
    """
    inverse_std = torch.exp(-log_variance / 2)
    low = ((error - _HALF_BIN) * inverse_std).where(x0 >= -0.999, -math.inf)
    high = ((error + _HALF_BIN) * inverse_std).where(x0 <= 0.999, math.inf)
    # Reflected so that the bin lies in the lower tail, where its probability does not cancel.
    upper = low + high > 0
    low, high = torch.where(upper, -high, low), torch.where(upper, -low, high)
    return (torch.erfc(-high / math.sqrt(2)) - torch.erfc(-low / math.sqrt(2))) / 2
