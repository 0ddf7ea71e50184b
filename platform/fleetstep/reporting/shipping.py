"""Which cell of a sweep to ship, and whether the differences are real.

All differences are paired: the same latents, block by block, with 95 % Student intervals. "Tied"
means that such an interval holds zero, which more images may change.
"""

from __future__ import annotations

from dataclasses import dataclass

from fleetstep.reporting.statistics import Difference, cell_difference, pareto_front
from fleetstep.reporting.sweep_record import Candidate, Contest
from fleetstep.reporting.wording import interval_text, metric_text, number, with_interval


@dataclass(frozen=True)
class Step:
    """A cell of the Pareto front: no cell of as few calls or fewer is better.

    Args:
        gain: its difference to the front's next cheaper cell; None for the cheapest.
        ties: cells off the front that are tied with it and cheaper than its next.
    """

    candidate: Candidate
    gain: Difference | None
    ties: tuple[Candidate, ...]


@dataclass(frozen=True)
class Choice:
    """The answer of a contest.

    Args:
        best: the cell of the best value.
        ship: of the cells tied with it, itself among them, the one of the fewest calls.
        difference: ship minus best; None where they are one.
        tied: the other cells tied with the best, by calls.
        runner_up: where nothing is tied, the cell of the next best value, minus the best.
        front: the Pareto front, by calls.
    """

    best: Candidate
    ship: Candidate
    difference: Difference | None
    tied: tuple[tuple[Candidate, Difference], ...]
    runner_up: tuple[Candidate, Difference] | None
    front: tuple[Step, ...]


def choose(contest: Contest) -> Choice:
    """The best cell, the cheapest that is tied with it, and the front of quality against calls.

    Raises:
        ComparisonError: scores without an interval.
    """
    order = sorted(contest.candidates, key=lambda c: (c.score.shortfall, c.score.nfe))
    best, *others = order
    paired = [(other, cell_difference(other.score, best.score)) for other in others]
    tied = [pair for pair in paired if pair[1].verdict == "no difference"]
    tied.sort(key=lambda pair: pair[0].score.nfe)
    ship, difference = best, None
    if tied and tied[0][0].score.nfe < best.score.nfe:
        ship, difference = tied[0]
    return Choice(
        best=best,
        ship=ship,
        difference=difference,
        tied=tuple(pair for pair in tied if pair[0] is not ship),
        runner_up=None if tied or not paired else paired[0],
        front=_front(contest),
    )


def _front(contest: Contest) -> tuple[Step, ...]:
    all_of_them = contest.candidates
    places = [(one.score.nfe, one.score.shortfall) for one in all_of_them]
    front = [all_of_them[i] for i in pareto_front(places)]
    steps = []
    for place, one in enumerate(front):
        cheaper = front[place - 1] if place else None
        ends = front[place + 1].score.nfe if place + 1 < len(front) else float("inf")
        dominated = [
            other
            for other in all_of_them
            if other not in front and one.score.nfe <= other.score.nfe < ends
        ]
        steps.append(
            Step(
                candidate=one,
                gain=None if cheaper is None else cell_difference(one.score, cheaper.score),
                ties=tuple(o for o in dominated if _tied(o, one)),
            )
        )
    return tuple(steps)


def _tied(one: Candidate, other: Candidate) -> bool:
    return cell_difference(one.score, other.score).verdict == "no difference"


def name_of(candidate: Candidate, contest: Contest) -> str:
    """A cell in a sentence: "dpmpp_2m at 9 calls", with its network where there are several."""
    cell = candidate.score.cell
    guided = f" with {cell.guidance}" if cell.guidance else ""
    calls = f"{cell.calls} calls" if cell.nfe else f"{candidate.score.nfe:.0f} calls (adaptive)"
    network = f"{candidate.network}: " if len(contest.networks) > 1 else ""
    return f"{network}{cell.solver} at {calls}{guided}"


def ship_text(choice: Choice, contest: Contest) -> str:
    """What to ship, in one sentence: never more than the intervals allow."""
    shipped = name_of(choice.ship, contest)
    if choice.difference is not None:
        words = difference_words(choice.difference)
        return (
            f"Ship {shipped}; {name_of(choice.best, contest)}, the best value, is not "
            f"distinguishable from it ({words}){_and_more(len(choice.tied))}."
        )
    if choice.tied:
        other, difference = min(choice.tied, key=lambda pair: pair[0].score.shortfall)
        words = difference_words(difference)
        return (
            f"Ship {shipped}; {name_of(other, contest)} is not distinguishable from it "
            f"({words}){_and_more(len(choice.tied) - 1)}."
        )
    if choice.runner_up is None:
        return f"Ship {shipped}; there is no other cell to compare it with."
    other, difference = choice.runner_up
    return (
        f"Ship {shipped}; all other cells are worse at 95 %, the next best, "
        f"{name_of(other, contest)}, by {interval_text(difference)}."
    )


def _and_more(tied: int) -> str:
    """How many further cells are tied with the best."""
    if not tied:
        return ""
    return ", nor is 1 other cell" if tied == 1 else f", nor are {tied} other cells"


def difference_words(difference: Difference) -> str:
    """ "difference 0.10 ± 0.20", whichever way it points."""
    value, half = abs(difference.value), (difference.high - difference.low) / 2
    return f"difference {with_interval(value, value - half, value + half)}"


def value_text(choice: Choice, contest: Contest) -> str:
    """The shipped cell's value and what it rests on."""
    score = choice.ship.score
    protocol = contest.protocol
    return (
        f"{metric_text(protocol)} {with_interval(score.value, score.low, score.high)} "
        f"(plain value {number(score.raw)}) against {contest.reference or 'the reference'}: "
        f"{protocol.n:,} images of each cell from the same latents, compared in "
        f"{protocol.blocks} blocks at 95 %."
    )
