"""A search on a page: its answer, its figures, what mattered, every trial in numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fleetstep.durable import write_text
from fleetstep.reporting import svg
from fleetstep.reporting.charts import Figure
from fleetstep.reporting.document import document, legend
from fleetstep.reporting.importance import Importance, importance
from fleetstep.reporting.markup import Markup, element
from fleetstep.reporting.page_evidence import Section
from fleetstep.reporting.parallel import draw_parallel, parallel_plot
from fleetstep.reporting.search_figures import importance_figure, learning_figure, pareto_figure
from fleetstep.reporting.search_record import Confirmation, SearchRecord, Trial
from fleetstep.reporting.search_words import (
    confirmation_text,
    confirmation_verdict,
    search_grounds,
    search_headline,
    state_text,
    value_text,
)
from fleetstep.reporting.wording import number

_WIDE = 420.0
_TITLES = {"curves": "Curves", "pareto": "Pareto", "importance": "Importance"}


@dataclass(frozen=True)
class SearchReport:
    """A search and what was computed of it."""

    record: SearchRecord
    importance: Importance

    @classmethod
    def of(cls, record: SearchRecord) -> SearchReport:
        """With the importance of its dimensions."""
        return cls(record, importance(record))

    @property
    def figures(self) -> tuple[Figure, ...]:
        """Every figure that the record allows, in reading order."""
        found = (
            learning_figure(self.record),
            pareto_figure(self.record),
            importance_figure(self.importance),
        )
        return tuple(figure for figure in found if figure is not None)


def write_search_page(reports: Sequence[SearchReport], path: Path) -> None:
    """Write a page of searches alone, whole or not at all; an existing file is replaced.

    Raises:
        OSError: the file cannot be written.
    """
    write_text(path, search_page(reports))


def search_page(reports: Sequence[SearchReport]) -> str:
    """The whole page as HTML, at least one search; everything from the records is escaped."""
    sections = [
        section
        for report in reports
        for section in search_sections(report, shared=len(reports) > 1)
    ]
    title = search_headline(reports[0].record)
    if len(reports) > 1:
        title = f"{len(reports)} searches"
    return document(
        title,
        subject=" " + ", ".join(report.record.name for report in reports),
        anchors=[(key, name) for key, name, _ in sections if name],
        main=(section for _, _, section in sections),
        footer="Made by fleetstep compare. This page is complete: it loads nothing.",
    )


def search_sections(report: SearchReport, *, shared: bool) -> Iterator[Section]:
    """A search's sections.

    Args:
        shared: whether the page holds more than this search: it is then one entry among its
            anchors, which begin with its name.
    """
    prefix = f"{report.record.name}-" if shared else ""
    drawn = {figure.key: figure for figure in report.figures}
    name = report.record.name if shared else "Trials"
    yield f"{prefix}trials", name, _answer(report, f"{prefix}trials", "h2" if shared else "h1")
    parts = [_figure_section(drawn[key], prefix) for key in ("curves", "pareto") if key in drawn]
    parts += _parallel_section(report.record, prefix)
    parts.append(_importance_section(report, drawn.get("importance"), prefix))
    for key, title, content in parts:
        yield key, "" if shared else title, content


def _answer(report: SearchReport, key: str, heading: str) -> Markup:
    record = report.record
    return element(
        "section",
        element(heading, search_headline(record)),
        element("p", search_grounds(record), class_="lede"),
        _confirmation(record.confirm) if record.confirm is not None else "",
        trials_table(record),
        class_="answer search" if heading == "h1" else "search",
        id=key,
    )


def _confirmation(found: Confirmation) -> Markup:
    verdict = confirmation_verdict(found)
    kind = verdict if verdict in ("better", "worse") else "same"
    names = ("Seed", f"Winner: {found.objective.name}", f"Baseline: {found.objective.name}")
    rows = (
        element(
            "tr",
            element("th", str(seed), scope="row"),
            element("td", number(winner)),
            element("td", number(baseline)),
        )
        for seed, winner, baseline in found.pairs
    )
    return element(
        "div",
        element(
            "p", element("strong", "Held up? "), element("span", verdict, class_=f"verdict {kind}")
        ),
        element("p", confirmation_text(found)),
        element(
            "table",
            element("thead", element("tr", *(element("th", name, scope="col") for name in names))),
            element("tbody", *rows),
        ),
        class_="card",
    )


def trials_table(record: SearchRecord) -> Markup:
    """Every trial, best first, with only the dimensions that differ."""
    varied = [
        d for d in record.dimensions if len({t.assignment.get(d.key) for t in record.trials}) > 1
    ]
    titles = [d.title for d in varied]
    heads = [d.key if titles.count(d.title) > 1 else d.title for d in varied]
    names = ("Trial", *(o.name for o in record.objectives), *heads, "State")
    rows = (_trial_row(record, trial, [d.key for d in varied]) for trial in record.ranked)
    table = element(
        "table",
        element("thead", element("tr", *(element("th", name, scope="col") for name in names))),
        element("tbody", *rows),
        class_="sortable filterable trials",
    )
    return element("div", table, class_="scroll", tabindex=0, role="region", aria_label="Trials")


def _trial_row(record: SearchRecord, trial: Trial, keys: Sequence[str]) -> Markup:
    values = (
        element("td", value_text(value), data_sort=repr(objective.loss(value)))
        for objective in record.objectives
        for value in [trial.value(objective)]
    )
    return element(
        "tr",
        element("th", trial.id, scope="row"),
        *values,
        *(_assigned(trial.assignment.get(key)) for key in keys),
        element("td", state_text(trial)),
        class_="best" if trial.id in record.best else None,
    )


def _assigned(value: str | float | bool | None) -> Markup:
    if value is None:
        return element("td", "–")
    if isinstance(value, str | bool):
        return element("td", str(value))
    return element(
        "td", f"{value:g}" if isinstance(value, int) else number(value), data_sort=repr(value)
    )


def _figure_section(figure: Figure, prefix: str) -> Section:
    key = f"{prefix}{figure.key}"
    content = element("section", element("h2", figure.title), _drawn(figure), id=key)
    return key, _TITLES[figure.key], content


def _drawn(figure: Figure) -> Markup:
    return element(
        "figure",
        legend(figure),
        element("div", *(svg.draw(panel, _WIDE) for panel in figure.panels), class_="panels"),
        element("figcaption", figure.caption),
        class_="alone" if len(figure.panels) == 1 else None,
    )


def _parallel_section(record: SearchRecord, prefix: str) -> Iterator[Section]:
    plot = parallel_plot(record)
    if plot is None:
        return
    key = f"{prefix}parallel"
    better = "lower" if record.objective.goal == "min" else "higher"
    caption = (
        f"Each line is a trial; the stronger, the better its {record.objective.name} ({better} is "
        "better), by rank. Thin: stopped early. Numbers have the scale they were drawn on."
    )
    drawing = element(
        "div",
        draw_parallel(plot),
        class_="scroll",
        tabindex=0,
        role="region",
        aria_label="Parallel coordinates",
    )
    figure = element("figure", drawing, element("figcaption", caption))
    yield (
        key,
        "Dimensions",
        element("section", element("h2", "Every trial’s way through the space"), figure, id=key),
    )


def _importance_section(report: SearchReport, figure: Figure | None, prefix: str) -> Section:
    key = f"{prefix}importance"
    found = report.importance
    content = (
        _drawn(figure)
        if figure is not None
        else element(
            "p",
            f"Not enough trials to tell: {found.trials} have a value at a shared place of "
            f"training, {found.needed} are needed.",
        )
    )
    section = element("section", element("h2", "Which dimensions mattered"), content, id=key)
    return key, _TITLES["importance"], section
