"""All cells of a sweep as a table in the terminal, while it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table
from rich.text import Text

from fleetstep.evaluation.minimum import Minimum
from fleetstep.evaluation.record import ScoreRecord
from fleetstep.orchestration.cells import Cell, guidance_text
from fleetstep.orchestration.live_scores import Standing
from fleetstep.orchestration.screening import Screened
from fleetstep.orchestration.sweep_solvers import solver_text

WAITING = "…"


def live_table(standings: Sequence[Standing], dropped: Sequence[Screened] = ()) -> Table:
    """One row a cell and seed block that is begun: the first metric of each feature space so far,
    with its interval and the images it is of.
    """
    begun = {one.seed_block for one in standings if one.blocks} | {0}
    standings = [one for one in standings if one.seed_block in begun]
    known = [one.score for one in standings if one.score is not None]
    metrics = [_plain(record) for record in known[0].records] if known else ["distance"]
    table = Table(title="so far: value [95 % interval]", title_justify="left")
    table.add_column("network", overflow="fold")
    table.add_column("solver", overflow="fold")
    table.add_column("NFE", justify="right")
    if any(one.seed_block for one in standings):
        table.add_column("block", justify="right")
    for metric in metrics:
        table.add_column(Text(metric), justify="right", no_wrap=True)
    table.add_column("images", justify="right")
    for one in standings:
        records = () if one.score is None else one.score.records
        values = [_value(record) for record in records] or [WAITING] * len(metrics)
        images = f"{records[0].n:,}" if records else WAITING
        table.add_row(*_place(one.cell), *_block(one, table), *values, images)
    for left_out in dropped:
        gap = [""] * (len(table.columns) - 4)
        table.add_row(*_place(left_out.cell), Text("left out", "dim"), *gap, style="dim")
    return table


def minima_lines(minima: Mapping[Cell, tuple[Minimum, ...]]) -> list[str]:
    """The lowest values over seed blocks, by their own names."""
    return [
        f"{minimum.metric}: {minimum.minimum:.4g} of "
        f"{', '.join(f'{value:.4g}' for value in minimum.values)} ({cell})"
        for cell, lowest in minima.items()
        for minimum in lowest
    ]


def _place(cell: Cell) -> tuple[Text, Text, str]:
    network = cell.snapshot.run
    if cell.snapshot.images_seen:
        network += f" at {cell.snapshot.images_seen:,}"
    solver = ", ".join(p for p in (solver_text(cell.solver), guidance_text(cell.guidance)) if p)
    return Text(network), Text(solver), "its own" if cell.nfe is None else str(cell.nfe)


def _block(one: Standing, table: Table) -> tuple[str, ...]:
    shown = any(column.header == "block" for column in table.columns)
    return (str(one.seed_block),) if shown else ()


def _plain(record: ScoreRecord) -> str:
    """The metric's name without its number of images, which differs between rows."""
    return f"{record.kind} in {record.extractor}"


def _value(record: ScoreRecord) -> str:
    return f"{record.value:.3g} [{record.low:.2g}, {record.high:.2g}]"
