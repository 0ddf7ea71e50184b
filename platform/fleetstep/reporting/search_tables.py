"""A search in the terminal: its best trials, and what mattered."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from fleetstep.reporting.importance import Importance
from fleetstep.reporting.search_record import SearchRecord
from fleetstep.reporting.search_words import (
    confirmation_text,
    search_headline,
    state_text,
    value_text,
)

_ROWS = 20


def trials_table(record: SearchRecord) -> Table:
    """The best trials with their objectives, best first; the page has all of them."""
    table = Table(
        title=Text(search_headline(record)),
        caption=None if record.confirm is None else Text(confirmation_text(record.confirm)),
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("trial")
    table.add_column("setting", overflow="fold")
    for objective in record.objectives:
        table.add_column(Text(objective.name), justify="right")
    table.add_column("state", overflow="fold")
    for trial in record.ranked[:_ROWS]:
        style = "bold green" if trial.id in record.best else ""
        table.add_row(
            Text(trial.id, style),
            Text(trial.title),
            *(Text(value_text(trial.value(one)), style) for one in record.objectives),
            Text(state_text(trial)),
        )
    if len(record.trials) > _ROWS:
        table.add_row("...", f"{len(record.trials) - _ROWS} more on the page")
    return table


def importance_table(found: Importance) -> Table:
    """Importance of each dimension with its spread over resamples of the trials."""
    title = f"What mattered for {found.objective.name}, from {found.trials} trials"
    table = Table(title=Text(title), title_justify="left")
    table.add_column("dimension", overflow="fold")
    table.add_column("importance (loss of R²)", justify="right")
    table.add_column("90 % of resamples", justify="right")
    for one in found.dimensions:
        table.add_row(Text(one.key), f"{one.value:.2f}", f"{one.low:.2f} to {one.high:.2f}")
    if not found.enough:
        table.add_row(f"not enough trials: {found.needed} are needed", "-", "-")
    return table
