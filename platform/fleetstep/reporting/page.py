"""A comparison as one self-contained HTML page: no network, no fonts, no libraries to fetch.

The first screen is the answer; the evidence follows in the order in which a doubter asks for it.
A strict Content-Security-Policy forbids every fetch and allows only this page's own style and
script, by hash.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from fleetstep.durable import write_text
from fleetstep.reporting import svg
from fleetstep.reporting.answer import grounds, headline
from fleetstep.reporting.charts import Figure
from fleetstep.reporting.comparison import Comparison, Standing, Sweep
from fleetstep.reporting.figures import figures
from fleetstep.reporting.markup import Markup, element, join, raw
from fleetstep.reporting.page_evidence import (
    config_section,
    environment_section,
    protocol_section,
    samples_section,
)
from fleetstep.reporting.palette import colour_of, marker_of
from fleetstep.reporting.records import Score
from fleetstep.reporting.statistics import Difference
from fleetstep.reporting.wording import (
    duration_text,
    images_text,
    interval_text,
    metric_text,
    number,
    ratio_text,
    tally_text,
    with_interval,
)

_WIDE, _NARROW = 420.0, 340.0
"""Nominal widths of panels: small multiples are drawn smaller, for readable texts."""

_TITLES = {
    "loss": "Training",
    "nfe": "Network calls",
    "differences": "Differences",
    "bins": "Noise levels",
}


def write_page(comparison: Comparison, path: Path) -> None:
    """Write the page whole or not at all; an existing file is replaced.

    Raises:
        OSError: the file cannot be written.
    """
    write_text(path, page(comparison))


def page(comparison: Comparison) -> str:
    """The whole page as HTML; everything from the records is escaped."""
    drawn = {figure.key: figure for figure in figures(comparison)}
    sections = [
        *(_figure_section(comparison, figure) for figure in drawn.values()),
        *samples_section(comparison),
        *config_section(comparison),
        *protocol_section(comparison),
        *environment_section(comparison),
    ]
    style, script = _asset("page.css"), _asset("page.js")
    policy = (
        "default-src 'none'; img-src data:; "
        f"style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    title = headline(comparison)
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="referrer", content="no-referrer"),
        element("meta", name="generator", content="fleetstep"),
        element("title", f"{title} · Fleetstep"),
        element("style", raw(style)),
    )
    body = element(
        "body",
        _header(comparison, sections),
        element("main", _answer(comparison, title), *(section for _, _, section in sections)),
        element(
            "footer",
            "Made by fleetstep compare. This page is complete: it loads nothing.",
            class_="quiet",
        ),
        element("script", raw(script)),
    )
    return "<!doctype html>\n" + element("html", head, body, lang="en") + "\n"


def _asset(name: str) -> str:
    return (files("fleetstep.reporting") / "assets" / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _header(comparison: Comparison, sections: list[tuple[str, str, Markup]]) -> Markup:
    links = (element("a", title, href=f"#{key}") for key, title, _ in sections)
    return element(
        "header",
        element(
            "span", element("strong", "Fleetstep"), f" comparison against {comparison.baseline}"
        ),
        element("nav", *links, aria_label="Sections"),
    )


def _answer(comparison: Comparison, title: str) -> Markup:
    notes = (*comparison.refusals, *comparison.notes)
    return element(
        "section",
        element("h1", title),
        element("p", grounds(comparison), class_="lede"),
        _verdicts(comparison),
        element("div", element("ul", *(element("li", note) for note in notes)), class_="notes")
        if notes
        else "",
        class_="answer",
    )


def _verdicts(comparison: Comparison) -> Markup:
    """The table of the answer: one row a run, baseline first."""
    sweep = comparison.sweep
    metric = metric_text(sweep.protocol) if sweep else "distance"
    columns = (
        "Run",
        "Verdict",
        f"{metric} at its best cell",
        "Difference in the same cell",
        "Final held-out loss",
        "Baseline’s final loss reached after",
    )
    rows = (_verdict_row(comparison, slot, columns) for slot in range(len(comparison.standings)))
    return element(
        "table",
        element("thead", element("tr", *(element("th", name, scope="col") for name in columns))),
        element("tbody", *rows),
        class_="cards",
    )


def _verdict_row(comparison: Comparison, slot: int, columns: tuple[str, ...]) -> Markup:
    standing = comparison.standings[slot]
    contents = (
        _verdict(comparison, standing),
        _best(standing),
        _difference(standing.headline),
        "none" if standing.final_loss is None else number(standing.final_loss),
        _reached(standing),
    )
    cells = (
        element("td", content, data_label=label)
        for label, content in zip(columns[1:], contents, strict=True)
    )
    return element("tr", element("th", swatch(slot), standing.run.name, scope="row"), *cells)


def _verdict(comparison: Comparison, standing: Standing) -> Markup:
    """The verdict as a word in a coloured pill, and the count over all cells."""
    if standing.run.name == comparison.baseline:
        return element("span", element("span", "baseline", class_="verdict same"))
    if standing.headline is None or comparison.sweep is None:
        return element("span", element("span", "not compared", class_="verdict same"))
    verdict = standing.headline.verdict
    kind = "same" if verdict == "no difference" else verdict
    pill = element("span", verdict, class_=f"verdict {kind}")
    tally = tally_text(comparison.sweep.paired(standing.run.name))
    return element("span", pill, element("small", tally))


def _best(standing: Standing) -> Markup:
    score = standing.best
    if score is None:
        return element("span", "other protocol" if standing.run.scores else "not scored")
    value = with_interval(score.value, score.low, score.high)
    return element("span", value, element("small", score.cell.title))


def _difference(difference: Difference | None) -> Markup:
    if difference is None:
        return element("span", "–")
    interval = element("span", interval_text(difference), class_="interval")
    return element("span", interval, element("small", difference.cell.title))


def _reached(standing: Standing) -> Markup:
    quality = standing.time_to_quality
    if quality is None:
        return element("span", "not compared")
    if quality.run is None:
        return element("span", "not reached")
    words = f"{images_text(quality.run.images)}, {duration_text(quality.run.wall_s)}"
    if quality.run == quality.baseline:
        return element("span", words)
    ratios = (
        f"{ratio_text(quality.images_ratio)} in images, {ratio_text(quality.wall_ratio)} in time"
    )
    return element("span", words, element("small", ratios))


def _figure_section(comparison: Comparison, figure: Figure) -> tuple[str, str, Markup]:
    title = _TITLES[figure.key]
    width = _WIDE if len(figure.panels) < 3 else _NARROW
    content = element(
        "section",
        element("h2", figure.title),
        element(
            "figure",
            _legend(figure),
            element("div", *(svg.draw(panel, width) for panel in figure.panels), class_="panels"),
            element("figcaption", figure.caption),
            class_="alone" if len(figure.panels) == 1 else None,
        ),
        *(_sweep_table(sweep, comparison) for sweep in comparison.sweeps if figure.key == "nfe"),
        id=figure.key,
    )
    return figure.key, title, content


def _legend(figure: Figure) -> Markup:
    items = (element("li", swatch(slot), run) for run, slot in figure.runs)
    return element("ul", *items, class_="legend")


def swatch(slot: int) -> Markup:
    """A run's line and marker, to be set before its name."""
    line = element("line", x1=1, x2=17, y1=7, y2=7)
    mark = svg.shape(marker_of(slot), 9, 7, 3.4)
    return element(
        "svg",
        element("g", line, mark, class_=f"series s{colour_of(slot)}"),
        viewBox="0 0 18 14",
        aria_hidden="true",
    )


def _sweep_table(sweep: Sweep, comparison: Comparison) -> Markup:
    """Every cell in numbers, folded away; one table a protocol, for protocols are never mixed."""
    runs = [run.name for run in comparison.runs if run.name in sweep.runs]
    head = element("tr", *(element("th", name, scope="col") for name in ("Cell", *runs)))
    rows = (_sweep_row(sweep, cell_scores) for cell_scores in _by_cell(sweep, runs))
    protocol = sweep.protocol
    return element(
        "details",
        element("summary", f"All values: {metric_text(protocol)}, n = {protocol.n:,}"),
        element(
            "div",
            element("table", element("thead", head), element("tbody", *rows)),
            class_="scroll",
            tabindex=0,
            role="region",
            aria_label=f"{metric_text(protocol)} of every cell",
        ),
    )


def _by_cell(sweep: Sweep, runs: list[str]) -> Iterator[tuple[Score | None, ...]]:
    for cell in sweep.cells:
        yield tuple(sweep.scores.get((run, cell)) for run in runs)


def _sweep_row(sweep: Sweep, scores: tuple[Score | None, ...]) -> Markup:
    present = [score for score in scores if score is not None]
    cell = present[0].cell
    lowest = min(score.value for score in present)
    columns = (
        element("td", "–")
        if score is None
        else element(
            "td",
            with_interval(score.value, score.low, score.high),
            _raw(score),
            _paired(sweep.differences.get((score.run, cell))),
            class_="best" if score.value == lowest and len(present) > 1 else None,
        )
        for score in scores
    )
    return element("tr", element("th", cell.title, scope="row"), *columns)


def _raw(score: Score) -> Markup:
    """The plain value of a FID, which is what publications report."""
    if not score.metric.startswith("fid"):
        return join()
    return element("small", f"raw {number(score.raw)}")


def _paired(difference: Difference | None) -> Markup:
    if difference is None:
        return join()
    words = f"{difference.verdict}, {interval_text(difference)}"
    return element("small", words, class_=difference.verdict.replace("no difference", "") or None)
