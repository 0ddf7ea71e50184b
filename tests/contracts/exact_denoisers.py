"""Closed-form denoisers, so that a solver's error is its own, and the golden problem.

They are the package's own; the golden runs are in solver_goldens.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fleetstep.sampling.exact import GaussianMixture as Mixture
from fleetstep.sampling.exact import PointMass
from fleetstep.sampling.spec import SIGMA_MAX

__all__ = [
    "Mixture",
    "PointMass",
    "golden_latents",
    "images",
    "mixture",
    "problem",
]


@functools.cache
def problem() -> dict[str, Any]:
    """The mixtures, latents, truths and noises of tests/golden/solvers/problem.json."""
    path = Path(__file__).parents[1] / "golden" / "solvers" / "problem.json"
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def mixture() -> Mixture:
    """The golden 2-D mixture, on images of shape [2, 1, 1]."""
    gmm = problem()["gmm"]["d2"]
    return Mixture(*(_f64(gmm[key]) for key in ("weights", "means", "variances")))


def golden_latents() -> Tensor:
    """x_T of every golden run: float64 [4, 2, 1, 1] at sigma 80."""
    return SIGMA_MAX * images(problem()["gmm"]["latents"]["2"])


def images(points: list[list[float]]) -> Tensor:
    """A golden list of points as images: float64 [n, 2, 1, 1]."""
    return _f64(points)[:, :, None, None]


def _f64(values: list[Any]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
