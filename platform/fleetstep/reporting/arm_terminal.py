"""The arms of a comparison in the terminal: settings over their seeds, and speed-ups by level."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from fleetstep.reporting.answer import judged_by
from fleetstep.reporting.arms import ArmStanding, SeedDifference
from fleetstep.reporting.comparison import Comparison
from fleetstep.reporting.records import HELD_OUT_LOSS
from fleetstep.reporting.statistics import Mean
from fleetstep.reporting.wording import (
    curve_text,
    mean_text,
    metric_text,
    number,
    pair_count_text,
    pairs_text,
    seed_difference_text,
    seeds_text,
    speedup_text,
)

_STYLES = {"better": "bold green", "worse": "bold red", "no difference": "dim", "": "dim"}


def arms_table(comparison: Comparison) -> Table:
    """One row a setting: verdict, differences and speed-up over training seeds."""
    baseline = comparison.arms.standings[0].arm.name
    table = Table(title=Text(f"Over training seeds, against {baseline}"), title_justify="left")
    table.add_column("setting", overflow="fold")
    metric = metric_text(comparison.sweep.protocol) if comparison.sweep else "distance"
    for title in ("verdict", metric, "held-out loss", "speed-up in images"):
        table.add_column(Text(title))
    for slot, standing in enumerate(comparison.arms.standings):
        table.add_row(
            Text.assemble(standing.arm.name, "\n", (seeds_text(standing.arm), "dim")),
            _verdict(standing, slot),
            _scores(standing),
            _losses(standing),
            _last_speedup(standing),
        )
    return table


def _verdict(standing: ArmStanding, slot: int) -> Text:
    if slot == 0:
        return Text("baseline", "dim")
    judged = judged_by(standing)
    if judged is None:
        return Text("not compared", "dim")
    return Text(judged.verdict or "one seed", _STYLES[judged.verdict or ""])


def _scores(standing: ArmStanding) -> Text:
    return _mean_and_difference(standing.score, standing.score_difference)


def _losses(standing: ArmStanding) -> Text:
    return _mean_and_difference(standing.loss, standing.loss_difference)


def _mean_and_difference(mean: Mean | None, difference: SeedDifference | None) -> Text:
    lines = [] if mean is None else [mean_text(mean)]
    if difference is not None:
        lines += [seed_difference_text(difference), pair_count_text(difference)]
    return Text("\n".join(lines) or "-")


def _last_speedup(standing: ArmStanding) -> Text:
    level = standing.last_known(HELD_OUT_LOSS)
    if level is None:
        return Text("-")
    return Text(f"{speedup_text(level.images)}\nat {level.share:.0%}; {pairs_text(level)}")


def speedups_table(comparison: Comparison, key: str) -> Table:
    """Speed-up in images, and in time below it, at each level of one curve."""
    arms = [s for s in comparison.arms.standings if key in s.speedups]
    baseline = comparison.arms.standings[0].arm.name
    title = f"Speed-up over {baseline} on {curve_text(key)}"
    title += ", [95 %] over pairs of runs" if comparison.arms.over_seeds else ", one pair of runs"
    table = Table(title=Text(title), title_justify="left")
    table.add_column("of its training", justify="right")
    table.add_column("level", justify="right")
    for standing in arms:
        table.add_column(Text(standing.arm.name, overflow="fold"))
    for levels in zip(*(s.speedups[key] for s in arms), strict=True):
        cells = (
            Text.assemble(
                speedup_text(level.images), "\n", (f"{speedup_text(level.wall)} in time", "dim")
            )
            for level in levels
        )
        table.add_row(f"{levels[0].share:.0%}", number(levels[0].level), *cells)
    return table
