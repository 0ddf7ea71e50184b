"""Fréchet distances between moments of features.

    FD = |mu_1 - mu_2|^2 + tr S_1 + tr S_2 - 2 tr (S_1 S_2)^(1/2)      (Heusel et al. 2017, eq. 6)

The trace of the root is the sum of the roots of the eigenvalues of R^T S_2 R with R R^T = S_1.
That matrix is symmetric, so nothing can become complex; R belongs to the reference and is computed
once; and where there are fewer images than features the eigenvalues that are zero but for rounding
are set to zero, which the usual matrix square root of S_1 S_2 cannot do.

Legend: D features.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.linalg

from fleetstep.evaluation.moments import Float64, Moments

if TYPE_CHECKING:
    from fleetstep.evaluation.reference import Reference


@dataclass(frozen=True, eq=False)
class Gaussian:
    """What a Fréchet distance reads of a set of features.

    Args:
        mean_D: mean [D].
        covariance_DD: covariance [D, D].
    """

    mean_D: Float64
    covariance_DD: Float64

    @classmethod
    def of(cls, moments: Moments) -> Gaussian:
        """The Gaussian of these moments; ValueError for fewer than two rows."""
        return cls(moments.mean(), moments.covariance())

    @functools.cached_property
    def root_DD(self) -> Float64:
        """R with R R^T = covariance, lower triangular, in Fortran order, [D, D]."""
        # By eigenvectors: a Cholesky factorisation fails on singular covariances. Turned into a
        # triangle, products with it cost LAPACK half.
        eigenvalues_D, vectors_DD = np.linalg.eigh(self.covariance_DD)
        root_DD = vectors_DD * np.sqrt(_floored(np.asarray(eigenvalues_D, np.float64)))
        return np.asfortranarray(np.asarray(np.linalg.qr(root_DD.T, mode="r")).T)

    def scaled(self, scale_D: Float64) -> Gaussian:
        """The Gaussian of the features times `scale_D`."""
        return Gaussian(
            self.mean_D * scale_D, self.covariance_DD * np.multiply.outer(scale_D, scale_D)
        )


def _floored(eigenvalues_D: Float64) -> Float64:
    """Eigenvalues of a covariance: those below D * eps * largest are rounding, hence zero."""
    floor = len(eigenvalues_D) * np.finfo(np.float64).eps * float(eigenvalues_D.max(initial=0.0))
    return np.where(eigenvalues_D < floor, 0.0, eigenvalues_D)


def gaussian_distance(reference: Gaussian, other: Gaussian) -> float:
    """Fréchet distance of two Gaussians (Dowson & Landau 1982); for equal ones perhaps -1e-15."""
    # The lower triangle of R^T S R: a quarter of the work of two full products. The transpose of
    # a symmetric matrix is itself in Fortran order, without a copy.
    inner_DD, _ = scipy.linalg.lapack.dsygst(
        other.covariance_DD.T, reference.root_DD, itype=2, lower=1
    )
    values_D = _floored(
        scipy.linalg.eigvalsh(inner_DD, lower=True, overwrite_a=True, check_finite=False)
    )
    shift_D = reference.mean_D - other.mean_D
    traces = np.trace(reference.covariance_DD) + np.trace(other.covariance_DD)
    return float(shift_D @ shift_D + traces - 2 * np.sqrt(values_D).sum())


def frechet(reference: Reference, moments: Moments) -> float:
    """Fréchet distance of `moments` from the reference; biased upwards for few images."""
    return gaussian_distance(reference.gaussian, Gaussian.of(moments))


def standardised(reference: Reference, moments: Moments) -> float:
    """Fréchet distance of features over their standard deviation in the reference (`fd_z`).

    Layers of different scale then count alike, which tells mild defects from chance with fewer
    images.
    """
    scaled = Gaussian.of(moments).scaled(reference.scale_D)
    return gaussian_distance(reference.standardised_gaussian, scaled)
