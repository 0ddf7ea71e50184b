"""Is the winner of a search really better? It and a baseline are trained again from several seeds
to their ends, and compared seed by seed.

The best of many trials is in part the luckiest, so its own value from the search is not used. Each
side is a search of its own over seeds alone, so it is resumed, tracked and tidied as any other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from fleetstep.config import SearchSpec
from fleetstep.config.files import merged
from fleetstep.config.search_objectives import evaluated
from fleetstep.orchestration.search_records import Assignment, Goal, TrialRecord
from fleetstep.reporting.statistics import Mean, mean_of

SEED = "training.seed"
Side = Literal["winner", "baseline"]


@dataclass(frozen=True)
class Pair:
    """The deciding objective of both from one seed."""

    seed: int
    winner: float
    baseline: float

    @property
    def ratio(self) -> float:
        """Winner / baseline: of a loss, less than one is better."""
        return self.winner / self.baseline


@dataclass(frozen=True)
class Confirmation:
    """The winner against the baseline over seeds.

    Attributes:
        goal: the deciding objective.
        trial: the winner.
        baseline: what it is held against, for people.
        pairs: of the seeds from which both gave a value.
        missing: the other seeds.
    """

    goal: Goal
    trial: str
    baseline: str
    pairs: tuple[Pair, ...]
    missing: tuple[int, ...] = ()

    @property
    def ratio(self) -> Mean | None:
        """Mean and 95 % Student interval of the paired ratios; None without a pair."""
        return mean_of([pair.ratio for pair in self.pairs]) if self.pairs else None

    def text(self) -> str:
        """A sentence."""
        ratio = self.ratio
        if ratio is None:
            return "confirmed by no seed: no pair of trials gave two values"
        interval = "" if ratio.low is None else f" [{ratio.low:.4g}, {ratio.high:.4g}]"
        lost = f"; no value from seed(s) {', '.join(map(str, self.missing))}" * bool(self.missing)
        return (
            f"{self.goal.name}, winner / baseline over {ratio.n} seed(s): {ratio.value:.4g}"
            f"{interval} ({self._verdict(ratio)}){lost}"
        )

    def _verdict(self, ratio: Mean) -> str:
        if ratio.low is None or ratio.high is None:
            return "one seed proves nothing"
        better, worse = (ratio.high < 1, ratio.low > 1)
        if self.goal.mode == "max":
            better, worse = worse, better
        return "better" if better else "worse" if worse else "not proved: the interval holds 1"

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        ratio = self.ratio
        return {
            "objective": self.goal.name,
            "trial": self.trial,
            "baseline": self.baseline,
            "pairs": [asdict(pair) | {"ratio": pair.ratio} for pair in self.pairs],
            "missing": list(self.missing),
            "ratio": None if ratio is None else asdict(ratio),
        }


def sides(search: SearchSpec, winner: Assignment) -> dict[Side, SearchSpec]:
    """The two searches over seeds; of a population's winner, with its last settings throughout.

    Args:
        search: with a `confirm` section.
        winner: the best trial's assignment.
    """
    confirm = search.confirm
    assert confirm is not None, "asked for"
    trees: dict[Side, dict[str, Any]] = {
        "winner": search.tree_of(winner),
        "baseline": evaluated(merged(search.trial.tree, confirm.baseline), search.objectives),
    }
    common = search.model_dump(mode="json", exclude={"trial", "space", "searcher", "scheduler"})
    return {
        side: SearchSpec.model_validate(
            common
            | {
                "name": f"{search.name}-confirm-{side}",
                "trial": {"kind": search.trial.kind, **tree},
                "space": {"training": {"seed": {"choice": list(confirm.seeds)}}},
                "searcher": {"kind": "grid"},
                "confirm": None,
            }
        )
        for side, tree in trees.items()
    }


def baseline_text(search: SearchSpec) -> str:
    """What the winner is held against: "strategies=[]"."""
    assert search.confirm is not None, "asked for"
    return ", ".join(f"{path}={text}" for path, text in _leaves(search.confirm.baseline, ""))


def _leaves(tree: Mapping[str, Any], path: str) -> Iterable[tuple[str, str]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", json.dumps(value)


def compared(
    goal: Goal,
    winner: Iterable[TrialRecord],
    baseline: Iterable[TrialRecord],
    *,
    trial: str,
    against: str,
) -> Confirmation:
    """Pair what both sides gave, seed by seed.

    Args:
        goal: the deciding objective.
        winner, baseline: the trials of the two `sides`.
        trial: the winner.
        against: the baseline, for people.
    """
    ours, theirs = _by_seed(winner, goal), _by_seed(baseline, goal)
    seeds = sorted(ours.keys() | theirs.keys())
    nan = math.nan
    pairs = [Pair(seed, ours.get(seed, nan), theirs.get(seed, nan)) for seed in seeds]
    whole = [pair for pair in pairs if pair.baseline != 0 and math.isfinite(pair.ratio)]
    missing = {pair.seed for pair in pairs} - {pair.seed for pair in whole}
    return Confirmation(goal, trial, against, tuple(whole), tuple(sorted(missing)))


def _by_seed(records: Iterable[TrialRecord], goal: Goal) -> Mapping[int, float]:
    return {int(record.assignment[SEED]): record.last(goal) for record in records}
