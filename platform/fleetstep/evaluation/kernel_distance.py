"""Kernel distance (KID): unbiased, over all samples, with the jackknife's interval.

    MMD^2 = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean k(x_i, y_j),
    k(x, y) = (x.y / D + 1)^3                                    (Binkowski et al. 2018, sec. 4)

Its expected value is the same for any number of samples. The usual estimate averages random
subsets, whose spread says nothing about the samples that all subsets share; here every pair
counts once, and sums over pairs of blocks make leaving a block out exact.

Legend: n samples, m reference rows, b rows of a block, r rows of a piece, B blocks, D features.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fleetstep.evaluation.jackknife import CONFIDENCE, Estimate, check_sizes, jackknife_interval
from fleetstep.evaluation.moments import Float32, Float64

PIECE_ROWS = 1024


def kernel_distance(
    blocks: Sequence[Float32],
    reference_mD: Float32,
    reference_sum: float,
    *,
    confidence: float = CONFIDENCE,
) -> Estimate:
    """Squared maximum mean discrepancy of all samples and the reference; may be negative.

    Args:
        blocks: samples in two or more blocks of one size, features [b, D].
        reference_mD: features of real images [m, D].
        reference_sum: `pair_sum(reference_mD)`, which does not depend on the samples.
        confidence: of the interval.

    Raises:
        ValueError: the blocks differ in size, or leaving one out leaves less than a pair.
    """
    check_sizes([len(block) for block in blocks])
    size, m = len(blocks[0]), len(reference_mD)
    if size * (len(blocks) - 1) < 2 or m < 2:
        raise ValueError(f"a kernel distance needs pairs, got {len(blocks)} blocks of {size} rows")
    within_BB = _sums_of_block_pairs(blocks)
    between_B = np.array([_kernel_sum(block, reference_mD) for block in blocks])

    def distance(within: float, between: float, n: int) -> float:
        return (
            within / (n * (n - 1)) + reference_sum / (m * (m - 1)) - 2.0 * between / (float(n) * m)
        )

    everything, crossing, n = float(within_BB.sum()), float(between_B.sum()), size * len(blocks)
    without_B = everything - 2.0 * within_BB.sum(1) + within_BB.diagonal()
    return jackknife_interval(
        distance(everything, crossing, n),
        [
            distance(float(within), crossing - float(between), n - size)
            for within, between in zip(without_B, between_B, strict=True)
        ],
        confidence=confidence,
    )


def pair_sum(features_nD: Float32) -> float:
    """Sum of k(x_i, x_j) over all ordered pairs of different rows."""
    x_nD = np.asarray(features_nD, np.float64)
    own_n = (np.einsum("nD,nD->n", x_nD, x_nD) / x_nD.shape[1] + 1.0) ** 3
    return _kernel_sum(x_nD, x_nD) - float(own_n.sum())


def _sums_of_block_pairs(blocks: Sequence[Float32]) -> Float64:
    """Sums of the kernel between blocks, [B, B]; a row is not paired with itself."""
    sums_BB = np.diag([pair_sum(block) for block in blocks])
    for i, first in enumerate(blocks):
        for j, second in enumerate(blocks[:i]):
            sums_BB[i, j] = sums_BB[j, i] = _kernel_sum(first, second)
    return sums_BB


def _kernel_sum(x_nD: Float32 | Float64, y_mD: Float32 | Float64) -> float:
    """Sum of k over all pairs of a row x and a row y, in pieces that bound the memory."""
    # In float64: the distance is a small difference of large means.
    y_mD, total = np.asarray(y_mD, np.float64), 0.0
    for start in range(0, len(x_nD), PIECE_ROWS):
        kernel_rm = np.asarray(x_nD[start : start + PIECE_ROWS], np.float64) @ y_mD.T
        kernel_rm /= y_mD.shape[1]
        kernel_rm += 1.0
        total += float(np.vdot(kernel_rm * kernel_rm, kernel_rm))
    return total
