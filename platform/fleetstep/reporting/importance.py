"""Which dimensions of a search mattered: permutation importance on random forests.

A forest learns the first objective from the dimensions; how much worse it predicts trials it has
not seen, when one dimension's values are shuffled among them, is that dimension's importance
(Breiman 2001, "Random Forests", section 10). Every number comes with its spread over resamples of
the trials, for few trials decide little.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import RandomForestRegressor

from fleetstep import rng
from fleetstep.reporting.search_record import Dimension, Objective, SearchRecord, Trial

RESAMPLES = 30
_TREES = 60
_SHUFFLES = 10
_LEAST = 10
_LEAST_EACH = 3
_SPREAD = (0.05, 0.95)
_PURPOSE = "reporting/importance"

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class DimensionImportance:
    """Share of the objective's variance that the forest cannot explain without a dimension.

    Args:
        value: median over the resamples.
        low, high: 5 and 95 % points over the resamples.
    """

    key: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Importance:
    """What mattered for one objective.

    Args:
        trials: how many it rests on.
        images_seen: where all of them are compared; None where each counts at its end.
        explained: the share of the variance of unseen trials that the forests explain (R², median
            over the resamples); at zero or below, no importance means anything.
        dimensions: most important first; empty where there are not enough trials.
        needed: how many trials it takes.
    """

    objective: Objective
    trials: int
    images_seen: int | None
    explained: float
    dimensions: tuple[DimensionImportance, ...]
    needed: int

    @property
    def enough(self) -> bool:
        """Whether there were enough trials."""
        return bool(self.dimensions)


def importance(record: SearchRecord, resamples: int = RESAMPLES) -> Importance:
    """Importance of every dimension that varies, for the record's first objective.

    Trials are compared at the same place of training: the furthest that at least half of them
    reached, so that early stopped ones count too. Positive objectives are taken as logarithms.
    """
    objective = record.objective
    place = _shared_place(record)
    known = [
        (trial, value)
        for trial in record.trials
        if math.isfinite(value := _value(trial, objective, place))
    ]
    varied = [d for d in record.dimensions if _varies(d, [trial for trial, _ in known])]
    needed = max(_LEAST, _LEAST_EACH * len(varied))
    if len(known) < needed or not varied:
        return Importance(objective, len(known), place, math.nan, (), needed)
    columns = np.stack([_column(d, [trial for trial, _ in known]) for d in varied], axis=1)
    values = np.array([value for _, value in known])
    target = np.log(values) if (values > 0).all() else values
    drops, explained = _resampled(columns, target, resamples)
    found = (
        DimensionImportance(
            dimension.key, float(np.median(of)), *(float(np.quantile(of, q)) for q in _SPREAD)
        )
        for dimension, of in zip(varied, drops.T, strict=True)
    )
    ordered = tuple(sorted(found, key=lambda one: -one.value))
    return Importance(objective, len(known), place, float(np.median(explained)), ordered, needed)


def _shared_place(record: SearchRecord) -> int | None:
    """Images that at least half of the trials with curves have seen; None without curves."""
    name = record.objective.name
    ends = sorted(
        (t.curves[name][-1][0] for t in record.trials if t.curves.get(name)), reverse=True
    )
    return ends[(len(ends) - 1) // 2] if ends else None


def _value(trial: Trial, objective: Objective, place: int | None) -> float:
    return trial.value(objective) if place is None else trial.value_at(objective, place)


def _varies(dimension: Dimension, trials: Sequence[Trial]) -> bool:
    return len({trial.assignment.get(dimension.key) for trial in trials}) > 1


def _column(dimension: Dimension, trials: Sequence[Trial]) -> Float64:
    """A dimension as numbers: place of the label, value or its logarithm. Where it does not exist,
    its median: whether it exists is another dimension's choice.
    """
    raw = [trial.assignment.get(dimension.key) for trial in trials]
    if dimension.kind == "choice":
        labels = list(dimension.labels)
        numbers = [math.nan if v is None else float(labels.index(str(v))) for v in raw]
    else:
        numbers = [math.nan if v is None else float(v) for v in raw]
    column = np.array(numbers)
    if dimension.kind == "log_uniform":
        column = np.log(column)
    return np.where(np.isnan(column), np.nanmedian(column), column)


def _resampled(columns: Float64, target: Float64, resamples: int) -> tuple[Float64, Float64]:
    """(drop of R² [resamples, dimensions], R² [resamples]) on the trials a resample left out."""
    n = len(target)
    drops, explained = [], []
    for index in range(resamples):
        chosen = (rng.uniform(index, f"{_PURPOSE}/resample", 0, n) * n).astype(int)
        left = np.setdiff1d(np.arange(n), chosen)
        if len(left) < 2 or np.ptp(target[left]) == 0:
            continue
        seed = int(rng.bits(index, f"{_PURPOSE}/forest", 0, 1)[0] % 2**31)
        forest = RandomForestRegressor(_TREES, min_samples_leaf=2, random_state=seed)
        forest.fit(columns[chosen], target[chosen])
        whole, shuffled = _explained(forest, columns[left], target[left], index)
        drops.append(whole - shuffled)
        explained.append(whole)
    return np.array(drops), np.array(explained)


def _explained(
    forest: RandomForestRegressor, columns: Float64, target: Float64, index: int
) -> tuple[float, Float64]:
    """(R², mean R² with each dimension shuffled), all predicted at once: a call costs more than
    its rows.
    """
    count, dimensions = columns.shape
    orders = rng.uniform(index, f"{_PURPOSE}/shuffle", 0, dimensions, (_SHUFFLES, count)).argsort()
    copies = np.broadcast_to(columns, (dimensions, _SHUFFLES, count, dimensions)).copy()
    for dimension in range(dimensions):
        copies[dimension, :, :, dimension] = columns[orders[dimension], dimension]
    rows = np.concatenate([columns, copies.reshape(-1, dimensions)])
    squares = (forest.predict(rows).reshape(-1, count) - target) ** 2
    scores = 1 - squares.mean(1) / target.var()
    return float(scores[0]), scores[1:].reshape(dimensions, _SHUFFLES).mean(1)
