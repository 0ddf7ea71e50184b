"""What a comparison's figures of differences show: each cell against the baseline's, and where on
the noise axis the held-out error changes.
"""

from __future__ import annotations

from dataclasses import replace

from fleetstep.reporting.axes import Axis, fit
from fleetstep.reporting.charts import Figure, Panel, Point, Rule, Series
from fleetstep.reporting.comparison import Comparison, Standing, Sweep
from fleetstep.reporting.records import HELD_OUT_BIN
from fleetstep.reporting.statistics import Difference, final_value
from fleetstep.reporting.wording import (
    chance_text,
    interval_text,
    metric_text,
    number,
    tally_text,
)

_ROWS = 48
"""At most so many cells have a row in a forest: those where the baseline is best."""


def difference_figure(comparison: Comparison) -> Figure | None:
    """Forest of paired differences to the baseline, one panel a run; None without pairs."""
    sweep = comparison.sweep
    if sweep is None or not sweep.differences:
        return None
    relative = all(d.baseline_value > 4 * d.baseline_se for d in sweep.differences.values())
    shown = {key: _share(d) if relative else d for key, d in sweep.differences.items()}
    metric = metric_text(sweep.protocol)
    partners = {sweep.partners[run] for run, _ in shown}
    other = partners.pop() if len(partners) == 1 else "the baseline"
    unit = f"difference in {metric}" + (f", % of {other}’s" if relative else "")
    x = fit(unit, [end for d in shown.values() for end in (d.low, d.high)], log=False, include=0.0)
    panels = tuple(
        _forest(
            sweep,
            run.name,
            comparison.looks[run.name],
            x,
            {key: d for key, d in shown.items() if key[0] == run.name},
        )
        for run in comparison.runs
        if sweep.paired(run.name)
    )
    side = "Right" if sweep.protocol.higher_is_better else "Left"
    rows = max(len(sweep.paired(run.name)) for run in comparison.runs)
    caption = (
        f"Run minus {other} in the same cell, from the same latents, block by "
        f"block, with 95 % Student intervals. {side} of zero: the run is better. Hollow: the "
        "interval includes zero, no difference can be claimed. "
        + chance_text(rows)
        + (f" The {_ROWS} cells where the baseline is best are shown." if rows > _ROWS else "")
        + (" Intervals take the baseline’s value as fixed." if relative else "")
    )
    title = f"Paired differences to {other}"
    challengers = [run.name for run in comparison.runs[1:] if sweep.paired(run.name)]
    if len(challengers) == 1:
        tally = tally_text(sweep.paired(challengers[0]))
        title = f"{challengers[0]} against {other}: {tally}"
    return Figure("differences", title, caption, panels)


def _share(difference: Difference) -> Difference:
    """The same difference in percent of the baseline's value."""
    scale = 100 / difference.baseline_value
    return replace(
        difference,
        value=difference.value * scale,
        se=difference.se * scale,
        low=difference.low * scale,
        high=difference.high * scale,
    )


def _forest(
    sweep: Sweep,
    run: str,
    look: tuple[str, int],
    x: Axis,
    shown: dict[tuple[str, object], Difference],
) -> Panel:
    rows = _forest_rows(sweep, run)
    ticks = tuple((-float(i), d.cell.place) for i, d in enumerate(rows))
    points = tuple(
        Point(
            shown[run, d.cell].value,
            -float(i),
            shown[run, d.cell].low,
            shown[run, d.cell].high,
            f"{d.cell.title}: {interval_text(d)}, {d.verdict}",
            hollow=d.verdict == "no difference",
        )
        for i, d in enumerate(rows)
    )
    y = Axis("solver and NFE", -len(rows) + 0.3, 0.7, ticks)
    title = f"{run} minus {sweep.partners[run]}"
    series = (Series(*look, points, line=False),)
    return Panel(title, x, y, series, (Rule("x", 0.0),), interval="x", rows=len(rows))


def _forest_rows(sweep: Sweep, run: str) -> tuple[Difference, ...]:
    rows = sweep.paired(run)
    if len(rows) <= _ROWS:
        return rows
    order = sorted(rows, key=lambda d: sweep.scores[sweep.partners[run], d.cell].shortfall)
    kept = {d.cell for d in order[:_ROWS]}
    return tuple(d for d in rows if d.cell in kept)


def bins_figure(comparison: Comparison) -> Figure | None:
    """Final held-out error in each noise-level bin over the baseline's; None without bins."""
    if any(s.time_to_quality is None and s.final_loss is not None for s in comparison.standings):
        return None
    bins_of = {standing.run.name: _final_bins(standing) for standing in comparison.standings}
    series = []
    for run, other in comparison.partners.items():
        bins, baseline = bins_of[run], bins_of[other]
        points = tuple(
            Point(
                j + 1,
                bins[j] / baseline[j],
                text=f"{run}, bin {j + 1}: {number(bins[j] / baseline[j])} times {other}’s error",
            )
            for j in sorted(bins.keys() & baseline.keys())
            if baseline[j] > 0
        )
        if points:
            series.append(Series(*comparison.looks[run], points))
    if not series:
        return None
    count = max(int(point.x) for one in series for point in one.points)
    x = Axis(
        f"noise-level bin, 1 = least noise, {count} = most",
        0.5,
        count + 0.5,
        tuple((float(j), str(j)) for j in range(1, count + 1)),
    )
    ratios = [point.y for one in series for point in one.points]
    y = fit(f"error over {comparison.baseline}’s", ratios, log=False, include=1.0)
    panel = Panel("At the end of training", x, y, tuple(series), (Rule("y", 1.0, "baseline"),))
    caption = (
        "Ratio of final held-out errors in equally likely bins of the process’s own noise "
        "levels. Below 1: the run "
        "denoises better there. Each line is one pair of runs; no interval."
    )
    return Figure("bins", "Where on the noise axis the held-out error changes", caption, (panel,))


def _final_bins(standing: Standing) -> dict[int, float]:
    """Bin index -> final error."""
    bins = {}
    for name, curve in standing.run.curves.items():
        index = name.removeprefix(HELD_OUT_BIN)
        value = final_value(curve)
        if name.startswith(HELD_OUT_BIN) and index.isdecimal() and value is not None:
            bins[int(index)] = value
    return bins
