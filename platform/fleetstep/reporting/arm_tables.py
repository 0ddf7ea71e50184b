"""The arms of a comparison as tables of the page: how good over seeds, and how much sooner."""

from __future__ import annotations

from collections.abc import Iterator

from fleetstep.reporting.answer import judged_by
from fleetstep.reporting.arms import ArmStanding, SeedDifference
from fleetstep.reporting.comparison import Comparison
from fleetstep.reporting.document import swatch
from fleetstep.reporting.markup import Markup, element
from fleetstep.reporting.records import HELD_OUT_LOSS
from fleetstep.reporting.speedup import Ratio, Speedup
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

_LISTED = 6
"""With fewer pairs of seeds than this each one's difference is told."""

_Content = tuple[Markup, str | None]
"""What a cell shows, and the number that its column is sorted by."""


def arms_table(comparison: Comparison) -> Markup:
    """One row a setting, the baseline's first: everything over training seeds."""
    cell, sweep = comparison.arms.cell, comparison.sweep
    scored = cell is not None and sweep is not None
    metric = metric_text(sweep.protocol) if sweep is not None else "distance"
    where = f"{metric} at {cell.title}" if cell is not None else metric
    columns = ["Setting", "Verdict over seeds"]
    columns += [where, "Its difference over seeds"] if scored else []
    columns += ["Final held-out loss", "Its difference over seeds", "Speed-up in images"]
    rows = (
        _arm_row(standing, slot, columns, scored=scored)
        for slot, standing in enumerate(comparison.arms.standings)
    )
    return element(
        "table",
        element("thead", element("tr", *(element("th", name, scope="col") for name in columns))),
        element("tbody", *rows),
        class_="cards sortable",
    )


def _arm_row(standing: ArmStanding, slot: int, columns: list[str], *, scored: bool) -> Markup:
    contents: list[_Content] = [(_verdict(standing, slot), None)]
    if scored:
        contents += [_mean(standing.score), _difference(standing.score_difference)]
    contents += [
        _mean(standing.loss),
        _difference(standing.loss_difference),
        _speedup(standing),
    ]
    cells = (
        element("td", content, data_label=label, data_sort=order)
        for label, (content, order) in zip(columns[1:], contents, strict=True)
    )
    small = element("small", seeds_text(standing.arm))
    return element(
        "tr", element("th", swatch(slot), standing.arm.name, small, scope="row"), *cells
    )


def _verdict(standing: ArmStanding, slot: int) -> Markup:
    if slot == 0:
        return element("span", element("span", "baseline", class_="verdict same"))
    judged = judged_by(standing)
    if judged is None:
        return element("span", element("span", "not compared", class_="verdict same"))
    if judged.verdict is None:
        pill = element("span", "one seed", class_="verdict same")
        return element("span", pill, element("small", "no interval over seeds"))
    kind = "same" if judged.verdict == "no difference" else judged.verdict
    by = "by scores" if judged is standing.score_difference else "by held-out loss"
    pill = element("span", judged.verdict, class_=f"verdict {kind}")
    return element("span", pill, element("small", by))


def _mean(mean: Mean | None) -> _Content:
    if mean is None:
        return element("span", "–"), None
    return element("span", mean_text(mean)), repr(mean.value)


def _difference(difference: SeedDifference | None) -> _Content:
    if difference is None:
        return element("span", "–"), None
    small = pair_count_text(difference)
    if 1 < len(difference.pairs) < _LISTED:
        small += ": " + ", ".join(number(value) for _, value in difference.pairs)
    content = element("span", seed_difference_text(difference), element("small", small))
    return content, repr(difference.mean.value)


def _speedup(standing: ArmStanding) -> _Content:
    level = standing.last_known(HELD_OUT_LOSS)
    if level is None:
        return element("span", "–"), None
    where = element("small", f"to its quality at {level.share:.0%}; {pairs_text(level)}")
    return element("span", speedup_text(level.images), where), _order(level.images)


def speedup_tables(comparison: Comparison) -> Iterator[Markup]:
    """One table a curve: rows are levels, columns arms; images first, then time."""
    for key in comparison.arms.curves:
        arms = [s for s in comparison.arms.standings if key in s.speedups]
        names = ["Share of baseline’s training", "Level", *(s.arm.name for s in arms)]
        rows = (
            element(
                "tr",
                element("th", f"{levels[0].share:.0%}", scope="row"),
                element("td", number(levels[0].level), data_label="Level"),
                *(_level_cell(s, level) for s, level in zip(arms, levels, strict=True)),
            )
            for levels in zip(*(s.speedups[key] for s in arms), strict=True)
        )
        yield element(
            "table",
            element("caption", f"Speed-up on {curve_text(key)}"),
            element("thead", element("tr", *(element("th", name, scope="col") for name in names))),
            element("tbody", *rows),
            class_="cards",
        )


def _level_cell(standing: ArmStanding, level: Speedup) -> Markup:
    wall = f"{speedup_text(level.wall)} in time; {pairs_text(level)}"
    words = element("span", f"{speedup_text(level.images)} in images", element("small", wall))
    return element("td", words, data_label=standing.arm.name)


def _order(ratio: Ratio) -> str:
    """What a table is sorted by: the mean or what is known of it."""
    return repr(ratio.at_least if ratio.at_least > 0 else ratio.at_most)
