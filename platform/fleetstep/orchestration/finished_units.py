"""Which units of a sweep are done, and how far that is."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from fleetstep.orchestration.cells import UNIT, Cell, Unit
from fleetstep.orchestration.sweep_plan import SweepPlan, network_calls


class FinishedUnits:
    """The units that are done, by cell and number."""

    def __init__(self, units: Iterable[Unit]) -> None:
        self._done: set[tuple[str, int]] = set()
        self._leading: dict[tuple[str, int], int] = {}
        self._counted: _Rounds | None = None
        for unit in units:
            self.add(unit)

    def add(self, unit: Unit) -> None:
        """`unit` is done."""
        self._done.add((unit.source.key, unit.index))

    def __contains__(self, unit: Unit) -> bool:
        return (unit.source.key, unit.index) in self._done

    def leading(self, cell: Cell, first: int) -> int:
        """How many units from number `first` on are done without a gap."""
        place = (cell.key, first)
        count = self._leading.get(place, 0)
        while (cell.key, first + count) in self._done:
            count += 1
        self._leading[place] = count
        return count

    def leading_blocks(self, work: SweepPlan, cell: Cell, seed_block: int) -> int:
        """Whole jackknife blocks of a score that can be computed already."""
        per_score = work.samples // UNIT
        leading = min(self.leading(cell, seed_block * per_score), per_score)
        return leading * work.blocks // per_score

    def rounds(self, work: SweepPlan) -> int:
        """Jackknife blocks that every cell has, over all seed blocks.

        Asked after every unit: the cell that held the last answer back is asked first, and others
        only once it has gone on, so that a round costs each cell about one question.
        """
        counted = self._counted
        if counted is None or counted.work is not work:
            counted = self._counted = _Rounds(work)
        cells = work.cells
        for step in range(len(cells)):
            at = (counted.last_cell + step) % len(cells)
            if self._blocks(work, cells[at]) <= counted.rounds:
                counted.last_cell = at
                return counted.rounds
        counted.rounds = min(self._blocks(work, cell) for cell in cells)
        return counted.rounds

    def _blocks(self, work: SweepPlan, cell: Cell) -> int:
        return sum(self.leading_blocks(work, cell, block) for block in range(work.seed_blocks))


@dataclass
class _Rounds:
    """Rounds that are known to be complete, which only grow, and a cell that has no more."""

    work: SweepPlan
    rounds: int = 0
    last_cell: int = 0


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a sweep is.

    Args:
        units_done, units: of the plan, those found finished included.
        calls_done, calls: network calls on one image, likewise, as `network_calls` counts them.
        seconds: since this sweep was started.
        calls_per_s: of this start alone; 0 until one unit is done.
        eta_s: seconds left at that rate; None while it is not known.
    """

    units_done: int
    units: int
    calls_done: int
    calls: int
    seconds: float
    calls_per_s: float
    eta_s: float | None


class Pace:
    """Counts finished units of a plan, which may shrink, and measures their rate."""

    def __init__(self, work: SweepPlan) -> None:
        self._calls = 0
        self._started = time.monotonic()
        self.follow(work, FinishedUnits(work.finished))

    def follow(self, work: SweepPlan, finished: FinishedUnits) -> None:
        """Count by another plan of the same sweep."""
        done = [unit for unit in work.units if unit in finished]
        self._units, self._units_done = len(work.units), len(done)
        self._all_calls, self._calls_done = work.network_calls, network_calls(done)

    def count(self, unit: Unit) -> None:
        """`unit` was done just now."""
        calls = network_calls([unit])
        self._units_done += 1
        self._calls_done += calls
        self._calls += calls

    def progress(self) -> Progress:
        """How far it is."""
        seconds = time.monotonic() - self._started
        rate = self._calls / seconds if seconds > 0 else 0.0
        return Progress(
            units_done=self._units_done,
            units=self._units,
            calls_done=self._calls_done,
            calls=self._all_calls,
            seconds=seconds,
            calls_per_s=rate,
            eta_s=(self._all_calls - self._calls_done) / rate if rate > 0 else None,
        )
