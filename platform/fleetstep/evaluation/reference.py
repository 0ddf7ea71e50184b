"""Real images as generated ones are compared with them: statistics, and features of some of them.

Legend: m kept images, D features.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from fleetstep.errors import ExtractorError
from fleetstep.evaluation import kernel_distance, pairwise
from fleetstep.evaluation.metrics import Gaussian
from fleetstep.evaluation.moments import FRACTION_BITS, Float32, Float64

FEATURES_KEPT = 10_000
"""Most images of a reference whose features are kept, evenly spaced over it."""


def kept_ids(samples: int, kept: int = FEATURES_KEPT) -> list[int]:
    """Which of `samples` images keep their features: evenly spaced, because a packed folder may
    be sorted by class.
    """
    count = min(samples, kept)
    return [index * samples // count for index in range(count)]


@dataclass(frozen=True, eq=False)
class Reference:
    """Real images, which generated ones are compared with.

    Args:
        name: for people: data set and split, or a file.
        gaussian: mean and covariance of their features.
        sha256: digest of the statistics: equal for equal images, extractor and preprocessing.
        n: images; 0 where a file of statistics does not say.
        features_mD: features of `kept_ids`, in that order; None where only statistics are known.
    """

    name: str
    gaussian: Gaussian
    sha256: str
    n: int
    features_mD: Float32 | None = None

    @functools.cached_property
    def scale_D(self) -> Float64:
        """One over the standard deviation of each feature.

        A feature that is constant over the reference, to the resolution of the moments, keeps its
        scale: samples in which it varies are still farther away.
        """
        # Sums of others in floating point leave a constant feature a variance of about -1e-17.
        variance_D = np.maximum(np.diagonal(self.gaussian.covariance_DD), 0.0)
        deviation_D = np.sqrt(variance_D)
        return np.asarray(1 / np.where(deviation_D < 2.0**-FRACTION_BITS, 1.0, deviation_D))

    @functools.cached_property
    def standardised_gaussian(self) -> Gaussian:
        """The reference in units of its own standard deviations."""
        return self.gaussian.scaled(self.scale_D)

    @functools.cached_property
    def kernel_sum(self) -> float:
        """What the kernel distance needs of the real images alone."""
        return kernel_distance.pair_sum(self.features())

    @functools.cached_property
    def _radii(self) -> dict[int, Float64]:
        return {}

    def radii(self, neighbours: Collection[int]) -> Mapping[int, Float64]:
        """Squared radii [m] of the balls around the kept images, by the number of neighbours;
        computed once.

        Raises:
            ExtractorError: only statistics are known.
            ValueError: the kept images are not more than the neighbours.
        """
        if missing := sorted(set(neighbours) - self._radii.keys()):
            self._radii.update(pairwise.neighbour_radii(self.features(), missing))
        return self._radii

    def features(self) -> Float32:
        """Features of the kept images [m, D].

        Raises:
            ExtractorError: only statistics are known.
        """
        if self.features_mD is None:
            raise ExtractorError(
                f"kid, precision, recall, density and coverage need features of real images, but "
                f"the reference {self.name} holds statistics only",
                "sweep against a packed data set, or leave these metrics out",
            )
        return self.features_mD
