"""Distances between all pairs of two sets of features, a piece at a time.

Features are rounded to multiples of 2^-16 as in the moments, k = rint(f * 2^16), and distances are
taken in float64. For whole numbers

    |x - y|^2 = |x|^2 + |y|^2 - 2 x.y

does not suffer from cancellation: all terms are whole numbers too, exact as long as
4 D max |k|^2 < 2^53 (D = 112 and |f| < 68, D = 2048 and |f| < 16). So equal distances are equal to
the last bit, whatever the order of the additions, which a float32 product cannot promise; and
whether a sample that lies on the edge of a ball is inside does not depend on the threads used.
Larger features lose only that.

Legend: n, m rows; r rows of a piece; D features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from fleetstep.evaluation.moments import Float32, Float64, quantise

PIECE = 2**21
"""Numbers of a piece of distances: 16 MiB."""


def square_units(squared: Float64) -> Float64:
    """Squared distances in the units of the features, from those of whole numbers."""
    return squared / 2.0**32


def squared_distances(x_nD: Float64, y_mD: Float64) -> Iterator[tuple[slice, Float64]]:
    """Pieces of consecutive rows x against all rows y: the rows, and squared distances [r, m].

    Args:
        x_nD: whole numbers, of `moments.quantise`.
        y_mD: whole numbers.
    """
    y_square_m = np.einsum("mD,mD->m", y_mD, y_mD)
    rows = max(1, PIECE // len(y_mD))
    for start in range(0, len(x_nD), rows):
        x_rD = x_nD[start : start + rows]
        squared_rm = x_rD @ y_mD.T
        squared_rm *= -2.0
        squared_rm += y_square_m
        squared_rm += np.einsum("rD,rD->r", x_rD, x_rD)[:, None]
        np.maximum(squared_rm, 0.0, out=squared_rm)
        yield slice(start, start + len(x_rD)), squared_rm


def neighbour_radii(features_nD: Float32, neighbours: Sequence[int]) -> dict[int, Float64]:
    """Squared distance of every row to its k-th nearest other row, for every k asked for.

    Args:
        features_nD: features [n, D].
        neighbours: values of k, each below n.

    Returns:
        squared radii [n] of whole-number features, by k.

    Raises:
        ValueError: a row does not have so many neighbours.
        ExtractorError: a feature is not finite or too large.
    """
    x_nD = quantise(features_nD)
    if max(neighbours) >= len(x_nD):
        raise ValueError(
            f"{max(neighbours)} neighbours need more than that many rows, got {len(x_nD)}"
        )
    radii = {k: np.empty(len(x_nD)) for k in neighbours}
    for rows, squared_rm in squared_distances(x_nD, x_nD):
        hide_self(squared_rm, rows)
        squared_rm.partition([k - 1 for k in neighbours], axis=1)
        for k, radius_n in radii.items():
            radius_n[rows] = squared_rm[:, k - 1]
    return radii


def hide_self(squared_rm: Float64, rows: slice) -> None:
    """Set the distances of rows to themselves to infinity, in place."""
    index = np.arange(len(squared_rm))
    squared_rm[index, rows.start + index] = np.inf
