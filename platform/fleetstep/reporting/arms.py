"""Arms against the baseline's arm: how good they end and how soon, over training seeds.

Two questions are kept apart. Over seeds: would the setting be better if it were trained again? Its
interval comes from pairs of runs. Within one pair of checkpoints: are these very weights better
than those? That interval comes from the sampling of images and is `Sweep.differences`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fleetstep.reporting.records import HELD_OUT_LOSS, Cell, RunRecord, Score
from fleetstep.reporting.seeds import Arm, pairs_of
from fleetstep.reporting.speedup import Speedup, speedups
from fleetstep.reporting.statistics import Mean, Verdict, final_value, mean_of

_DISTANCES = ("eval/fid", "eval/fd")
"""Metric-name prefixes of distances that were scored over training."""

_CURVES = 3
"""At most so many of those curves have speed-ups, FIDs first."""

Scores = Mapping[tuple[str, Cell], Score]


@dataclass(frozen=True)
class SeedDifference:
    """Arm minus baseline over pairs of runs.

    Args:
        mean: of the pairs' differences.
        pairs: (seed or seeds, difference) of each.
        same_seed: whether every pair shares its seed.
    """

    mean: Mean
    pairs: tuple[tuple[str, float], ...]
    same_seed: bool
    higher_is_better: bool = False

    @property
    def verdict(self) -> Verdict | None:
        """What the interval over seeds allows to say; None without one."""
        if self.mean.low is None or self.mean.high is None:
            return None
        if self.mean.low <= 0 <= self.mean.high:
            return "no difference"
        return "better" if (self.mean.low > 0) == self.higher_is_better else "worse"


@dataclass(frozen=True)
class ArmStanding:
    """One arm's row in the answer.

    Args:
        loss: final held-out losses; None without, or where they cannot be compared.
        score: scores in the headline cell; None where a seed has none there.
        loss_difference, score_difference: to the baseline's arm; None for that arm itself.
        speedups: curve -> the arm's speed-up at each level, the held-out loss first.
    """

    arm: Arm
    loss: Mean | None
    score: Mean | None
    loss_difference: SeedDifference | None
    score_difference: SeedDifference | None
    speedups: Mapping[str, tuple[Speedup, ...]]

    def last_known(self, key: str) -> Speedup | None:
        """The latest level of a curve that every run reached, else the last; the one to quote."""
        levels = self.speedups.get(key, ())
        known = [level for level in levels if level.images.value is not None]
        return (known or levels or (None,))[-1]


@dataclass(frozen=True)
class ArmComparison:
    """All arms, the baseline's first.

    Args:
        cell: where scores are compared: of the cells that every seed of the baseline has and
            another arm has too, the one where the baseline's mean is best. None without one.
    """

    standings: tuple[ArmStanding, ...]
    cell: Cell | None

    @property
    def over_seeds(self) -> bool:
        """Whether there are two arms and one of them has several seeds."""
        return len(self.standings) > 1 and any(len(s.arm.runs) > 1 for s in self.standings)

    @property
    def curves(self) -> tuple[str, ...]:
        """Every curve that has speed-ups."""
        return tuple(dict.fromkeys(key for s in self.standings for key in s.speedups))


def compare_arms(arms: Sequence[Arm], scores: Scores, *, losses_compared: bool) -> ArmComparison:
    """Compare arms with the first of them.

    Args:
        scores: (run name, cell) -> score, all of one protocol.
        losses_compared: whether held-out losses, and with them all curves, measure one thing.
    """
    baseline, cell = arms[0], _headline_cell(arms, scores)

    def loss(run: RunRecord) -> float | None:
        return final_value(run.curves.get(HELD_OUT_LOSS)) if losses_compared else None

    def score(run: RunRecord) -> float | None:
        found = None if cell is None else scores.get((run.name, cell))
        return None if found is None else found.value

    higher = any(found.protocol.higher_is_better for found in scores.values())
    curves = _curves(arms) if losses_compared else ()
    standings = (
        ArmStanding(
            arm=arm,
            loss=_mean(arm, loss),
            score=_mean(arm, score),
            loss_difference=None if arm is baseline else _difference(arm, baseline, loss),
            score_difference=None
            if arm is baseline
            else _difference(arm, baseline, score, higher_is_better=higher),
            speedups={}
            if arm is baseline
            else {key: found for key in curves if (found := speedups(arm, baseline, key))},
        )
        for arm in arms
    )
    return ArmComparison(tuple(standings), cell)


def _curves(arms: Sequence[Arm]) -> tuple[str, ...]:
    """The held-out loss and the distances that the baseline and another arm have over training."""
    known = [{key for run in arm.runs for key in run.curves} for arm in arms]
    shared = known[0] & set().union(*known[1:])
    rank = {prefix: place for place, prefix in enumerate(_DISTANCES)}
    distances = sorted(
        (place, key) for key in shared for p, place in rank.items() if key.startswith(p)
    )
    found = [
        key for _, key in distances if any(len(r.curves.get(key, ())) > 1 for r in arms[0].runs)
    ]
    return (*([HELD_OUT_LOSS] if HELD_OUT_LOSS in shared else []), *found[:_CURVES])


def _headline_cell(arms: Sequence[Arm], scores: Scores) -> Cell | None:
    """The baseline chooses the cell, which cannot flatter an arm that is judged by it."""
    baseline, *others = arms
    cells = {cell for _, cell in scores}
    elsewhere = {
        cell for arm in others for run in arm.runs for cell in cells if (run.name, cell) in scores
    }
    shared = [c for c in sorted(elsewhere) if all((r.name, c) in scores for r in baseline.runs)]
    return min(
        shared, key=lambda c: sum(scores[r.name, c].shortfall for r in baseline.runs), default=None
    )


def _mean(arm: Arm, value: Callable[[RunRecord], float | None]) -> Mean | None:
    """The mean of what every seed has; None where a seed has none."""
    values = [value(run) for run in arm.runs]
    known = [one for one in values if one is not None]
    return mean_of(known) if len(known) == len(values) else None


def _difference(
    arm: Arm,
    baseline: Arm,
    value: Callable[[RunRecord], float | None],
    *,
    higher_is_better: bool = False,
) -> SeedDifference | None:
    pairs = [
        (pair, own - other)
        for pair in pairs_of(arm, baseline)
        if (own := value(pair.run)) is not None and (other := value(pair.baseline)) is not None
    ]
    if not pairs:
        return None
    return SeedDifference(
        mean_of([difference for _, difference in pairs]),
        tuple((pair.seed, difference) for pair, difference in pairs),
        all(pair.same_seed for pair, _ in pairs),
        higher_is_better,
    )
