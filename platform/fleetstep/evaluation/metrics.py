"""Fréchet distances between moments of features, with their bias removed and with an interval.

    FD = |mu_1 - mu_2|^2 + tr S_1 + tr S_2 - 2 tr (S_1 S_2)^(1/2)      (Heusel et al. 2017, eq. 6)

The trace of the root is the sum of the roots of the eigenvalues of R^T S_2 R with R R^T = S_1.
That matrix is symmetric, so nothing can become complex; R belongs to the reference and is computed
once; and where there are fewer images than features the eigenvalues that are zero but for rounding
are set to zero, which the usual matrix square root of S_1 S_2 cannot do.

Legend: D features.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from fleetstep.evaluation.moments import FRACTION_BITS, Float64, Moments, total

CONFIDENCE = 0.95


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
        """R with R R^T = covariance, [D, D]."""
        # By eigenvectors: a Cholesky factorisation fails on singular covariances.
        eigenvalues_D, vectors_DD = np.linalg.eigh(self.covariance_DD)
        return np.asarray(vectors_DD * np.sqrt(_floored(np.asarray(eigenvalues_D, np.float64))))

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
    inner_DD = reference.root_DD.T @ other.covariance_DD @ reference.root_DD
    values_D = _floored(np.asarray(np.linalg.eigvalsh((inner_DD + inner_DD.T) / 2), np.float64))
    shift_D = reference.mean_D - other.mean_D
    traces = np.trace(reference.covariance_DD) + np.trace(other.covariance_DD)
    return float(shift_D @ shift_D + traces - 2 * np.sqrt(values_D).sum())


@dataclass(frozen=True, eq=False)
class Reference:
    """Features of real images, which generated ones are compared with.

    Args:
        name: for people: data set and split.
        moments: of the reference images.
    """

    name: str
    moments: Moments

    @property
    def n(self) -> int:
        """Reference images."""
        return self.moments.n

    @property
    def sha256(self) -> str:
        """Digest of the statistics: equal for equal images, extractor and preprocessing."""
        return self.moments.digest()

    @functools.cached_property
    def gaussian(self) -> Gaussian:
        """Mean and covariance, with their root once it has been asked for."""
        return Gaussian.of(self.moments)

    @functools.cached_property
    def scale_D(self) -> Float64:
        """One over the standard deviation of each feature.

        A feature that is constant over the reference, to the resolution of the moments, keeps its
            scale: samples in
        which it varies are still farther away.
        """
        deviation_D = np.sqrt(np.diagonal(self.gaussian.covariance_DD))
        return np.asarray(1 / np.where(deviation_D < 2.0**-FRACTION_BITS, 1.0, deviation_D))

    @functools.cached_property
    def standardised_gaussian(self) -> Gaussian:
        """The reference in units of its own standard deviations."""
        return self.gaussian.scaled(self.scale_D)


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


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A statistic with its bias removed, and its interval.

    The interval covers the choice of samples only: the reference is taken as given, and another
        training run is
    another matter. Nothing is clipped: near its floor a distance without bias can turn out
    negative.

    Args:
        raw: the statistic of all samples.
        value: mean of the pseudo-values.
        standard_error: of `value`.
        low, high: Student interval at `confidence` with blocks - 1 degrees of freedom.
        confidence: probability with which such an interval covers the true value.
        pseudo_values: one a block.
    """

    raw: float
    value: float
    standard_error: float
    low: float
    high: float
    confidence: float
    pseudo_values: tuple[float, ...]

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return len(self.pseudo_values)


def jackknife(
    blocks: Sequence[Moments],
    statistic: Callable[[Moments], float],
    *,
    confidence: float = CONFIDENCE,
) -> Estimate:
    """Delete-one-block jackknife of `statistic` (Quenouille 1956; Tukey 1958).

    Args:
        blocks: two or more disjoint parts of the samples, of one size; 10 to 20 are right.
        statistic: of moments, for example `functools.partial(frechet, reference)`.
        confidence: of the interval.

    Raises:
        ValueError: fewer than two blocks, or blocks of different sizes.
    """
    sizes = {block.n for block in blocks}
    if len(blocks) < 2 or len(sizes) != 1:
        raise ValueError(
            f"a jackknife needs two or more blocks of one size, got sizes {[b.n for b in blocks]}"
        )
    everything = total(list(blocks))
    return jackknife_estimate(
        statistic(everything),
        [statistic(everything - block) for block in blocks],
        confidence=confidence,
    )


def jackknife_estimate(
    raw: float, leave_one_out: Sequence[float], *, confidence: float = CONFIDENCE
) -> Estimate:
    """Bias-free value and interval from pseudo-values p_i = B * raw - (B - 1) * raw_without_i."""
    count = len(leave_one_out)
    pseudo_values = tuple(count * raw - (count - 1) * left for left in leave_one_out)
    value, error, reach = _student(pseudo_values, confidence)
    return Estimate(
        raw=raw,
        value=value,
        standard_error=error,
        low=value - reach,
        high=value + reach,
        confidence=confidence,
        pseudo_values=pseudo_values,
    )


def _student(values: Sequence[float], confidence: float) -> tuple[float, float, float]:
    """Mean, its standard error, and half the width of its Student interval."""
    count = len(values)
    mean = math.fsum(values) / count
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    error = math.sqrt(variance / count)
    return mean, error, float(stdtrit(count - 1, (1 + confidence) / 2)) * error
