"""A comparison as one self-contained HTML page: no network, no fonts, no libraries to fetch.

The first screen is the answer; the evidence follows in the order in which a doubter asks for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from fleetstep.durable import write_text
from fleetstep.reporting import svg
from fleetstep.reporting.answer import grounds, headline
from fleetstep.reporting.arm_tables import arms_table, speedup_tables
from fleetstep.reporting.charts import Figure
from fleetstep.reporting.comparison import Comparison, Standing, Sweep
from fleetstep.reporting.document import document, folded, legend, swatch
from fleetstep.reporting.figures import figures
from fleetstep.reporting.markup import Markup, element, join
from fleetstep.reporting.page_evidence import (
    config_section,
    environment_section,
    protocol_section,
    samples_section,
)
from fleetstep.reporting.records import Protocol, Score
from fleetstep.reporting.search_page import SearchReport, search_sections
from fleetstep.reporting.statistics import Difference
from fleetstep.reporting.wording import (
    duration_text,
    images_text,
    interval_text,
    kind_text,
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
    "speedup": "Speed-up",
    "nfe": "Network calls",
    "differences": "Differences",
    "bins": "Noise levels",
}


def write_page(comparison: Comparison, path: Path, searches: Sequence[SearchReport] = ()) -> None:
    """Write the page whole or not at all; an existing file is replaced.

    Args:
        searches: stand after the runs' comparison.

    Raises:
        OSError: the file cannot be written.
    """
    write_text(path, page(comparison, searches))


def page(comparison: Comparison, searches: Sequence[SearchReport] = ()) -> str:
    """The whole page as HTML; everything from the records is escaped."""
    drawn = {figure.key: figure for figure in figures(comparison)}
    sections = [
        *(_figure_section(comparison, figure) for figure in drawn.values()),
        *samples_section(comparison),
        *config_section(comparison),
        *protocol_section(
            [score for sweep in comparison.sweeps for score in sweep.scores.values()]
        ),
        *environment_section(comparison),
        # The runs' own figures have some of the anchors that a search's would have.
        *(section for report in searches for section in search_sections(report, shared=True)),
    ]
    title = headline(comparison)
    return document(
        title,
        subject=f" comparison against {_against(comparison)}",
        anchors=[(key, name) for key, name, _ in sections if name],
        main=(_answer(comparison, title), *(section for _, _, section in sections)),
        footer="Made by fleetstep compare. This page is complete: it loads nothing.",
    )


def _against(comparison: Comparison) -> str:
    arms = comparison.arms
    return arms.standings[0].arm.name if arms.over_seeds else comparison.baseline


def _answer(comparison: Comparison, title: str) -> Markup:
    notes = (*comparison.refusals, *comparison.notes)
    return element(
        "section",
        element("h1", title),
        element("p", grounds(comparison), class_="lede"),
        *_answer_tables(comparison),
        element("div", element("ul", *(element("li", note) for note in notes)), class_="notes")
        if notes
        else "",
        class_="answer",
    )


def _answer_tables(comparison: Comparison) -> Iterator[Markup]:
    """Settings over their seeds where there are several, each run else, and folded away."""
    if not comparison.arms.over_seeds:
        yield _verdicts(comparison)
        return
    yield arms_table(comparison)
    summary = "Each run: within one pair of checkpoints, intervals cover the sampling of images"
    yield element("details", element("summary", summary), _verdicts(comparison))


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
    rows = (_verdict_row(comparison, standing, columns) for standing in comparison.standings)
    return element(
        "table",
        element("thead", element("tr", *(element("th", name, scope="col") for name in columns))),
        element("tbody", *rows),
        class_="cards",
    )


def _verdict_row(comparison: Comparison, standing: Standing, columns: tuple[str, ...]) -> Markup:
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
    slot = comparison.looks[standing.run.name][1]
    return element("tr", element("th", swatch(slot), standing.run.name, scope="row"), *cells)


def _verdict(comparison: Comparison, standing: Standing) -> Markup:
    """The verdict as a word in a coloured pill, and the count over all cells."""
    if standing.run.name not in comparison.partners:
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
            legend(figure),
            element("div", *(svg.draw(panel, width) for panel in figure.panels), class_="panels"),
            element("figcaption", figure.caption),
            class_="alone" if len(figure.panels) == 1 else None,
        ),
        *(_tables(comparison) if figure.key == "nfe" else ()),
        *(_speedups(comparison) if figure.key == "speedup" else ()),
        id=figure.key,
    )
    return figure.key, title, content


def _speedups(comparison: Comparison) -> Iterator[Markup]:
    yield from speedup_tables(comparison)
    words = (
        "A level is reached where the best value so far first is that good, as a power law "
        "between measurements. “> 1.80×” is a bound: a run never reached the level, or was there "
        "before its first measurement. Time compares only runs of one machine under equal load."
    )
    yield element("p", words, class_="quiet")


def _tables(comparison: Comparison) -> Iterator[Markup]:
    """The headline metric in full, all metrics of every group of samples in brief."""
    for group in comparison.by_samples:
        if comparison.sweep in group:
            yield _sweep_table(group[0], comparison)
        if len(group) > 1 or comparison.sweep not in group:
            yield _metrics_table(group)


def _metrics_table(group: tuple[Sweep, ...]) -> Markup:
    """One row a run and cell, one column a metric; never two protocols in one table."""
    protocol = group[0].protocol
    names = ("Cell", "Run", *(f"{kind_text(s.protocol)}{_arrow(s.protocol)}" for s in group))
    places = sorted({(cell, run) for sweep in group for run, cell in sweep.scores})
    rows = (
        element(
            "tr",
            element("th", cell.title, scope="row"),
            element("td", run),
            *(element("td", _brief(sweep.scores.get((run, cell)))) for sweep in group),
        )
        for cell, run in places
    )
    features = protocol.metric.partition(".")[2].partition("@")[0]
    return folded(
        f"All metrics: {features}, n = {protocol.n:,}, seeds {protocol.seeds}",
        element("tr", *(element("th", name, scope="col") for name in names)),
        rows,
    )


def _arrow(protocol: Protocol) -> str:
    return " ↑" if protocol.higher_is_better else " ↓"


def _brief(score: Score | None) -> str:
    return "–" if score is None else with_interval(score.value, score.low, score.high)


def _sweep_table(sweep: Sweep, comparison: Comparison) -> Markup:
    """Every cell of one protocol in numbers, folded away."""
    runs = [run.name for run in comparison.runs if run.name in sweep.runs]
    head = element("tr", *(element("th", name, scope="col") for name in ("Cell", *runs)))
    rows = (_sweep_row(sweep, cell_scores) for cell_scores in _by_cell(sweep, runs))
    protocol = sweep.protocol
    return folded(f"All values: {metric_text(protocol)}, n = {protocol.n:,}", head, rows)


def _by_cell(sweep: Sweep, runs: list[str]) -> Iterator[tuple[Score | None, ...]]:
    for cell in sweep.cells:
        yield tuple(sweep.scores.get((run, cell)) for run in runs)


def _sweep_row(sweep: Sweep, scores: tuple[Score | None, ...]) -> Markup:
    present = [score for score in scores if score is not None]
    cell = present[0].cell
    best = min(score.shortfall for score in present)
    columns = (
        element("td", "–")
        if score is None
        else element(
            "td",
            with_interval(score.value, score.low, score.high),
            _raw(score),
            _paired(sweep.differences.get((score.run, cell))),
            class_="best" if score.shortfall == best and len(present) > 1 else None,
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
