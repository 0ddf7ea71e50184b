"""Closed-form denoisers, so that a solver's error is its own, and the golden problem behind them.

Legend: B batch, C channels, H W pixels, D = C H W, K components.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fleetstep.sampling.spec import SIGMA_MAX, LogSnrSpec, PolynomialSpec

SCHEDULES = {
    "polynomial": PolynomialSpec(),
    "polynomial_rho7": PolynomialSpec(),
    "logsnr": LogSnrSpec(),
}


@functools.cache
def golden() -> dict[str, Any]:
    """The reference figures of tests/golden/sampling.json."""
    path = Path(__file__).parents[1] / "golden" / "sampling.json"
    golden: dict[str, Any] = json.loads(path.read_text())
    return golden


class PointMass:
    """All data at one place: D = mu. The flow is x(s) = mu + s eps with eps constant."""

    def __init__(self, mu_CHW: Tensor, sigma_min: float = 0.002, sigma_max: float = 80.0) -> None:
        self.mu_CHW, self.sigma_min, self.sigma_max, self.nfe = mu_CHW, sigma_min, sigma_max, 0

    def __call__(self, x_BCHW: Tensor, sigma_B: Tensor, labels_B: Tensor | None) -> Tensor:
        self.nfe += 1
        return self.mu_CHW.to(x_BCHW.dtype).expand_as(x_BCHW)


class Mixture:
    """E[x0 | x] of a mixture of K axis-aligned Gaussians (the formula is in the golden file)."""

    def __init__(self, weights_K: Tensor, means_KD: Tensor, variances_KD: Tensor) -> None:
        self.log_w_K, self.means_KD, self.variances_KD = weights_K.log(), means_KD, variances_KD
        self.sigma_min, self.sigma_max, self.nfe = 0.002, 80.0, 0

    def __call__(self, x_BCHW: Tensor, sigma_B: Tensor, labels_B: Tensor | None) -> Tensor:
        self.nfe += 1
        x_BKD = x_BCHW.flatten(1).double().unsqueeze(1)
        total_BKD = self.variances_KD + sigma_B.square()[:, None, None]
        away_BKD = x_BKD - self.means_KD
        log_BK = self.log_w_K - 0.5 * (away_BKD.square() / total_BKD + total_BKD.log()).sum(2)
        posterior_BKD = self.means_KD + self.variances_KD / total_BKD * away_BKD
        denoised_BD = (log_BK.softmax(1).unsqueeze(2) * posterior_BKD).sum(1)
        return denoised_BD.reshape(x_BCHW.shape).to(x_BCHW.dtype)


def mixture() -> Mixture:
    """The golden 2-D mixture, on images of shape [2, 1, 1]."""
    gmm = golden()["gmm"]
    return Mixture(*(_f64(gmm[key]) for key in ("weights", "means", "variances")))


def golden_latents() -> Tensor:
    """x_T of every golden run: float64 [4, 2, 1, 1] at sigma 80."""
    return SIGMA_MAX * images(golden()["latents"])


def images(points: list[list[float]]) -> Tensor:
    """A golden list of points as images: float64 [n, 2, 1, 1]."""
    return _f64(points)[:, :, None, None]


def _f64(values: list[Any]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
