"""A sweep as one self-contained HTML page: what to ship, the evidence, every cell in numbers."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from fleetstep.durable import write_text
from fleetstep.reporting import svg
from fleetstep.reporting.charts import Figure
from fleetstep.reporting.document import document, legend, picture
from fleetstep.reporting.markup import Markup, element, join
from fleetstep.reporting.neighbours import (
    NeighbourCheck,
    distances_figure,
    draw_neighbours,
    memory_text,
)
from fleetstep.reporting.page_evidence import Section, protocol_section
from fleetstep.reporting.seed_grids import SeedGrid, draw_seeds
from fleetstep.reporting.shipping import (
    Choice,
    choose,
    ship_text,
    value_text,
)
from fleetstep.reporting.sweep_figures import curves_figure, pareto_figure
from fleetstep.reporting.sweep_record import Contest, SweepRecord, contests
from fleetstep.reporting.sweep_tables import (
    cells_table,
    front_table,
    left_out_tables,
    minima_table,
    remarks,
)

_WIDE, _NARROW = 420.0, 340.0
_OPEN_GRIDS = 4


@dataclass(frozen=True, kw_only=True)
class SweepReport:
    """All that the page shows.

    Args:
        record: the sweep.
        grids: same-seed grids, by network and calls.
        checks: against memorisation.
        missing: what could not be shown, in sentences.
    """

    record: SweepRecord
    grids: tuple[SeedGrid, ...] = ()
    checks: tuple[NeighbourCheck, ...] = ()
    missing: tuple[str, ...] = ()


def write_sweep_page(report: SweepReport, path: Path) -> None:
    """Write the page whole or not at all; an existing file is replaced.

    Raises:
        OSError: the file cannot be written.
    """
    write_text(path, sweep_page(report))


def sweep_page(report: SweepReport) -> str:
    """The whole page as HTML; everything from the records is escaped.

    Raises:
        ComparisonError: scores without intervals.
    """
    record = report.record
    judged = [(contest, choose(contest)) for contest in contests(record)]
    sections = [
        *_evidence(judged),
        *_seeds(report.grids),
        *_memory(report.checks),
        _cells(report, judged),
        *protocol_section(record.scores),
    ]
    title = ship_text(judged[0][1], judged[0][0]) if judged else "Nothing is scored yet"
    if len(judged) > 1:
        title = f"{len(judged)} references, each with an answer of its own"
    return document(
        title,
        subject=f" sweep {record.name}",
        anchors=[(key, name) for key, name, _ in sections],
        main=(_answer(report, title, judged), *(section for _, _, section in sections)),
        footer="Made by fleetstep sweep. This page is complete: it loads nothing.",
    )


def _answer(report: SweepReport, title: str, judged: Sequence[tuple[Contest, Choice]]) -> Markup:
    if len(judged) == 1:
        ((contest, choice),) = judged
        answers: tuple[Markup, ...] = (
            element("p", value_text(choice, contest), class_="lede"),
            front_table(contest, choice),
        )
    else:
        answers = tuple(
            join(
                element("h3", f"Against {contest.reference or contest.protocol.reference_sha256}"),
                element("p", ship_text(choice, contest), class_="lede"),
                element("p", value_text(choice, contest)),
                front_table(contest, choice),
            )
            for contest, choice in judged
        )
    notes = (*remarks(report.record, [contest for contest, _ in judged]), *report.missing)
    return element(
        "section",
        element("h1", title),
        *answers,
        element("div", element("ul", *(element("li", note) for note in notes)), class_="notes")
        if notes
        else "",
        class_="answer sweep",
    )


def _evidence(judged: Sequence[tuple[Contest, Choice]]) -> Iterator[Section]:
    for place, (contest, choice) in enumerate(judged, start=1):
        number = str(place) if len(judged) > 1 else ""
        against = f", against {contest.reference}" if len(judged) > 1 else ""
        for figure, name in (
            (pareto_figure(contest, choice), "Pareto front"),
            (curves_figure(contest), "Curves"),
        ):
            key = figure.key + number
            yield key, f"{name} {number}".strip(), _figure_section(figure, key, against)


def _figure_section(figure: Figure, key: str, against: str) -> Markup:
    return element("section", element("h2", figure.title, against), _drawn(figure), id=key)


def _drawn(figure: Figure) -> Markup:
    width = _WIDE if len(figure.panels) < 3 else _NARROW
    return element(
        "figure",
        legend(figure),
        element("div", *(svg.draw(panel, width) for panel in figure.panels), class_="panels"),
        element("figcaption", figure.caption),
        class_="alone" if len(figure.panels) == 1 else None,
    )


def _seeds(grids: Sequence[SeedGrid]) -> Iterator[Section]:
    if not grids:
        return
    shown = [element("div", *map(_grid, grids[:_OPEN_GRIDS]), class_="seeds")]
    if len(grids) > _OPEN_GRIDS:
        more = len(grids) - _OPEN_GRIDS
        words = f"{more} more: other networks and numbers of calls"
        folded = element("div", *map(_grid, grids[_OPEN_GRIDS:]), class_="seeds")
        shown.append(element("details", element("summary", words), folded))
    content = element(
        "section",
        element("h2", "Samples at the same seeds"),
        element(
            "p",
            "A column starts from one latent and label: down a column, differences come from the "
            "solvers alone.",
            class_="quiet",
        ),
        *shown,
        id="seeds",
    )
    yield "seeds", "Samples", content


def _grid(grid: SeedGrid) -> Markup:
    words = f"{grid.network}, {calls_text(grid)}"
    return picture(_png(draw_seeds(grid)), f"Samples of {words}", element("strong", words))


def calls_text(grid: SeedGrid) -> str:
    """The grid's network calls for people."""
    return "adaptive" if grid.calls == "adaptive" else f"{grid.calls} network calls"


def _memory(checks: Sequence[NeighbourCheck]) -> Iterator[Section]:
    if not checks:
        return
    content = element(
        "section",
        element("h2", "Are samples copies of real images?"),
        *(part for check in checks for part in _check(check)),
        id="memory",
    )
    yield "memory", "Memorisation", content


def _check(check: NeighbourCheck) -> Iterator[Markup]:
    yield element("p", memory_text(check))
    if len(check.images_nCHW):
        words = (
            "Framed: generated. Beside it: the nearest real images, nearest first, with their "
            f"distances in {check.features} features."
        )
        alternative = f"Samples of {check.cell} beside their nearest real images"
        yield element(
            "div", picture(_png(draw_neighbours(check)), alternative, words), class_="seeds"
        )
    yield _drawn(distances_figure(check))


def _cells(report: SweepReport, judged: Sequence[tuple[Contest, Choice]]) -> Section:
    record = report.record
    content = element(
        "section",
        element("h2", "Every cell"),
        cells_table(record, [contest for contest, _ in judged]),
        minima_table(record),
        *left_out_tables(record),
        id="cells",
    )
    return "cells", "All cells", content


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
