"""Which real images are nearest to generated ones: the check against memorisation.

A picture shows each generated image beside its nearest real ones; a copy is far nearer to its
first neighbour than to the second.

Legend: n generated images, m real ones, K neighbours, D features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fleetstep.evaluation.moments import Float32, Float64, quantise
from fleetstep.evaluation.pairwise import square_units, squared_distances

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Nearest real images of each generated one, nearest first; of equal ones the first.

    Args:
        index_nK: rows of the reference features, in the order of `reference.kept_ids`, [n, K].
        distance_nK: Euclidean distances in the units of the features, [n, K].
    """

    index_nK: Int64
    distance_nK: Float64


def distinct(features_nD: Float32) -> Float32:
    """The rows without those that repeat an earlier one: exact twins are one image."""
    _, first = np.unique(quantise(features_nD), axis=0, return_index=True)
    return features_nD[np.sort(first)]


def nearest(features_nD: Float32, reference_mD: Float32, count: int) -> Neighbours:
    """The `count` rows of `reference_mD` that are nearest to each row of `features_nD`.

    Raises:
        ValueError: `count` is not in 1 ... m.
        ExtractorError: a feature is not finite or too large.
    """
    if not 1 <= count <= len(reference_mD):
        raise ValueError(
            f"neighbours are between 1 and the {len(reference_mD)} reference images, got {count}"
        )
    index_nK = np.empty((len(features_nD), count), np.int64)
    distance_nK = np.empty((len(features_nD), count))
    for rows, squared_rm in squared_distances(quantise(features_nD), quantise(reference_mD)):
        # Up to the distance of the last neighbour there may be more rows than were asked for, and
        # a partition would choose among equal ones at will.
        order_rm = np.argsort(squared_rm, axis=1, kind="stable")[:, :count]
        index_nK[rows] = order_rm
        distance_nK[rows] = np.sqrt(square_units(np.take_along_axis(squared_rm, order_rm, 1)))
    return Neighbours(index_nK, distance_nK)
