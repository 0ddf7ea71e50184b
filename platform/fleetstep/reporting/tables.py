"""A comparison in the terminal: rich tables, with every name from a record as plain text.

Names go through `Text`, never through console markup: a run called "[red]x" stays called so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from fleetstep.reporting.comparison import Comparison, Standing, Sweep
from fleetstep.reporting.records import Cell, Score
from fleetstep.reporting.wording import (
    direction_text,
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

_STYLES = {"better": "green", "worse": "red", "no difference": "dim"}


def comparison_table(comparison: Comparison) -> Table:
    """One row a run: verdict, best cell, paired difference, held-out loss, time to quality."""
    sweep = comparison.sweep
    metric = metric_text(sweep.protocol) if sweep else "distance"
    table = Table(title=Text(f"Compared with {comparison.baseline}"), title_justify="left")
    table.add_column("run", overflow="fold")
    for title in ("verdict", f"{metric}, best cell", "difference, same cell", "held-out loss"):
        table.add_column(Text(title))
    table.add_column("baseline's final loss reached after")
    for standing in comparison.standings:
        table.add_row(
            Text(standing.run.name),
            _verdict(comparison, standing),
            Text(_best(standing)),
            Text(_difference(standing)),
            Text("-" if standing.final_loss is None else number(standing.final_loss)),
            Text(_reached(standing)),
        )
    return table


def sweep_table(sweep: Sweep) -> Table:
    """Solver x NFE against runs, each value with half its 95 % interval.

    The best of a row is bold; colours tell the paired verdict against the baseline.
    """
    protocol = sweep.protocol
    title = f"{metric_text(protocol)}, n = {protocol.n:,}, {direction_text(protocol)}"
    table = Table(title=Text(title), title_justify="left")
    table.add_column("solver", overflow="fold")
    table.add_column("NFE", justify="right")
    for run in sweep.runs:
        table.add_column(Text(run, overflow="fold"), justify="right")
    previous = ""
    for cell in sweep.cells:
        if previous not in ("", cell.solver):
            table.add_section()
        previous = cell.solver
        solver = ", ".join(part for part in (cell.solver, cell.guidance) if part)
        table.add_row(Text(solver), cell.calls, *_values(sweep, cell))
    return table


def metrics_table(group: Sequence[Sweep]) -> Table:
    """All metrics of the same images, one row a run and cell: values without their intervals."""
    protocol = group[0].protocol
    features = protocol.metric.partition(".")[2].partition("@")[0]
    title = f"All metrics in {features}, n = {protocol.n:,}, seeds {protocol.seeds}"
    table = Table(title=Text(title), title_justify="left")
    for name in ("run", "solver"):
        table.add_column(name, overflow="fold")
    table.add_column("NFE", justify="right")
    for sweep in group:
        table.add_column(kind_text(sweep.protocol), justify="right")
    for run, cell in sorted({place for sweep in group for place in sweep.scores}):
        solver = ", ".join(part for part in (cell.solver, cell.guidance) if part)
        found = (sweep.scores.get((run, cell)) for sweep in group)
        table.add_row(Text(run), Text(solver), cell.calls, *map(_brief, found))
    return table


def _brief(score: Score | None) -> Text:
    """A value to the digits that its interval allows."""
    if score is None:
        return Text("-", "dim")
    return Text(number(score.value, (score.high - score.low) / 2))


def solver_table(entries: Sequence[Mapping[str, Any]]) -> Table:
    """Every solver with the facts it declares, one record each; "-" where there is none.

    80 columns.
    """
    aliases = (f"{name} is {entry['kind']}" for entry in entries for name in entry["aliases"])
    table = Table(
        title="Solvers, each at its default settings; --json names the settings",
        caption=f"Other names, for some of their settings: {', '.join(aliases)}",
        box=None,
        padding=(0, 2, 0, 0),
        pad_edge=False,
        title_justify="left",
        caption_justify="left",
    )
    for name in ("kind", "order", "calls", "", "schedule", "NFE"):
        table.add_column(name, justify="right" if name in ("order", "calls") else "left")
    for entry in entries:
        table.add_row(
            Text(entry["kind"], no_wrap=True),
            _or_dash(entry["order"]),
            _or_dash(entry["evaluations"]),
            Text("" if entry["nature"] == "deterministic" else entry["nature"]),
            Text(entry["schedule"] or "-"),
            Text(f"{', '.join(map(str, entry['nfe'][:3]))} ..." if entry["nfe"] else "-"),
        )
    return table


def _or_dash(value: int | None) -> Text:
    return Text("-" if value is None else str(value))


def config_table(comparison: Comparison) -> Table:
    """The parameters that differ; "-" where a run has no such parameter."""
    table = Table(title="What differs in the configuration", title_justify="left")
    table.add_column("parameter", overflow="fold")
    for run in comparison.runs:
        table.add_column(Text(run.name), overflow="fold")
    for key, values in comparison.config:
        table.add_row(Text(key), *(Text("-" if value is None else value) for value in values))
    return table


def _verdict(comparison: Comparison, standing: Standing) -> Text:
    if standing.run.name not in comparison.partners:
        return Text("baseline", "dim")
    if standing.headline is None or comparison.sweep is None:
        return Text("not compared", "dim")
    verdict = standing.headline.verdict
    tally = tally_text(comparison.sweep.paired(standing.run.name))
    return Text.assemble((verdict, f"bold {_STYLES[verdict]}"), "\n", (tally, "dim"))


def _best(standing: Standing) -> str:
    if standing.best is None:
        return "-"
    best = standing.best
    return f"{with_interval(best.value, best.low, best.high)}\n{best.cell.title}"


def _difference(standing: Standing) -> str:
    if standing.headline is None:
        return "-"
    return f"{interval_text(standing.headline)}\n{standing.headline.cell.title}"


def _reached(standing: Standing) -> str:
    quality = standing.time_to_quality
    if quality is None:
        return "not compared"
    if quality.run is None:
        return "not reached"
    words = f"{images_text(quality.run.images)}, {duration_text(quality.run.wall_s)}"
    if quality.run == quality.baseline:
        return words
    images, wall = ratio_text(quality.images_ratio), ratio_text(quality.wall_ratio)
    return f"{words}\n{images} in images, {wall} in time"


def _values(sweep: Sweep, cell: Cell) -> list[Text]:
    scores = [sweep.scores.get((run, cell)) for run in sweep.runs]
    best = min(score.shortfall for score in scores if score is not None)
    texts = []
    for score in scores:
        if score is None:
            texts.append(Text("-", "dim"))
            continue
        difference = sweep.differences.get((score.run, cell))
        style = _STYLES[difference.verdict] if difference else ""
        style += " bold" if score.shortfall == best else ""
        texts.append(Text(with_interval(score.value, score.low, score.high), style.strip()))
    return texts
