"""Speed-up over training seeds: how many times fewer images an arm needs to be as good as the
baseline was at several places of its training.

The measure of the papers (FDM, SpeeD): at a level of quality, images of the baseline over images
of the arm. Runs of one seed share data order and noise and are held against each other; the
logarithms of their ratios have a mean and a Student interval, shown as a geometric mean. A run
that never reached a level is censored: its ratio is a bound, and the mean becomes one. No pair is
dropped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fleetstep.reporting.records import Curve
from fleetstep.reporting.seeds import Arm, RunPair, pairs_of
from fleetstep.reporting.statistics import mean_of, reach

SHARES = (0.4, 0.6, 0.8, 0.9, 1.0)
"""Places of the baseline's training whose quality the arms must reach."""

Along = Literal["images", "wall_s"]


@dataclass(frozen=True)
class Passage:
    """When a curve first was as good as a level.

    Args:
        images: images seen: there, or of the first measurement, or of the last one.
        wall_s: seconds since the run started, likewise.
        kind: reached there; before its first measurement, or at it; never within its training.
    """

    images: float
    wall_s: float
    kind: Literal["reached", "before", "never"]

    def log_bounds(self, along: Along) -> tuple[float, float]:
        """What is known of the logarithm of the passage."""
        value = self.images if along == "images" else self.wall_s
        if value <= 0:
            return -math.inf, math.inf
        low = -math.inf if self.kind == "before" else math.log(value)
        return low, math.inf if self.kind == "never" else math.log(value)


def passage(curve: Curve, level: float) -> Passage | None:
    """When a curve first was at or below a level; None where it holds no finite value."""
    finite = [i for i, value in enumerate(curve.values) if math.isfinite(value)]
    if not finite:
        return None
    first, last = finite[0], finite[-1]
    if curve.values[first] <= level:
        return Passage(curve.images_seen[first], curve.wall_s[first], "before")
    if (found := reach(curve, level)) is None:
        return Passage(curve.images_seen[last], curve.wall_s[last], "never")
    return Passage(found.images, found.wall_s, "reached")


@dataclass(frozen=True)
class Ratio:
    """A geometric mean of ratios baseline / arm: 2 = half of what the baseline needs.

    Args:
        at_least, at_most: bounds of the mean; equal where every run reached the level, 0 and
            infinity where nothing is known.
        low, high: 95 % Student interval over the pairs' logarithms; None for one pair or bounds.
        pairs: how many pairs of runs it is the mean of.
        exact: in how many of them both runs reached the level.
    """

    at_least: float
    at_most: float
    low: float | None
    high: float | None
    pairs: int
    exact: int

    @property
    def value(self) -> float | None:
        """The mean where it is known."""
        return self.at_least if self.exact == self.pairs else None


@dataclass(frozen=True)
class Speedup:
    """An arm against the baseline at one level.

    Args:
        share: of the baseline's training at which its mean curve is as good.
        level: the value to be reached.
        passages: of each pair, the arm's and the baseline's.
        images, wall: the ratios; that of wall time holds for one machine only.
    """

    share: float
    level: float
    passages: tuple[tuple[RunPair, Passage, Passage], ...]
    images: Ratio
    wall: Ratio

    @property
    def reached(self) -> tuple[int, int]:
        """In how many pairs the arm's run, and the baseline's, reached the level."""
        return (
            sum(own.kind != "never" for _, own, _ in self.passages),
            sum(other.kind != "never" for _, _, other in self.passages),
        )


def ratio_of(passages: Sequence[tuple[Passage, Passage]], along: Along) -> Ratio:
    """The geometric mean of baseline over arm, from pairs (arm's passage, baseline's).

    Raises:
        ValueError: no pairs.
    """
    lows, highs = [], []
    for own, other in passages:
        own_low, own_high = own.log_bounds(along)
        low, high = other.log_bounds(along)
        lows.append(low - own_high)
        highs.append(high - own_low)
    exact = sum(low == high for low, high in zip(lows, highs, strict=True))
    low_mean, high_mean = (_finite_mean(ends) for ends in (lows, highs))
    found = mean_of(lows) if exact == len(lows) else None
    return Ratio(
        at_least=math.exp(low_mean),
        at_most=math.exp(high_mean),
        low=None if found is None or found.low is None else math.exp(found.low),
        high=None if found is None or found.high is None else math.exp(found.high),
        pairs=len(lows),
        exact=exact,
    )


def _finite_mean(ends: Sequence[float]) -> float:
    return sum(ends) / len(ends) if any(map(math.isinf, ends)) else mean_of(ends).value


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean of several curves at the images where all have a finite value."""
    values = [dict(zip(c.images_seen, c.values, strict=True)) for c in curves]
    walls = [dict(zip(c.images_seen, c.wall_s, strict=True)) for c in curves]
    shared = sorted(
        images
        for images in set.intersection(*(set(v) for v in values))
        if all(math.isfinite(v[images]) for v in values)
    )
    return Curve(
        tuple(shared),
        tuple(mean_of([v[images] for v in values]).value for images in shared),
        tuple(mean_of([w[images] for w in walls]).value for images in shared),
    )


def levels_of(
    baseline: Curve, shares: Sequence[float] = SHARES
) -> tuple[tuple[float, float], ...]:
    """(share of training, value of the curve there), between measurements linear in the logarithm
    of positive values; shares before the first measurement have none.
    """
    if not baseline:
        return ()
    end = baseline.images_seen[-1]
    found = ((share, _value_at(baseline, share * end)) for share in shares)
    return tuple((share, value) for share, value in found if value is not None)


def _value_at(curve: Curve, images: float) -> float | None:
    for i, seen in enumerate(curve.images_seen):
        if seen < images:
            continue
        if seen == images or i == 0:
            return curve.values[i] if seen == images else None
        start, value = curve.images_seen[i - 1], curve.values[i - 1]
        if start > 0 and value > 0 and curve.values[i] > 0:
            share = math.log(images / start) / math.log(seen / start)
            return float(value * (curve.values[i] / value) ** share)
        return value + (curve.values[i] - value) * (images - start) / (seen - start)
    return None


def speedups(
    arm: Arm, baseline: Arm, key: str, shares: Sequence[float] = SHARES
) -> tuple[Speedup, ...]:
    """An arm against the baseline on one curve, at each level of the baseline's mean curve.

    Args:
        key: name of a curve of which less is better.

    Returns:
        nothing where an arm has no such curve.
    """
    pairs = [p for p in pairs_of(arm, baseline) if _has(p.run.curves, key)]
    pairs = [p for p in pairs if _has(p.baseline.curves, key)]
    known = [run.curves[key] for run in baseline.runs if _has(run.curves, key)]
    if not pairs:
        return ()
    return tuple(
        _at(share, level, pairs, key) for share, level in levels_of(mean_curve(known), shares)
    )


def _has(curves: Mapping[str, Curve], key: str) -> bool:
    return key in curves and any(map(math.isfinite, curves[key].values))


def _at(share: float, level: float, pairs: Sequence[RunPair], key: str) -> Speedup:
    passages = tuple(
        (pair, own, other)
        for pair in pairs
        if (own := passage(pair.run.curves[key], level)) is not None
        and (other := passage(pair.baseline.curves[key], level)) is not None
    )
    ratios = [(own, other) for _, own, other in passages]
    return Speedup(share, level, passages, ratio_of(ratios, "images"), ratio_of(ratios, "wall_s"))
