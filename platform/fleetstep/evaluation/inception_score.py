"""Inception Score, from the class probabilities of generated images alone.

    IS = exp(mean_i KL(p(y | x_i) || mean_j p(y | x_j)))          (Salimans et al. 2016, sec. 4)

Legend: n images, b images of a block, B blocks, K classes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import xlogy

from fleetstep.evaluation.jackknife import CONFIDENCE, Estimate, check_sizes, jackknife_estimate
from fleetstep.evaluation.moments import Float32, Float64


def inception_score(blocks: Sequence[Float32], *, confidence: float = CONFIDENCE) -> Estimate:
    """The score of all images together, higher is better, between 1 and K.

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


@dataclass(frozen=True)
class SplitScores:
    """Inception Score as it is published: mean over splits of the images.

    Args:
        mean: over splits.
        deviation: standard deviation over splits (divisor: their number), which is not the
            uncertainty of `mean`.
    """

    mean: float
    deviation: float


def inception_score_of_splits(probabilities_nK: Float32, splits: int = 10) -> SplitScores:
    """Mean score of consecutive splits of equal size, in the order of the images.

    Ten splits of 50,000 images are the published convention (Salimans et al. 2016), and the
    splits of 5,000 of Dhariwal & Nichol 2021. Each split's score is lower than that of all images.

    Raises:
        ValueError: `splits` is not in 1 ... n.
    """
    n = len(probabilities_nK)
    if not 1 <= splits <= n:
        raise ValueError(f"splits are between 1 and the {n} images, got {splits}")
    edges = [n * index // splits for index in range(splits + 1)]
    scores = [
        _score(part.sum(0, np.float64), _negentropy(part), len(part))
        for part in (probabilities_nK[a:b] for a, b in itertools.pairwise(edges))
    ]
    return SplitScores(float(np.mean(scores)), float(np.std(scores)))


def _negentropy(probabilities_nK: Float32) -> float:
    """Sum of p log p over images and classes, with 0 log 0 = 0."""
    p_nK = np.asarray(probabilities_nK, np.float64)
    return float(xlogy(p_nK, p_nK).sum())


def _score(sum_K: Float64, negentropy: float, n: int) -> float:
    marginal_K = sum_K / n
    return math.exp(negentropy / n - float(xlogy(marginal_K, marginal_K).sum()))
