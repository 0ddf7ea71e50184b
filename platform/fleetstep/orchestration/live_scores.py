"""Scores of what is finished while the rest is still sampled.

Units are done breadth first, so at every moment each cell has about as many finished blocks. Two
of them already give a value with an interval, by the jackknife over the blocks there are.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from fleetstep.orchestration.cell_scores import CellScore, Measure, score_cell
from fleetstep.orchestration.cells import UNIT, Cell, units_of
from fleetstep.orchestration.finished_units import FinishedUnits
from fleetstep.orchestration.measures import References
from fleetstep.orchestration.sweep_plan import SweepPlan

FEWEST_BLOCKS = 2
"""Blocks that an interval needs."""

LONGEST_SHARE = 0.05
"""Of the time, that looks may take: they compete with actors for the driver's machine."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A cell's seed block at a moment.

    Args:
        cell, seed_block: which.
        blocks: finished leading blocks, of those that the whole score has.
        score: of these blocks; None while there are too few.
    """

    cell: Cell
    seed_block: int
    blocks: int
    score: CellScore | None


class LiveScores:
    """Scores cells by their finished leading blocks; what did not grow is not computed again.

    Args:
        storage: where results are.
        measures: the first metric of each is looked at.
        references: read by the look alone while it runs.
    """

    def __init__(self, storage: Path, measures: list[Measure], references: References) -> None:
        self._storage, self._references = storage, references
        self._measures = [replace(measure, metrics=measure.metrics[:1]) for measure in measures]
        self._known: dict[tuple[Cell, int], Standing] = {}

    def look(self, work: SweepPlan, blocks: dict[tuple[Cell, int], int]) -> Iterator[Standing]:
        """All cells of the plan, in order, one by one as they are computed.

        Args:
            work: the plan.
            blocks: finished leading blocks of each cell and seed block, from `leading_blocks`.

        Raises:
            DataError: a unit that was finished is missing or damaged.
        """
        for (cell, seed_block), count in blocks.items():
            known = self._known.get((cell, seed_block))
            if known is None or known.blocks != count:
                known = self._standing(work, cell, seed_block, count)
                self._known[cell, seed_block] = known
            yield known

    def known(self, work: SweepPlan) -> list[Standing]:
        """All cells as they were looked at last; nothing is computed."""
        return [
            self._known.get((cell, block))
            or Standing(cell=cell, seed_block=block, blocks=0, score=None)
            for cell in work.cells
            for block in range(work.seed_blocks)
        ]

    def _standing(self, work: SweepPlan, cell: Cell, seed_block: int, count: int) -> Standing:
        score = None
        if count >= FEWEST_BLOCKS:
            size = work.samples // UNIT // work.blocks
            units = work.units_of(cell, seed_block)[: count * size]
            against = [
                (measure, self._references.of(work.reference_of.get(cell), measure.space))
                for measure in self._measures
            ]
            score = score_cell(self._storage, cell, units, count, against, seed_block=seed_block)
        return Standing(cell=cell, seed_block=seed_block, blocks=count, score=score)


def leading_blocks(work: SweepPlan, finished: FinishedUnits) -> dict[tuple[Cell, int], int]:
    """Finished leading blocks of every cell and seed block; none while a reference is not done."""
    done = all(
        unit in finished
        for reference in work.references
        for unit in units_of(reference, reference.samples)
    )
    return {
        (cell, block): finished.leading_blocks(work, cell, block) if done else 0
        for cell in work.cells
        for block in range(work.seed_blocks)
    }


class Looks:
    """Looks now and then, beside the pool: the driver goes on handing out work meanwhile.

    A look is due when a round was completed or some time has passed, but not before the last one's
    time is at most `LONGEST_SHARE` of all.

    Args:
        look: gives the standings one by one; called in a thread, one look at a time.
        publish: told of them in the thread of `ask`.
        every_s: seconds after which a look is due even if no round was completed.
        now: a clock, in seconds.
    """

    def __init__(
        self,
        look: Callable[[SweepPlan, dict[tuple[Cell, int], int]], Iterable[Standing]],
        publish: Callable[[list[Standing]], None],
        every_s: float = 30.0,
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._look, self._publish, self._every_s, self._now = look, publish, every_s, now
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="live-scores")
        self._running: Future[list[Standing]] | None = None
        self._closed = threading.Event()
        self._rounds = 0
        self._last = now()
        self._not_before = self._last

    def ask(self, work: SweepPlan, finished: FinishedUnits) -> None:
        """Publish what was looked at, and look again if a round is complete or time is up."""
        if self._running is not None and self._running.done():
            looked, self._running = self._running, None
            self._publish(looked.result())
        now = self._now()
        if self._running is not None or now < self._not_before:
            return
        rounds = finished.rounds(work)
        grown = rounds > max(self._rounds, FEWEST_BLOCKS - 1)
        if grown or now - self._last >= self._every_s:
            self._rounds, self._last = rounds, now
            blocks = leading_blocks(work, finished)
            self._running = self._thread.submit(self._take, work, blocks)

    def close(self) -> None:
        """Let a look that is going on stop at its next cell, without waiting for it; nobody is
        told of it any more.
        """
        self._running = None
        self._closed.set()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _take(self, work: SweepPlan, blocks: dict[tuple[Cell, int], int]) -> list[Standing]:
        """One look, in the thread."""
        started = self._now()
        found = []
        for one in self._look(work, blocks):
            found.append(one)
            if self._closed.is_set():
                break
        ended = self._now()
        self._not_before = ended + (ended - started) * (1 / LONGEST_SHARE - 1)
        return found
