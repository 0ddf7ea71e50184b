"""The arithmetic of comparing two runs: paired differences, time to quality, Pareto fronts.

Losses are better where they are lower; a score knows which way its metric points.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from scipy.special import stdtrit

from fleetstep.errors import ComparisonError
from fleetstep.reporting.records import CONFIDENCE, Cell, Curve, Score

Verdict = Literal["better", "worse", "no difference"]

_PROTOCOL = {
    "metric": "the metric",
    "protocol_name": "the named protocol",
    "extractor_sha256": "the feature extractor (SHA-256)",
    "reference_sha256": "the reference statistics (SHA-256)",
    "n": "the number of samples n",
    "blocks": "the number of jackknife blocks",
    "seeds": "the sample seeds",
    "preprocess": "the preprocessing",
    "texts": "the texts of the classes (SHA-256)",
    "quantisation": "the quantisation",
    "labels": "the labels rule",
}
_CELL = {
    "solver": "the solver",
    "schedule": "the schedule",
    "calls": "the number of network calls",
    "guidance": "the guidance",
    "dtype": "the solver's dtype",
}


def check_comparable(run: Score, baseline: Score) -> None:
    """Refuse to compare runs by scores which do not measure the same thing in the same way.

    Raises:
        ComparisonError: names every fact that differs, with both values.
    """
    _check(run, baseline, _PROTOCOL | _CELL)


def check_protocols(cell: Score, other: Score) -> None:
    """Refuse to rank cells whose images were not measured in the same way.

    Raises:
        ComparisonError: names every fact that differs, with both values.
    """
    _check(cell, other, _PROTOCOL)


def _check(score: Score, other: Score, must_agree: Mapping[str, str]) -> None:
    differing = [
        f"{title}: {getattr(score, name)!s} against {getattr(other, name)!s}"
        for name, title in must_agree.items()
        if getattr(score, name) != getattr(other, name)
    ]
    if differing:
        raise ComparisonError(
            f"scores may be ranked only when all of their protocol agrees, but {score.run} and "
            f"{other.run} differ in {'; '.join(differing)}",
            f"score both with one sweep config, for example the one that scored {other.run}",
        )
    for one in (score, other):
        if one.blocks < 2 or len(one.pseudo_values) != one.blocks:
            raise ComparisonError(
                "an interval needs at least two blocks and one pseudo-value per block, but "
                f"{one.run} at {one.cell.title} has {one.blocks} blocks and "
                f"{len(one.pseudo_values)} pseudo-values",
                "let the sweep finish, or score the checkpoint again",
            )


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Run minus baseline in one cell, or a cell minus another, from the same latents.

    Args:
        se: standard error of `value`.
        low: lower end of the 95 % Student interval (blocks - 1 degrees of freedom).
        high: upper end.
        baseline_value: the baseline's score, to express `value` as a share.
        n: samples in each of the two scores.
        higher_is_better: which way the metric points.
    """

    cell: Cell
    value: float
    se: float
    low: float
    high: float
    baseline_value: float
    baseline_se: float
    n: int
    blocks: int
    higher_is_better: bool = False

    @property
    def verdict(self) -> Verdict:
        """What the interval allows to say: it excludes zero on one side, or it does not."""
        if self.low <= 0 <= self.high:
            return "no difference"
        return "better" if (self.low > 0) == self.higher_is_better else "worse"


def paired_difference(run: Score, baseline: Score) -> Difference:
    """Mean and Student interval of the blockwise differences of the jackknife pseudo-values.

    Block b of both scores holds the same latents, so what the two share cancels: several times
    fewer samples are needed than for two independent intervals.

    Raises:
        ComparisonError: the two scores do not measure the same thing (`check_comparable`).
    """
    check_comparable(run, baseline)
    return _difference(run, baseline)


def cell_difference(cell: Score, other: Score) -> Difference:
    """The same for two cells of a sweep, which may differ in network, solver, NFE and guidance.

    Raises:
        ComparisonError: the two were not measured in the same way (`check_protocols`).
    """
    check_protocols(cell, other)
    return _difference(cell, other)


def _difference(run: Score, baseline: Score) -> Difference:
    blocks = run.blocks
    deltas = [a - b for a, b in zip(run.pseudo_values, baseline.pseudo_values, strict=True)]
    mean = math.fsum(deltas) / blocks
    variance = math.fsum((delta - mean) ** 2 for delta in deltas) / (blocks - 1)
    se = math.sqrt(variance / blocks)
    half = float(stdtrit(blocks - 1, (1 + CONFIDENCE) / 2)) * se
    return Difference(
        cell=run.cell,
        value=mean,
        se=se,
        low=mean - half,
        high=mean + half,
        baseline_value=baseline.value,
        baseline_se=baseline.se,
        n=run.n,
        blocks=blocks,
        higher_is_better=run.protocol.higher_is_better,
    )


@dataclass(frozen=True)
class Reached:
    """When a curve first was as good as a target: images seen, seconds since the run started."""

    images: float
    wall_s: float


def reach(curve: Curve, target: float) -> Reached | None:
    """Where the best value so far first is `target` or lower; None where it never is.

    Between two measurements which lowered the best value it is interpolated as a power law where
    images and values are positive, which curves of loss nearly are and a pure one is exactly, else
    linearly; time runs evenly with the images. Measurements which did not lower it (noise,
    overfitting, NaN) are passed over. A curve which starts at or below the target reached it at
    its first measurement, or before.
    """
    before: tuple[int, float, float] | None = None
    for images, value, wall in zip(curve.images_seen, curve.values, curve.wall_s, strict=True):
        if math.isnan(value) or (before is not None and value >= before[1]):
            continue
        if value <= target:
            if before is None:
                return Reached(float(images), wall)
            found = _between(before[:2], (images, value), target)
            share = (found - before[0]) / (images - before[0])
            return Reached(found, before[2] + share * (wall - before[2]))
        before = (images, value, wall)
    return None


def _between(before: tuple[int, float], after: tuple[int, float], target: float) -> float:
    """Images at which a falling curve through two measurements meets a value between theirs."""
    if target == after[1] or math.isinf(before[1]) or math.isinf(after[1]):
        return float(after[0])
    if before[0] > 0 and after[1] > 0:
        share = math.log(before[1] / target) / math.log(before[1] / after[1])
        return before[0] * math.exp(share * math.log(after[0] / before[0]))
    share = (before[1] - target) / (before[1] - after[1])
    return before[0] + share * (after[0] - before[0])


@dataclass(frozen=True)
class TimeToQuality:
    """How soon a run was as good as the baseline at its end.

    Args:
        target: the baseline's final held-out loss.
        baseline: where the baseline itself first reached it.
        run: where the run did; None = not within its training.
    """

    target: float
    baseline: Reached
    run: Reached | None

    @property
    def images_ratio(self) -> float | None:
        """Baseline's images over the run's: 2 = half the images; None = not reached (or at image
        0).
        """
        return None if self.run is None else _ratio(self.baseline.images, self.run.images)

    @property
    def wall_ratio(self) -> float | None:
        """The same in wall time, which compares only runs of one machine."""
        return None if self.run is None else _ratio(self.baseline.wall_s, self.run.wall_s)


def _ratio(above: float, below: float) -> float | None:
    return above / below if above > 0 and below > 0 else None


def time_to_quality(run: Curve, baseline: Curve) -> TimeToQuality | None:
    """Images and wall time until `run` is as good as `baseline` at its end; None where the
    baseline has no end value.
    """
    target = final_value(baseline)
    if target is None or (reached := reach(baseline, target)) is None:
        return None
    return TimeToQuality(target, reached, reach(run, target))


def final_value(curve: Curve | None) -> float | None:
    """The last value of a curve; None where there is none or it is not finite."""
    if curve is None or not curve.values or not math.isfinite(curve.values[-1]):
        return None
    return curve.values[-1]


@dataclass(frozen=True)
class Mean:
    """A mean over training seeds with its 95 % Student interval.

    Args:
        low, high: ends of the interval (n - 1 degrees of freedom); None of a single value, which
            tells nothing of other seeds.
    """

    value: float
    low: float | None
    high: float | None
    n: int


def mean_of(values: Sequence[float]) -> Mean:
    """Mean and interval of independent values, at least one.

    Raises:
        ValueError: no values.
    """
    n = len(values)
    if n == 0:
        raise ValueError("the mean of no values is not defined")
    mean = math.fsum(values) / n
    if n == 1:
        return Mean(mean, None, None, 1)
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    half = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * math.sqrt(variance / n)
    return Mean(mean, mean - half, mean + half, n)


def pareto_front(points: Sequence[tuple[float, float]]) -> tuple[int, ...]:
    """Indices of the points which no other beats, by first coordinate (cost), both lower is
    better.

    A point stays when every point of no greater cost is worse; of equal points the first stays.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i][0], points[i][1], i))
    front: list[int] = []
    best = math.inf
    for i in order:
        if points[i][1] < best:
            front.append(i)
            best = points[i][1]
    return tuple(front)
