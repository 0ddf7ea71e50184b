"""A sweep in the terminal: every cell in 120 columns, and what to ship."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from fleetstep.reporting.records import Protocol, Score
from fleetstep.reporting.shipping import choose, ship_text
from fleetstep.reporting.sweep_record import (
    Candidate,
    SweepRecord,
    contests,
    headline_candidates,
    metric_of,
    metrics_of,
    several_spaces,
)
from fleetstep.reporting.wording import kind_text, metric_text, number, with_interval

_MOST_METRICS = 6
"""So many columns beside the headline fit in 120; the page shows all."""

_STYLES = {"ship": "bold green", "front": "bold", "": ""}


def answer(record: SweepRecord) -> tuple[str, ...]:
    """What to ship, a sentence a reference; none where nothing is scored.

    Raises:
        ComparisonError: scores without intervals.
    """
    judged = contests(record)
    return tuple(
        (f"Against {contest.reference}: " if len(judged) > 1 else "")
        + ship_text(choose(contest), contest)
        for contest in judged
    )


def cells_table(record: SweepRecord) -> Table:
    """One row a cell: the headline metric with half its 95 % interval, and the others' values;
    each network's rows stand under its name.

    Bold: on the Pareto front; green: what to ship. Cells with another number of images than the
    ranked ones say how many.

    Raises:
        ComparisonError: scores without intervals.
    """
    candidates = headline_candidates(record)
    protocols = metrics_of(candidates)
    if not protocols:
        empty = Table.grid()
        empty.add_row("no cell has enough images for an interval yet")
        return empty
    marks = _marks(record)
    table = Table(
        title=_title(candidates),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("solver", overflow="fold", max_width=34)
    table.add_column("NFE", justify="right")
    table.add_column(Text(metric_text(protocols[0])), justify="right", no_wrap=True)
    shown = protocols[1 : 1 + _MOST_METRICS]
    for protocol in shown:
        table.add_column(Text(_column(protocol, protocols)), justify="right")
    previous: tuple[str, ...] = ("",)
    for one in candidates:
        group = (one.network, one.score.solver, one.score.guidance)
        if previous[0] and previous != group:
            table.add_section()
        if len(record.networks) > 1 and previous[0] != one.network:
            table.add_row(Text(one.network, "underline"))
        previous = group
        table.add_row(*_row(one, shown, marks.get(id(one.score))))
    return table


def _title(candidates: Sequence[Candidate]) -> Text:
    counts = {one.score.n for one in candidates}
    n = f"n = {max(counts):,}" if len(counts) == 1 else f"n = {min(counts):,} to {max(counts):,}"
    return Text(f"{len(candidates)} cells, {n}, {candidates[0].score.extractor} features")


def _marks(record: SweepRecord) -> Mapping[int, str]:
    """Standing of each ranked score; a score that is not ranked has none."""
    marks: dict[int, str] = {}
    for contest in contests(record):
        choice = choose(contest)
        marks |= {id(one.score): "" for one in contest.candidates}
        marks |= {id(step.candidate.score): "front" for step in choice.front}
        marks[id(choice.ship.score)] = "ship"
    return marks


def _row(one: Candidate, shown: Iterable[Protocol], mark: str | None) -> list[Text]:
    score = one.score
    style = "dim" if mark is None else _STYLES[mark]
    value = with_interval(score.value, score.low, score.high)
    if mark is None:
        value += f" (n = {score.n:,})"
    others = {metric_of(other): other for other in one.others}
    solver = ", ".join(part for part in (score.solver, score.guidance) if part)
    calls = f"{score.nfe:.0f}" if score.adaptive else f"{score.nfe:g}"
    return [
        Text(solver, style),
        Text(calls, style),
        Text(value, style),
        *(_brief(others.get(metric_of(protocol))) for protocol in shown),
    ]


def _brief(score: Score | None) -> Text:
    if score is None:
        return Text("-", "dim")
    return Text(number(score.value, (score.high - score.low) / 2))


def _column(protocol: Protocol, protocols: Sequence[Protocol]) -> str:
    """A metric's name, with its features where there are several."""
    name = metric_text(protocol) if several_spaces(protocols) else kind_text(protocol)
    return name.replace("standardised ", "std. ")
