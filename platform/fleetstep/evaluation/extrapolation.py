"""Fréchet distance extrapolated to infinitely many images (Chong & Forsyth 2020).

The bias of a distance of n images is close to linear in 1/n. Distances of 15 subsets, from a tenth
of the images to all of them, are fitted by a line in 1/n; where it meets 1/n = 0 is the estimate.

The 15 subsets share images, so the scatter about the line says little about the uncertainty:
the interval is the jackknife's, with the whole extrapolation done again without each block.

The jackknife of the plain distance (`fd`) removes the same bias with less scatter: standard
deviation 0.15 against 0.24 at 500 images, 0.072 against 0.087 at 2,000. This one is for
comparison with published values of FID-infinity.

Legend: n images, b images of a block, B blocks, S sizes, D features.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fleetstep import rng
from fleetstep.evaluation.jackknife import CONFIDENCE, Estimate, check_sizes, jackknife_interval
from fleetstep.evaluation.metrics import Gaussian, gaussian_distance
from fleetstep.evaluation.moments import Float32, Moments, total

SIZES = 15
SEED = 0
PURPOSE = "fd_inf"


def subset_sizes(n: int) -> list[int]:
    """15 numbers of images, evenly spaced from a tenth of `n` to all of them."""
    return [int(size) for size in np.rint(np.linspace(n / 10, n, SIZES))]


def at_infinity(sizes_S: npt.ArrayLike, distances_S: npt.ArrayLike) -> float:
    """Value at 1/n = 0 of the least-squares line through (1/n, distance)."""
    x_S, y_S = 1.0 / np.asarray(sizes_S, np.float64), np.asarray(distances_S, np.float64)
    centred_S = x_S - x_S.mean()
    slope = float(centred_S @ y_S) / float(centred_S @ centred_S)
    return float(y_S.mean() - slope * x_S.mean())


def frechet_at_infinity(
    reference: Gaussian, blocks: Sequence[Float32], *, confidence: float = CONFIDENCE
) -> Estimate:
    """Extrapolated Fréchet distance of all images; it costs 15 (B + 1) distances.

    Subsets are nested: the first images of one permutation, keyed by (seed 0, purpose), so equal
    features give equal bits.

    Args:
        reference: of the real images.
        blocks: features of generated images in two or more blocks of one size, [b, D].
        confidence: of the interval.

    Raises:
        ExtractorError: a feature is not finite or too large.
        ValueError: blocks of different sizes, or too few images for a covariance.
    """
    check_sizes([len(block) for block in blocks])
    size, n = len(blocks[0]), len(blocks[0]) * len(blocks)
    rank_n = np.empty(n, np.int64)
    rank_n[rng.permutation(SEED, PURPOSE, 0, n)] = np.arange(n)
    distance = functools.partial(_distance, reference)
    # One row a subset: its size and distance with all blocks, then without each.
    sizes, distances = [], []
    parts = [Moments.zero(block.shape[1]) for block in blocks]
    for lower, upper in itertools.pairwise([0, *subset_sizes(n)]):
        for index, block in enumerate(blocks):
            rank_b = rank_n[index * size : (index + 1) * size]
            parts[index] += Moments.of(block[(lower <= rank_b) & (rank_b < upper)])
        subset = total(parts)
        left = [subset, *(subset - part for part in parts)]
        sizes.append([moments.n for moments in left])
        distances.append([distance(moments) for moments in left])
    columns = zip(np.transpose(sizes), np.transpose(distances), strict=True)
    values = [at_infinity(*column) for column in columns]
    return jackknife_interval(values[0], values[1:], confidence=confidence)


def _distance(reference: Gaussian, moments: Moments) -> float:
    return gaussian_distance(reference, Gaussian.of(moments))
