"""The rows of a comparison's one tidy table: every number with its interval and what it is of."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fleetstep.reporting.comparison import Comparison
from fleetstep.reporting.importance import Importance
from fleetstep.reporting.records import HELD_OUT_LOSS
from fleetstep.reporting.search_record import Confirmation, SearchRecord
from fleetstep.reporting.search_words import confirmation_verdict
from fleetstep.reporting.speedup import Ratio

Found = tuple[SearchRecord, Importance]
"""A search, and what mattered in it."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number of the table.

    Args:
        table: what kind of number: score, difference, final_loss, seeds, seed_difference,
            speedup_images, speedup_wall, trial, importance, confirmation_ratio or _difference.
        subject: run, setting or trial.
        against: what it is compared with, or the search it belongs to.
        measure: metric, curve, objective or dimension.
        place: cell, share of training, or what was tried.
        value, low, high: the number and its interval; None = not known.
        n: samples of a score, pairs of seeds, trials.
        note: verdict, status or bound.
    """

    table: str
    subject: str
    against: str = ""
    measure: str = ""
    place: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    note: str = ""


def rows(comparison: Comparison | None, searches: Sequence[Found] = ()) -> Iterator[Row]:
    """Every number of the table, in reading order."""
    if comparison is not None:
        yield from _run_rows(comparison)
        yield from _arm_rows(comparison)
    for record, found in searches:
        yield from _search_rows(record, found)


def _run_rows(comparison: Comparison) -> Iterator[Row]:
    for standing in comparison.standings:
        if standing.final_loss is not None:
            yield Row(table="final_loss", subject=standing.run.name, value=standing.final_loss)
    for sweep in comparison.sweeps:
        metric = sweep.protocol.metric
        for (run, cell), score in sweep.scores.items():
            yield Row(
                table="score",
                subject=run,
                measure=metric,
                place=cell.title,
                value=score.value,
                low=score.low,
                high=score.high,
                n=score.n,
            )
        for (run, cell), difference in sweep.differences.items():
            yield Row(
                table="difference",
                subject=run,
                against=sweep.partners[run],
                measure=metric,
                place=cell.title,
                value=difference.value,
                low=difference.low,
                high=difference.high,
                n=difference.n,
                note=difference.verdict,
            )


def _arm_rows(comparison: Comparison) -> Iterator[Row]:
    baseline = comparison.arms.standings[0].arm.name
    cell = comparison.arms.cell
    metric = "" if comparison.sweep is None else comparison.sweep.protocol.metric
    for standing in comparison.arms.standings:
        for measure, place, mean, difference in (
            (HELD_OUT_LOSS, "", standing.loss, standing.loss_difference),
            (metric, cell.title if cell else "", standing.score, standing.score_difference),
        ):
            named: dict[str, Any] = {
                "subject": standing.arm.name,
                "measure": measure,
                "place": place,
            }
            if mean is not None:
                yield Row(table="seeds", **named, **asdict(mean))
            if difference is not None:
                yield Row(
                    table="seed_difference",
                    against=baseline,
                    **named,
                    **asdict(difference.mean),
                    note=difference.verdict or "no interval",
                )
        for key, levels in standing.speedups.items():
            for level in levels:
                for table, ratio in (("images", level.images), ("wall", level.wall)):
                    yield Row(
                        table=f"speedup_{table}",
                        subject=standing.arm.name,
                        against=baseline,
                        measure=key,
                        place=repr(level.share),
                        value=ratio.value,
                        low=ratio.low,
                        high=ratio.high,
                        n=ratio.pairs,
                        note=_bound(ratio),
                    )


def _bound(ratio: Ratio) -> str:
    """What is known where the mean is not: "at least 1.8"."""
    if ratio.value is not None:
        return ""
    known = [f"at least {ratio.at_least!r}"] * (ratio.at_least > 0)
    known += [f"at most {ratio.at_most!r}"] * math.isfinite(ratio.at_most)
    return " and ".join(known) or "not known"


def _search_rows(record: SearchRecord, found: Importance) -> Iterator[Row]:
    for trial in record.ranked:
        for objective in record.objectives:
            yield Row(
                table="trial",
                subject=trial.id,
                against=record.name,
                measure=objective.name,
                place=trial.title,
                value=trial.value(objective),
                note=trial.status,
            )
    for one in found.dimensions:
        yield Row(
            table="importance",
            subject=record.name,
            measure=one.key,
            value=one.value,
            low=one.low,
            high=one.high,
            n=found.trials,
        )
    if record.confirm is not None:
        yield from _confirmation_rows(record, record.confirm)


def _confirmation_rows(record: SearchRecord, confirm: Confirmation) -> Iterator[Row]:
    named: dict[str, Any] = {
        "subject": confirm.trial,
        "against": confirm.baseline,
        "place": record.name,
    }
    for table, mean in (("ratio", confirm.ratio), ("difference", confirm.difference)):
        if mean is not None:
            yield Row(
                table=f"confirmation_{table}",
                measure=confirm.objective.name,
                **named,
                **asdict(mean),
                note=confirmation_verdict(confirm),
            )
