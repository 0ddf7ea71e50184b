"""What a trained AMED predictor learned and what it gains: two figures and a table, from plain
data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rich.table import Table
from rich.text import Text

from fleetstep.reporting.axes import Axis, fit
from fleetstep.reporting.charts import Figure, Panel, Point, Rule, Series

_DEFAULTS = {"r": 0.5, "c": 1.0, "a": 1.0}
_TITLES = {
    "r": "r: where the intermediate level lies",
    "c": "c: factor on the direction",
    "a": "a: factor on the network's level",
}


@dataclass(frozen=True)
class Spread:
    """One output of the predictor in one step: its mean over images, and the range they span."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Contender:
    """One way to sample, measured against the reference trajectory.

    Attributes:
        name: as people call it.
        nfe: network calls per image.
        rmse: root mean squared error per pixel at each of the levels after the first, or at the
            last of them; the last is the sample's.
    """

    name: str
    nfe: int
    rmse: tuple[float, ...]


def learned_figure(
    name: str, levels: Sequence[float], steps: Mapping[str, Sequence[Spread]]
) -> Figure:
    """r, c and a of every step, as in Fig. 7 of Zhou et al. (2024): the dashed line is the value
    that changes nothing (for r that of DPM-Solver-2).

    Args:
        name: the run's.
        levels: of the schedule, N of them.
        steps: by "r", "c", "a": one spread for each of the N - 1 steps; what is not learned is
            left out.
    """
    panels = tuple(_learned_panel(name, key, levels, steps[key]) for key in "rca" if key in steps)
    return Figure(
        "learned",
        "What the predictor learned for every step",
        "Mean over held-out latents; bars span the images.",
        panels,
    )


def _learned_panel(
    name: str, key: str, levels: Sequence[float], spreads: Sequence[Spread]
) -> Panel:
    default = _DEFAULTS[key]
    points = tuple(
        Point(n + 1, spread.mean, spread.low, spread.high) for n, spread in enumerate(spreads)
    )
    values = [value for spread in spreads for value in (spread.low, spread.high)]
    ticks = tuple(
        (n + 1.0, f"{before:.3g}\nto {after:.3g}")
        for n, (before, after) in enumerate(pairwise(levels))
    )
    steps = Axis("step, from level to level", 0.6, len(spreads) + 0.4, ticks)
    y = fit(_TITLES[key], [*values, default], log=False)
    rule = Rule("y", default, "changes nothing" if key != "r" else "DPM-Solver-2")
    return Panel(key, steps, y, (Series(name, 1, points),), rules=(rule,))


def error_figure(levels: Sequence[float], contenders: Sequence[Contender]) -> Figure:
    """Error along the trajectory: the first contender is the one that others are compared with.

    Args:
        levels: of the schedule, N of them.
        contenders: each with N - 1 errors, or with the last of them.
    """
    series = tuple(
        Series(
            contender.name,
            slot,
            tuple(
                Point(n, error)
                for n, error in enumerate(contender.rmse, start=len(levels) - len(contender.rmse))
            ),
        )
        for slot, contender in enumerate(contenders)
    )
    values = [value for contender in contenders for value in contender.rmse]
    ticks = tuple((float(n), f"{level:.3g}") for n, level in enumerate(levels[1:], start=1))
    panel = Panel(
        "Distance to the reference trajectory",
        Axis("noise level σ after each step", 0.6, len(levels) - 0.6, ticks),
        fit("RMSE per pixel", values),
        series,
    )
    return Figure(
        "error",
        "Error of the sampler with and without the predictor",
        "Held-out latents.",
        (panel,),
    )


def report_table(contenders: Sequence[Contender], latents: int) -> Table:
    """RMSE per pixel of the samples, and each as a share of the first contender's."""
    table = Table(
        title=Text(f"RMSE per pixel to the reference, {latents} held-out latents"),
        title_justify="left",
    )
    table.add_column("sampler")
    for title in ("NFE", "RMSE per pixel", "against the first"):
        table.add_column(title, justify="right")
    base = contenders[0].rmse[-1]
    for contender in contenders:
        final = contender.rmse[-1]
        ratio = f"{final / base:.2f} x" if base > 0 else "-"
        table.add_row(Text(contender.name), str(contender.nfe), f"{final:.4g}", ratio)
    return table
