"""The numbers of a sweep's page: the front, every cell, minima, what was left out, and remarks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fleetstep.reporting.document import folded
from fleetstep.reporting.markup import Markup, element
from fleetstep.reporting.records import Protocol, Score
from fleetstep.reporting.shipping import Choice, Step, name_of
from fleetstep.reporting.sweep_record import (
    Candidate,
    Contest,
    LeftOut,
    SweepRecord,
    headline_candidates,
    metric_of,
    metrics_of,
    several_spaces,
)
from fleetstep.reporting.wording import (
    ONE_SEED,
    interval_text,
    kind_text,
    metric_text,
    number,
    with_interval,
)

_SHOWN_ROWS = 24
"""A longer table is folded away."""

_TIES = 4


def front_table(contest: Contest, choice: Choice) -> Markup:
    """One row a cell of the Pareto front: what its calls buy, and what is as good."""
    metric = metric_text(contest.protocol)
    columns = ("Calls", "Best cell", metric, "Gain over the row above", "As good, at 95 %")
    rows = (_step_row(step, contest, choice, columns) for step in choice.front)
    return element(
        "table",
        element("thead", element("tr", *(element("th", name, scope="col") for name in columns))),
        element("tbody", *rows),
        class_="cards",
    )


def _step_row(step: Step, contest: Contest, choice: Choice, columns: Sequence[str]) -> Markup:
    score = step.candidate.score
    contents = (
        _cell_name(step, contest, choice),
        element("span", with_interval(score.value, score.low, score.high), class_="interval"),
        _gain(step),
        element("span", _ties(step, contest)),
    )
    cells = (
        element("td", content, data_label=label)
        for label, content in zip(columns[1:], contents, strict=True)
    )
    return element("tr", element("th", f"{score.nfe:g}", scope="row"), *cells)


def _cell_name(step: Step, contest: Contest, choice: Choice) -> Markup:
    name = name_of(step.candidate, contest).rpartition(" at ")[0]
    pill: Markup | str = ""
    if step.candidate is choice.ship:
        pill = element("span", "ship", class_="verdict better")
    elif step.candidate is choice.best:
        pill = element("span", "best value", class_="verdict same")
    return element("span", name, " " if pill else "", pill)


def _gain(step: Step) -> Markup:
    if step.gain is None:
        return element("span", "–")
    real = "real" if step.gain.verdict == "better" else "may be chance"
    interval = element("span", interval_text(step.gain), class_="interval")
    return element("span", interval, element("small", real))


def _ties(step: Step, contest: Contest) -> str:
    names = [name_of(tie, contest) for tie in step.ties]
    if len(names) > _TIES:
        names = [*names[: _TIES - 1], f"{len(names) - _TIES + 1} more"]
    return "; ".join(names) or "–"


def cells_table(record: SweepRecord, contests: Sequence[Contest]) -> Markup:
    """Every cell with all its metrics; what cannot be ranked with the others says so."""
    candidates = headline_candidates(record)
    if not candidates:
        return element("p", "No cell has enough images for an interval yet.")
    ranked = {id(one.score) for contest in contests for one in contest.candidates}
    protocols = metrics_of(candidates)
    several = several_spaces(protocols)
    titles = [metric_text(p) if several else kind_text(p) for p in protocols]
    arrows = [" ↑" if p.higher_is_better else " ↓" for p in protocols]
    names = [title + arrow for title, arrow in zip(titles, arrows, strict=True)]
    head = ("Cell", "NFE", "Made", names[0], "Plain", "n", *names[1:])
    rows = (_cell_row(record, one, protocols, id(one.score) in ranked) for one in candidates)
    features = candidates[0].score.extractor
    return folded(
        f"{len(candidates)} cells, values with 95 % intervals, in {features} features",
        element("tr", *(element("th", name, scope="col") for name in head)),
        rows,
        shown=len(candidates) <= _SHOWN_ROWS,
    )


def _cell_row(
    record: SweepRecord, one: Candidate, protocols: Sequence[Protocol], ranked: bool
) -> Markup:
    score = one.score
    scores = {metric_of(other): other for other in one.others}
    several = len(record.networks) > 1
    name = ", ".join(part for part in (score.solver, score.cell.guidance) if part)
    notes = [one.network] if several else []
    notes += [] if ranked else ["not ranked: other images"]
    notes += ["mixed hardware"] if "mixed" in score.hardware else []
    cells = (
        f"{score.nfe:g}",
        f"{one.calls_made:.4g}",
        with_interval(score.value, score.low, score.high),
        number(score.raw),
        f"{score.n:,}",
        *(_value(scores.get(metric_of(protocol))) for protocol in protocols[1:]),
    )
    small = element("small", "; ".join(notes)) if notes else ""
    return element(
        "tr",
        element("th", name, small, scope="row"),
        *(element("td", element("span", cell, class_="interval")) for cell in cells),
    )


def _value(score: Score | None) -> str:
    return "–" if score is None else with_interval(score.value, score.low, score.high)


def minima_table(record: SweepRecord) -> Markup:
    """The lowest of several seed blocks, apart from single values, by its own name."""
    if not record.minima:
        return element("p", "")
    head = element(
        "tr", *(element("th", n, scope="col") for n in ("Cell", "Name", "Lowest", "All"))
    )
    rows = (
        element(
            "tr",
            element("th", one.what, scope="row"),
            element("td", element("code", one.metric)),
            element("td", number(min(one.values))),
            element("td", ", ".join(number(value) for value in one.values)),
        )
        for one in record.minima
    )
    return folded(
        "Lowest of several seed blocks (plain values; lower than a single one by construction)",
        head,
        rows,
    )


def left_out_tables(record: SweepRecord) -> Iterator[Markup]:
    """What has no score, and why."""
    for points, words in (
        (record.dropped, "left out by screening"),
        (record.skipped, "that cannot be run"),
    ):
        if points:
            yield _left_out(points, f"{_count(points)} {words}")


def _count(points: Sequence[LeftOut]) -> str:
    return f"{len(points)} point{'s' if len(points) > 1 else ''} of the grid"


def _left_out(points: Sequence[LeftOut], summary: str) -> Markup:
    head = element("tr", *(element("th", name, scope="col") for name in ("Point", "Reason")))
    rows = (
        element("tr", element("th", point.what, scope="row"), element("td", point.reason))
        for point in points
    )
    return folded(summary, head, rows)


def remarks(record: SweepRecord, contests: Sequence[Contest]) -> Iterator[str]:
    """What a careful reader must know, in sentences."""
    if not record.complete:
        waiting = f", and {record.waiting} scores have no interval yet" if record.waiting else ""
        yield f"The sweep is not done: values and ranks may change{waiting}."
    if not record.scores:
        return
    if not any(score.protocol.precedence == 0 for score in record.scores):
        features = ", ".join(dict.fromkeys(score.extractor for score in record.scores))
        yield (f"FID not run: features are {features}, not comparable with any published FID.")
    if len(contests) > 1:
        yield (
            "Cells measured against different references are never ranked against each other: "
            "each reference has its own answer."
        )
    ranked = sum(len(contest.candidates) for contest in contests)
    unranked = len(headline_candidates(record)) - ranked
    if unranked:
        were, they = ("cell was", "it is") if unranked == 1 else ("cells were", "they are")
        yield (
            f"{unranked} {were} measured with another number of images: {they} in the table, not "
            "in the ranking."
        )
    if record.dropped:
        yield f"{_count(record.dropped)} left out by screening (see All cells)."
    if any("mixed" in score.hardware for score in record.scores):
        yield (
            "Some scores were computed on more than one kind of hardware or software build: their "
            "last bits may depend on which machine did what."
        )
    yield (
        "The best of many cells, picked by looking, is a little optimistic, and each tie is "
        f"judged at 95 %. {ONE_SEED}"
    )
