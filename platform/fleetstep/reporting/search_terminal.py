"""A search in the terminal: every trial in a row, and how far it all is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

_STYLES = {"failed": "red", "lost": "red", "stopped": "dim", "pending": "dim", "running": "cyan"}


@dataclass(frozen=True)
class TrialRow:
    """What a table says of a trial.

    Attributes:
        trial: its number.
        title: its settings, short.
        state: running, finished, stopped, ...
        images_seen: at its last report.
        values: objectives at its last report, by name; NaN is missing.
        best: whether it is one of the best.
    """

    trial: str
    title: str
    state: str
    images_seen: int
    values: Mapping[str, float]
    best: bool = False


def search_table(
    rows: Sequence[TrialRow], objectives: Sequence[str], trials: int, eta_s: float | None
) -> Table:
    """Every trial that began, with its last objectives; the best ones bold and marked.

    Args:
        rows: in the order of their numbers.
        objectives: names, the deciding one first.
        trials: how many there will be in all.
        eta_s: seconds left; None if unknown.
    """
    table = Table(
        title=Text(progress_text(rows, trials, eta_s)),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("trial", no_wrap=True)
    table.add_column("settings", overflow="fold")
    table.add_column("state", no_wrap=True)
    table.add_column("images", justify="right", no_wrap=True)
    for name in objectives:
        table.add_column(Text(name), justify="right", no_wrap=True)
    for row in rows:
        style = "bold green" if row.best else ""
        values = [_number(row.values.get(name, math.nan)) for name in objectives]
        table.add_row(
            Text(f"{row.trial} *" if row.best else row.trial, style),
            Text(row.title, style),
            Text(row.state, _STYLES.get(row.state, "")),
            f"{row.images_seen:,}",
            *(Text(value, style) for value in values),
        )
    return table


def progress_text(rows: Sequence[TrialRow], trials: int, eta_s: float | None) -> str:
    """ "5 of 16 trials done (2 stopped early, 1 failed), 2 running, 3:20 left"."""
    states = [row.state for row in rows]
    done = sum(state in ("finished", "stopped", "failed") for state in states)
    kinds = (("stopped", "stopped early"), ("failed", "failed"))
    parts = [f"{states.count(state)} {text}" for state, text in kinds if state in states]
    line = f"{done} of {trials} trials done" + (f" ({', '.join(parts)})" if parts else "")
    if running := states.count("running"):
        line += f", {running} running"
    if eta_s is not None and done < trials:
        line += f", about {int(eta_s // 60)}:{int(eta_s % 60):02d} left"
    return line


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "-"
