"""A sweep while it runs: what is done, what comes next, and who is told.

The pool asks `units` and `feed` for work and hands back what is finished. Between the rounds the
driver screens cells, publishes standings, and keeps the status file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from fleetstep.config import ScreenSpec, SweepSpec
from fleetstep.orchestration.cell_scores import CellScore
from fleetstep.orchestration.cells import Unit
from fleetstep.orchestration.finished_units import FinishedUnits, Pace, Progress
from fleetstep.orchestration.live_scores import LiveScores, Looks, Standing
from fleetstep.orchestration.measures import References, measures_of
from fleetstep.orchestration.pool_status import PoolStatus, State, StatusFile
from fleetstep.orchestration.screening import Screened, Verdict, bounds, screen, write_screen
from fleetstep.orchestration.sweep_file import SweepFiles, write_standings
from fleetstep.orchestration.sweep_plan import SweepPlan
from fleetstep.orchestration.sweep_worker import UnitSummary


class SweepRun:
    """The driver's side of a sweep, for the time of a block.

    Args:
        spec: the sweep's configuration.
        work: from `plan(spec)`.
        on_progress: told after every unit.
        on_standings: told of all cells now and then, and at the end of an interrupted sweep of
            what the last look saw.
        on_dropped: told of the cells that screening leaves out.
    """

    def __init__(
        self,
        spec: SweepSpec,
        work: SweepPlan,
        *,
        on_progress: Callable[[Progress], None],
        on_standings: Callable[[Sequence[Standing]], None],
        on_dropped: Callable[[Sequence[Screened]], None],
    ) -> None:
        self._spec, self.work = spec, work
        self._storage = Path(spec.storage).resolve()
        self._files = SweepFiles.of(spec)
        self._measures = measures_of(spec, spec.protocol or "")
        self._references = References(self._storage, spec.reference)
        self._finished = FinishedUnits(work.finished)
        self._pace = Pace(work)
        self._on_progress, self._on_standings = on_progress, on_standings
        self._on_dropped = on_dropped
        self._live = LiveScores(self._storage, self._measures, self._references)
        self._looks = Looks(self._live.look, self._publish)
        self._status = StatusFile(self._files.status, spec.name)
        self._pool = PoolStatus()
        self._verdict: Verdict | None = None
        self._sampled = False

    @property
    def dropped(self) -> tuple[Screened, ...]:
        """The cells that screening left out."""
        return () if self._verdict is None else self._verdict.dropped

    def units(self) -> Sequence[Unit]:
        """What the pool starts with: all that remains, or what a screening needs."""
        pending = [unit for unit in self.work.screening if unit not in self._finished]
        if pending:
            return pending
        self._screen()
        return self._remaining()

    def feed(self) -> Sequence[Unit] | None:
        """What comes after a screening; None once there is nothing more."""
        if self.screened:
            return None
        if any(unit not in self._finished for unit in self.work.screening):
            return ()
        self._screen()
        return self._remaining()

    def finished(self, unit: Unit, summary: UnitSummary) -> None:
        """The pool finished `unit`."""
        self._finished.add(unit)
        self._pace.count(unit)
        self._on_progress(self._pace.progress())
        self._tell()
        self._looks.ask(self.work, self._finished)

    def pool_changed(self, pool: PoolStatus) -> None:
        """The pool is now like this."""
        self._pool = pool
        self._tell()
        self._looks.ask(self.work, self._finished)

    def sampled(self) -> None:
        """Everything is sampled: from here on, scores are of everything."""
        self._looks.close()
        self._sampled, self._pool = True, PoolStatus()
        # A new writer holds nothing back: the whole count is there while the first score is
        # computed.
        self._status = StatusFile(self._files.status, self._spec.name)
        self._tell()

    def scored(self) -> None:
        """One more score is there."""
        self._tell()

    def check_bounds(self, scores: Sequence[CellScore]) -> None:
        """Note beside the ranking whether the survivors' scores agree with it."""
        if self._verdict is None or self._spec.screen is None:
            return
        found = bounds(self._verdict, scores, self._measures[0])
        write_screen(self._files.screen, self._spec.screen, self._verdict, found)

    def __enter__(self) -> Self:
        if self._spec.screen is None:
            self._files.screen.unlink(missing_ok=True)  # what an earlier sweep of the name left
        self._tell()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        state: State = "finished"
        if kind is not None:
            state = "failed" if issubclass(kind, Exception) else "interrupted"
        try:
            self._looks.close()
            # Whoever interrupts does not wait for scores; and once all is sampled, the file that
            # is there may hold more than the first metrics of some blocks.
            if state == "interrupted" and not self._sampled:
                self._publish_last_look()
        finally:
            self._status.close(state)

    @property
    def screened(self) -> bool:
        """Whether no cell will be dropped any more."""
        return not self.work.screening or self._verdict is not None

    def _screen(self) -> None:
        """Drop cells, if that was asked for and is not done."""
        spec = self._spec.screen
        if spec is None or self.screened:
            return
        self._verdict = self._judge(spec)
        self.work = self.work.without({one.cell for one in self.dropped})
        self._pace.follow(self.work, self._finished)
        self._on_dropped(self.dropped)

    def _judge(self, spec: ScreenSpec) -> Verdict:
        verdict = screen(spec, self.work, self._storage, self._measures[0], self._references)
        write_screen(self._files.screen, spec, verdict)
        return verdict

    def _remaining(self) -> list[Unit]:
        return [unit for unit in self.work.units if unit not in self._finished]

    def _publish(self, standings: Sequence[Standing]) -> None:
        write_standings(self._files.scores, self._spec, self.work, standings, dropped=self.dropped)
        self._on_standings(standings)

    def _publish_last_look(self) -> None:
        """Nothing known takes the place of nothing only."""
        standings = self._live.known(self.work)
        if any(one.score is not None for one in standings) or not self._files.scores.exists():
            self._publish(standings)

    def _tell(self) -> None:
        progress = self._pace.progress()
        self._status.update(
            self._pool,
            progress.units_done,
            progress.units,
            progress.calls_per_s,
            progress.eta_s,
        )
