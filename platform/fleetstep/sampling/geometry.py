"""The shape of sampling trajectories: how far they are from lines and planes (AMED, section 3.1).

Every trajectory has its own principal components. They come from N x N Gram matrices of its
points, one for each component with the earlier ones taken out of the points first: one matrix for
all would know a component only to rounding over its share of the variance, and the third explains
1e-8 of it. No d x d matrix is ever made.

Legend: B trajectories, N points of each, d = C H W values of a point, K components, from the
highest level to the lowest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fleetstep.errors import SamplingError

COMPONENTS = 3
"""Principal components that are reported."""


@dataclass(frozen=True)
class Geometry:
    """Of each of B trajectories; float64.

    Args:
        errors_BKN: ||x_t - x~_t|| / ||x_t||, x~ the projection on the mean and the first k
            components; k = 1 ... K.
        unexplained_BK: share of the variance that the first k components leave over; one minus it
            is the cumulative variance.
        deviations_BN: distance of x_t from the line through the trajectory's ends, in x's units.
    """

    errors_BKN: Tensor
    unexplained_BK: Tensor
    deviations_BN: Tensor


def geometry(points_BNd: Tensor) -> Geometry:
    """Principal components and straightness of each trajectory.

    Args:
        points_BNd: the trajectories' points in order, N > K; converted to float64.

    Raises:
        SamplingError: there are not more points, or not more values in a point, than components.
    """
    count, values = points_BNd.shape[1:]
    if min(count, values) <= COMPONENTS:
        raise SamplingError(
            f"{COMPONENTS} components need more points and more values in each, got {count} "
            f"points of {values} values",
            f"take {COMPONENTS + 1} points or more, of images of as many pixels",
        )
    points_BNd = points_BNd.double()
    centred_BNd = points_BNd - points_BNd.mean(dim=1, keepdim=True)
    total_B1 = centred_BNd.square().sum(dim=(1, 2)).unsqueeze(1)
    sizes_BN = points_BNd.norm(dim=2)
    errors, unexplained = [], []
    left_BNd = centred_BNd
    for _ in range(COMPONENTS):
        left_BNd = _without_first_component(left_BNd)
        errors.append(left_BNd.norm(dim=2) / sizes_BN)
        unexplained.append(left_BNd.square().sum(dim=(1, 2)))
    return Geometry(
        torch.stack(errors, dim=1),
        torch.stack(unexplained, dim=1) / total_B1,
        _from_the_chord(points_BNd),
    )


def unit_variance(points_BNd: Tensor, sigmas_N: Tensor) -> Tensor:
    """The points divided by sqrt(1 + sigma^2), so that the noisiest do not decide everything.

    For data of unit variance every point then has the same variance (the VP form).
    """
    scale_N = torch.hypot(sigmas_N.double(), torch.ones_like(sigmas_N, dtype=torch.float64))
    return points_BNd.double() / scale_N.to(points_BNd.device)[:, None]


def _without_first_component(points_BNd: Tensor) -> Tensor:
    """The points less their projection on the direction of largest variance."""
    gram_BNN = points_BNd @ points_BNd.mT
    first_BN = torch.linalg.eigh(gram_BNN).eigenvectors[:, :, -1]
    direction_B1d = torch.einsum("bn,bnd->bd", first_BN, points_BNd).unsqueeze(1)
    direction_B1d = torch.nn.functional.normalize(direction_B1d, dim=2, eps=0.0)
    return points_BNd - (points_BNd @ direction_B1d.mT) * direction_B1d


def _from_the_chord(points_BNd: Tensor) -> Tensor:
    """Distance of every point from the line through the first and the last."""
    away_BNd = points_BNd - points_BNd[:, -1:]
    chord_B1d = torch.nn.functional.normalize(away_BNd[:, :1], dim=2, eps=0.0)
    beside_BNd = away_BNd - (away_BNd @ chord_B1d.mT) * chord_B1d
    return beside_BNd.square().sum(2).sqrt()
