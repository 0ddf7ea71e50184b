"""Screening: how far a sampler moves features away from a teacher's, latent by latent.

Cells of one model with deterministic solvers start from the same latents, so a few of them (64)
already rank the cells. With d_i the distance between the features of sample i from a cell and from
a teacher of many steps, all features over their standard deviation in the reference,

    |sqrt(FD_cell) - sqrt(FD_teacher)| <= W2(Gaussians) <= W2(samples) <= sqrt(mean d_i^2)

where the second inequality is Gelbrich's (1990), of covariances with divisor n; with n - 1 squares
grow by a factor of at most n / (n - 1).

Legend: n latents, D features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from fleetstep.evaluation.jackknife import CONFIDENCE, student_interval
from fleetstep.evaluation.moments import Float32, Float64


@dataclass(frozen=True, kw_only=True)
class Displacement:
    """Root mean square displacement of a cell's features from its teacher's.

    Args:
        rms: of the latents seen.
        low, high: Student interval of the mean square, as roots; `low` is never negative.
        confidence: of the interval.
        squares: squared displacement of each latent, in the order of the latents.
    """

    rms: float
    low: float
    high: float
    confidence: float
    squares: tuple[float, ...]


def displacement(
    features_nD: Float32,
    teacher_nD: Float32,
    scale_D: Float64,
    *,
    confidence: float = CONFIDENCE,
) -> Displacement:
    """Displacement of samples of the same latents.

    Args:
        features_nD: the cell's features, [n, D].
        teacher_nD: the teacher's, row by row of the same latents, [n, D].
        scale_D: one over the standard deviation of each feature, `Reference.scale_D`.
        confidence: of the interval.

    Raises:
        ValueError: the two differ in shape, or hold fewer than two latents.
    """
    if features_nD.shape != teacher_nD.shape:
        raise ValueError(
            f"a displacement needs the same latents, got {features_nD.shape} and "
            f"{teacher_nD.shape}"
        )
    shift_nD = (features_nD.astype(np.float64) - teacher_nD.astype(np.float64)) * scale_D
    squares = tuple(float(value) for value in np.einsum("nD,nD->n", shift_nD, shift_nD))
    interval = student_interval(squares, confidence)
    return Displacement(
        rms=math.sqrt(interval.mean),
        low=math.sqrt(max(interval.low, 0.0)),
        high=math.sqrt(interval.high),
        confidence=confidence,
        squares=squares,
    )


def worse(a: Displacement, b: Displacement, confidence: float) -> bool:
    """Whether `a` is farther from the teacher than `b`: one-sided paired test on the squares.

    Raises:
        ValueError: they are not of the same latents.
    """
    if len(a.squares) != len(b.squares):
        raise ValueError(
            f"displacements are compared latent by latent, got {len(a.squares)} and "
            f"{len(b.squares)} of them"
        )
    differences = [x - y for x, y in zip(a.squares, b.squares, strict=True)]
    interval = student_interval(differences)
    quantile = float(stdtrit(len(differences) - 1, confidence))
    return interval.mean > quantile * interval.standard_error


def gelbrich_holds(fd_cell: float, fd_teacher: float, moved: Displacement) -> bool:
    """Whether two distances differ by no more than features were displaced.

    At equal samples the root mean square itself is the bound. Distances of other samples than
    the displaced ones are covered by the upper end of its interval, which is used here.

    Args:
        fd_cell: standardised Fréchet distance of the cell from the reference; a value that the
            jackknife has made negative counts as 0.
        fd_teacher: of the teacher.
        moved: displacement of the cell from the teacher.
    """
    gap = abs(math.sqrt(max(fd_cell, 0.0)) - math.sqrt(max(fd_teacher, 0.0)))
    return gap <= moved.high
