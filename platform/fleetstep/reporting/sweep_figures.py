"""What the figures of a sweep show: quality against network calls, and the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence

from fleetstep.reporting.axes import Axis, at_values, fit, through_zero
from fleetstep.reporting.charts import Figure, Panel, Point, Rule, Series
from fleetstep.reporting.shipping import Choice, name_of
from fleetstep.reporting.sweep_record import Candidate, Contest
from fleetstep.reporting.wording import direction_text, metric_text, with_interval

_PANELS = 9
"""At most so many networks have a panel of their own: the first ones."""

_DODGE = 0.011
_WIDE_RANGE = 5.0
_FAR = 4.0
"""Cells with so many times the value of the front's worst are left out of its figure."""


def curves_figure(contest: Contest) -> Figure:
    """Quality against network calls, one line a solver, one panel a network, shared axes."""
    metric = metric_text(contest.protocol)
    ways = sorted({_way(one) for one in contest.candidates})
    slots = {way: slot for slot, way in enumerate(ways, start=1)}
    x, y = _axes(contest)
    panels = tuple(
        _network_panel(contest, network, slots, x, y) for network in contest.networks[:_PANELS]
    )
    more = len(contest.networks) - len(panels)
    caption = (
        f"{metric} of n = {contest.protocol.n:,} images with 95 % intervals (jackknife over "
        f"{contest.protocol.blocks} blocks; the sampling of images only). Filled: the best of its "
        "panel at that number of calls; solvers are set a little apart sideways."
        + (" The scale is linear around zero and logarithmic beyond." if y.linear_to else "")
        + (f" {more} more networks are in the table." if more else "")
    )
    return Figure("curves", f"{metric} against network calls", caption, panels)


def _network_panel(
    contest: Contest, network: str, slots: dict[str, int], x: Axis, y: Axis
) -> Panel:
    mine = [one for one in contest.candidates if one.network == network]
    best = {id(_best([o for o in mine if o.score.nfe == one.score.nfe])) for one in mine}
    series = []
    for way, slot in slots.items():
        run = sorted((o for o in mine if _way(o) == way), key=lambda o: o.score.nfe)
        shift = 1 + _DODGE * (slot - (len(slots) + 1) / 2)
        points = tuple(
            _point(contest, one, shift, hollow=id(one) not in best, interval=True) for one in run
        )
        if points:
            series.append(Series(way, slot, points))
    return Panel(network, x, y, tuple(series), _floor(y))


def pareto_figure(contest: Contest, choice: Choice) -> Figure:
    """Every cell by calls and quality: the front, what is tied with it, and what is beaten."""
    metric = metric_text(contest.protocol)
    near = _near_the_front(contest, choice)
    beyond = len(contest.candidates) - len(near.candidates)
    x, y = _axes(near)
    front = {id(step.candidate) for step in choice.front}
    labels = _front_labels(choice)
    tied = {id(tie) for step in choice.front for tie in step.ties}
    line = tuple(Point(s.candidate.score.nfe, s.candidate.score.value) for s in choice.front)
    series = [Series("Pareto front", 0, line, marks=False)]
    for slot, network in enumerate(contest.networks, start=1):
        mine = [one for one in near.candidates if one.network == network]
        # What is beaten lies below what is not.
        mine.sort(key=lambda one: (id(one) in front, id(one) in tied))
        points = tuple(
            _point(
                contest,
                one,
                1.0,
                hollow=id(one) in tied,
                faint=id(one) not in front | tied,
                interval=id(one) in front,
                label=labels.get(id(one), ""),
            )
            for one in mine
        )
        series.append(Series(network, slot, points, line=False))
    caption = (
        f"All {len(contest.candidates)} cells. Filled: on the front, no cell of as few calls or "
        "fewer is better; with 95 % interval. Hollow: off the front, but not distinguishable "
        "(paired, 95 %) from the front's cell of as many calls or fewer. Faint: worse than that "
        "cell."
        + (f" {beyond} cells are far above and only in the table." if beyond else "")
        + (
            " A call of one network may take longer than a call of another."
            if len(contest.networks) > 1
            else ""
        )
    )
    panel = Panel("All networks and solvers", x, y, tuple(series), _floor(y))
    return Figure("pareto", f"What {metric} each number of calls buys", caption, (panel,))


def _front_labels(choice: Choice) -> dict[int, str]:
    """The solver's name beside the front's marks where it changes along the front: neighbours of
    one name would be written over each other.
    """
    labels: dict[int, str] = {}
    before = ""
    for step in choice.front:
        solver = step.candidate.score.solver.partition("(")[0]
        if solver != before:
            labels[id(step.candidate)] = before = solver
    return labels


def _near_the_front(contest: Contest, choice: Choice) -> Contest:
    """The cells without those so much worse that the front could not be seen beside them."""
    front = [step.candidate.score for step in choice.front]
    worst = max(score.value for score in front)
    if contest.protocol.higher_is_better or worst <= 0:
        return contest
    near = (one for one in contest.candidates if one.score.value <= _FAR * worst)
    return Contest(contest.protocol, tuple(near))


def _way(candidate: Candidate) -> str:
    score = candidate.score
    return ", ".join(part for part in (score.solver, score.guidance) if part)


def _best(candidates: Sequence[Candidate]) -> Candidate:
    return min(candidates, key=lambda one: one.score.shortfall)


def _point(
    contest: Contest,
    one: Candidate,
    shift: float,
    *,
    hollow: bool,
    faint: bool = False,
    interval: bool,
    label: str = "",
) -> Point:
    score = one.score
    text = (
        f"{name_of(one, contest)}: {metric_text(contest.protocol)} "
        f"{with_interval(score.value, score.low, score.high)}"
    )
    low, high = (score.low, score.high) if interval else (None, None)
    return Point(
        score.nfe * shift, score.value, low, high, text, hollow=hollow, faint=faint, label=label
    )


def _axes(contest: Contest) -> tuple[Axis, Axis]:
    """Calls, and quality: logarithmic over a wide range, through zero where values cross it."""
    scores = [one.score for one in contest.candidates]
    x = at_values("network calls per image (NFE)", [score.nfe for score in scores])
    title = f"{metric_text(contest.protocol)}, {direction_text(contest.protocol)}"
    values = [score.value for score in scores]
    ends = [end for score in scores for end in (score.low, score.high)]
    low, high = min(values), max(values)
    if low > 0:
        log = high / low > _WIDE_RANGE
        shown = [end for end in ends if not log or end > low / 2]
        return x, fit(title, [*values, *shown], log=log)
    noise = max(max(score.high - score.low for score in scores if score.value <= 0) / 2, -low)
    if noise > 0 and high > 2 * _WIDE_RANGE * noise:
        return x, through_zero(title, [*values, *ends], noise)
    return x, fit(title, [*values, *ends], log=False)


def _floor(y: Axis) -> tuple[Rule, ...]:
    """Zero, where it is on the axis: what real images have against others of their kind."""
    return (Rule("y", 0.0, "0: as real images"),) if y.low < 0 < y.high and not y.log else ()
