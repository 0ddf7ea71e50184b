"""Inception Score, from the class probabilities of generated images alone.

    IS = exp(mean_i KL(p(y | x_i) || mean_j p(y | x_j)))          (Salimans et al. 2016, sec. 4)

Legend: n images, b images of a block, B blocks, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import xlogy

from fleetstep.evaluation.jackknife import CONFIDENCE, Estimate, check_sizes, jackknife_estimate
from fleetstep.evaluation.moments import Float32, Float64


def inception_score(blocks: Sequence[Float32], *, confidence: float = CONFIDENCE) -> Estimate:
    """The score of all images together, higher is better, between 1 and K.

    Published ones are mostly means over splits of the images (Salimans et al. 2016), which are
    lower: each split's own mean is fitted to it.

    The plain value of few images is too low, because their own mean is fitted to them; the
    jackknife removes that.

    Args:
        blocks: probabilities [b, K] in two or more blocks of one size; rows sum to 1.
        confidence: of the interval.

    Raises:
        ValueError: blocks of different sizes.
    """
    check_sizes([len(block) for block in blocks])
    size, n = len(blocks[0]), len(blocks[0]) * len(blocks)
    sum_BK = np.stack([np.sum(block, 0, np.float64) for block in blocks])
    negentropy_B = np.array([_negentropy(block) for block in blocks])
    sum_K, negentropy = sum_BK.sum(0), float(negentropy_B.sum())
    return jackknife_estimate(
        _score(sum_K, negentropy, n),
        [
            _score(sum_K - block_K, negentropy - float(block), n - size)
            for block_K, block in zip(sum_BK, negentropy_B, strict=True)
        ],
        confidence=confidence,
    )


def _negentropy(probabilities_nK: Float32) -> float:
    """Sum of p log p over images and classes, with 0 log 0 = 0."""
    p_nK = np.asarray(probabilities_nK, np.float64)
    return float(xlogy(p_nK, p_nK).sum())


def _score(sum_K: Float64, negentropy: float, n: int) -> float:
    marginal_K = sum_K / n
    return math.exp(negentropy / n - float(xlogy(marginal_K, marginal_K).sum()))
