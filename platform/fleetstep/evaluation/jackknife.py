"""Values with an interval: the jackknife over blocks of samples.

A statistic of n samples is computed again without each of B blocks of them (B is 10 or 20). From
the values with and without a block follow pseudo-values, one a block, which behave like B
independent measurements: their mean has lost the bias of order 1/n, and their spread gives a
standard error (Quenouille 1956; Tukey 1958; Miller 1974).

    p_i = B * statistic - (B - 1) * statistic without block i
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

from fleetstep.evaluation.moments import Moments, total

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A statistic and its interval.

    The interval covers the choice of samples only: the reference is taken as given, and another
    training run is another matter. Nothing is clipped: near its floor a distance without bias can
    turn out negative.

    Args:
        raw: the statistic of all samples.
        value: mean of the pseudo-values; `raw` but for rounding where no bias is to be removed.
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


@dataclass(frozen=True, kw_only=True)
class StudentInterval:
    """Mean of independent values and its Student interval.

    Args:
        mean: of the values.
        standard_error: of the mean.
        low, high: ends of the two-sided interval.
    """

    mean: float
    standard_error: float
    low: float
    high: float


def student_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> StudentInterval:
    """Mean, standard error and two-sided interval with len(values) - 1 degrees of freedom.

    Raises:
        ValueError: fewer than two values.
    """
    count = len(values)
    if count < 2:
        raise ValueError(f"an interval needs two or more values, got {count}")
    mean = math.fsum(values) / count
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    error = math.sqrt(variance / count)
    reach = float(stdtrit(count - 1, (1 + confidence) / 2)) * error
    return StudentInterval(mean=mean, standard_error=error, low=mean - reach, high=mean + reach)


def jackknife(
    blocks: Sequence[Moments],
    statistic: Callable[[Moments], float],
    *,
    confidence: float = CONFIDENCE,
) -> Estimate:
    """Delete-one-block jackknife of a statistic of moments.

    Args:
        blocks: two or more disjoint parts of the samples, of one size; 10 to 20 are right.
        statistic: of moments, for example `functools.partial(frechet, reference)`.
        confidence: of the interval.

    Raises:
        ValueError: fewer than two blocks, or blocks of different sizes.
    """
    check_sizes([block.n for block in blocks])
    everything = total(list(blocks))
    return jackknife_estimate(
        statistic(everything),
        [statistic(everything - block) for block in blocks],
        confidence=confidence,
    )


def check_sizes(sizes: Sequence[int]) -> None:
    """ValueError unless there are two or more blocks, all of one size of at least one row."""
    if len(sizes) < 2 or len(set(sizes)) != 1 or sizes[0] < 1:
        raise ValueError(
            f"a jackknife needs two or more blocks of one size, got sizes {list(sizes)}"
        )


def jackknife_estimate(
    raw: float, leave_one_out: Sequence[float], *, confidence: float = CONFIDENCE
) -> Estimate:
    """Value without the bias of order 1/n, and its interval, from the pseudo-values."""
    return _estimate(raw, _pseudo_values(raw, leave_one_out), confidence)


def jackknife_interval(
    raw: float, leave_one_out: Sequence[float], *, confidence: float = CONFIDENCE
) -> Estimate:
    """The plain value with the jackknife's interval around it; the value is `raw`.

    For statistics that have no bias to remove (a U-statistic, an extrapolation to infinitely many
    samples), and for those that mean something else with other numbers of samples, as recall and
    coverage do. The pseudo-values are moved so that their mean is `raw`.
    """
    pseudo_values = _pseudo_values(raw, leave_one_out)
    shift = raw - math.fsum(pseudo_values) / len(pseudo_values)
    return _estimate(raw, [value + shift for value in pseudo_values], confidence)


def mean_estimate(block_means: Sequence[float], *, confidence: float = CONFIDENCE) -> Estimate:
    """The jackknife of a mean: its pseudo-values are the means of the (equally large) blocks."""
    raw = math.fsum(block_means) / len(block_means)
    return _estimate(raw, block_means, confidence)


def _pseudo_values(raw: float, leave_one_out: Sequence[float]) -> list[float]:
    count = len(leave_one_out)
    return [count * raw - (count - 1) * left for left in leave_one_out]


def _estimate(raw: float, pseudo_values: Sequence[float], confidence: float) -> Estimate:
    interval = student_interval(pseudo_values, confidence)
    return Estimate(
        raw=raw,
        value=interval.mean,
        standard_error=interval.standard_error,
        low=interval.low,
        high=interval.high,
        confidence=confidence,
        pseudo_values=tuple(pseudo_values),
    )
