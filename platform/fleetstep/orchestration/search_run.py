"""One start of a search: Ray Tune with the trials that are not over, told what is on disk."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fleetstep import config
from fleetstep.config import PbtSpec, SearchSpec, rungs, trials_of
from fleetstep.errors import TrainingError
from fleetstep.orchestration.search_actor import SearchTrial
from fleetstep.orchestration.search_callback import SearchCallback
from fleetstep.orchestration.search_explore import explored
from fleetstep.orchestration.search_janitor import Janitor
from fleetstep.orchestration.search_records import (
    Assignment,
    Goal,
    Ledger,
    Life,
    SearchFolder,
    TrialRecord,
    best_trials,
)
from fleetstep.orchestration.search_schedule import (
    JOB,
    Halving,
    Population,
    Rungs,
    TrialJob,
    first_comparison,
)
from fleetstep.orchestration.search_setup import TrialMaker
from fleetstep.orchestration.search_watch import SearchWatch
from fleetstep.orchestration.session import alive_nodes
from fleetstep.orchestration.trainer import Say

# An actor of Ray Tune must ask for something: a megabyte of memory, of which there is plenty.
_ACTOR_BYTES = 1e6
_TIDY_EVERY_S = 10.0


@dataclass(frozen=True)
class SearchRun:
    """One start of a search."""

    search: SearchSpec
    folder: SearchFolder
    ledger: Ledger
    goals: Sequence[Goal]
    at_a_time: int

    def run(self, watch: SearchWatch, say: Say | None) -> None:
        """Let Ray Tune run the trials that are not over.

        Raises:
            KeyboardInterrupt, SystemExit: it was stopped.
            TrainingError: trials were lost, or all failed.
        """
        proposals = self.proposals()
        if proposals is None:
            return
        for record in self._records():
            # Of a driver that was killed before its workers had left; they are gone by now.
            run = self.folder.run(record.trial, record.life.index)
            run.stop_request.unlink(missing_ok=True)
        janitor = _Tidying(Janitor(self.folder, self._every()), self.ledger, self.goals)
        callback = SearchCallback(watch, say, janitor.now_and_then)
        try:
            with _signals_kept():
                self._tune(proposals, callback)
        finally:
            janitor.tidy()
        if callback.signal == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
        if callback.signal is not None:
            raise KeyboardInterrupt
        lost = [r for r in self.ledger.records.values() if r.ending == "lost"]
        if lost:
            raise TrainingError(
                f"the processes of {len(lost)} trial(s) died too often, first of trial "
                f"{lost[0].trial}: {lost[0].why}",
                "run the same command again: it goes on with them from their last checkpoints",
            )

    def _tune(self, proposals: Mapping[str, Any], callback: SearchCallback) -> None:
        from ray import tune

        make = TrialMaker(self.search, self.folder)
        # Read by Ray when it starts the loop; results are ours to write, and nobody restores its.
        os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
        # Its newer output prints a box on stdout however quiet it is asked to be.
        os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"ray\.")
            tune.run(
                tune.with_parameters(SearchTrial, make=make, goal=self.goals[0]),
                name=f"start-{time.time_ns():x}",
                storage_path=str(self.folder.ray),
                **proposals,
                **self._room(),
                scheduler=self._scheduler(),
                callbacks=[callback],
                max_failures=_most_restarts(self.search),
                raise_on_failed_trial=False,
                trial_dirname_creator=lambda trial: TrialJob.of(trial.config).trial,
                verbose=0,
            )

    def _scheduler(self) -> Any:
        scheduler = self.search.scheduler
        if scheduler.kind == "asha":
            rung = Rungs(rungs(self.search), scheduler.reduction)
            rung.tell(self.ledger.records.values(), self.goals[0])
            return Halving(rung, self.goals[0])
        if scheduler.kind == "pbt":
            return self._population(scheduler)
        return None

    def _population(self, scheduler: PbtSpec) -> Population:
        every = self._every()
        searcher = self.search.searcher
        assert every is not None
        assert searcher.kind == "random", "a population is drawn, by the search's checks"

        def explore(trial: str, life: int, donor: Assignment) -> Assignment:
            return explored(
                self.search.space,
                donor,
                scheduler.mutate,
                resample=scheduler.resample,
                seed=searcher.seed,
                trial=trial,
                life=life,
            )

        return Population(
            every=every,
            first=self._first(),
            goal=self.goals[0],
            quantile=scheduler.quantile,
            explore=explore,
        )

    def _every(self) -> int | None:
        """Images between a population's comparisons."""
        return rungs(self.search)[0] if self.search.scheduler.kind == "pbt" else None

    def _first(self) -> int:
        """Images at the first comparison of this start."""
        every = self._every()
        return 0 if every is None else first_comparison(tuple(self._records()), every)

    def _records(self) -> Iterable[TrialRecord]:
        return self.ledger.records.values()

    def _room(self) -> dict[str, Any]:
        """What limits the trials at a time. All of a population have to be alive, most of them
        without a process: there it is the memory that each process asks for.
        """
        if self.search.scheduler.kind != "pbt":
            room = {"cpu": 0, "memory": _ACTOR_BYTES}
            return {"resources_per_trial": room, "max_concurrent_trials": self.at_a_time}
        memory = slot_bytes([node.get("memory", 0.0) for node in alive_nodes()], self.at_a_time)
        return {"resources_per_trial": {"cpu": 0, "memory": memory}}

    def proposals(self) -> dict[str, Any] | None:
        """What is left to do, as Ray Tune's arguments; None if nothing is.

        A list that is known goes in as a grid of one dimension: Ray takes it in order, and refuses
        a searcher beside a population.
        """
        searcher = self.search.searcher
        if searcher.kind == "optuna":
            from fleetstep.orchestration.search_optuna import OptunaSearcher

            proposes = OptunaSearcher(
                self.search.space,
                self.goals,
                self._records(),
                trials=searcher.trials,
                seed=searcher.seed,
                startup=searcher.startup,
            )
            left = proposes.left
            return {"search_alg": proposes, "num_samples": left} if left else None
        if not (jobs := self._jobs()):
            return None
        return {"config": {JOB: {"grid_search": [job.config()[JOB] for job in jobs]}}}

    def _jobs(self) -> list[TrialJob]:
        """What is left to do of the trials that are known, by number."""
        assignments = trials_of(self.search)
        assert assignments is not None, "only results decide what Optuna tries"
        jobs = []
        for index, assignment in enumerate(assignments):
            trial = f"{index:04d}"
            record = self.ledger.records.get(trial)
            if record is None:
                jobs.append(TrialJob(trial, Life(0, dict(assignment))))
            elif record.open:
                jobs.append(TrialJob(trial, record.life, self._heard(record)))
        return jobs

    def _heard(self, record: TrialRecord) -> int:
        """Images of the trial's last point that nobody has to hear again: halving wants all, a
        population what came after the last comparison that was held.
        """
        origin = record.life.origin
        began = 0 if origin is None else origin.images_seen
        return max(began, self._first() - (self._every() or 0))


def slot_bytes(memories: Sequence[float], slots: int) -> int:
    """The most memory that so many processes can ask for on machines with these memories, each on
    one of them.
    """
    whole = [int(memory) for memory in memories]
    sizes = {memory // share for memory in whole for share in range(1, slots + 1)} - {0}
    fits = (
        size
        for size in sorted(sizes, reverse=True)
        if sum(memory // size for memory in whole) >= slots
    )
    return next(fits, int(_ACTOR_BYTES))


@dataclass
class _Tidying:
    """The janitor, now and then."""

    janitor: Janitor
    ledger: Ledger
    goals: Sequence[Goal]
    _next: float = 0.0

    def now_and_then(self, lives: Mapping[str, Life]) -> None:
        """Unless it was here a moment ago."""
        if time.monotonic() >= self._next:
            self.tidy(lives)
            self._next = time.monotonic() + _TIDY_EVERY_S

    def tidy(self, lives: Mapping[str, Life] | None = None) -> None:
        """Remove what nobody needs."""
        records = dict(self.ledger.records)
        present = {trial: record.life for trial, record in records.items()}
        self.janitor.tidy(
            records,
            present | dict(lives or {}),
            best_trials(tuple(records.values()), self.goals),
        )


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """What handles signals is the same after a block, whatever Ray does to it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _most_restarts(search: SearchSpec) -> int:
    """How often a trial's own process may die: as often as its workers."""
    cluster = search.trial.tree.get("cluster") or {}
    return int(cluster.get("max_restarts", config.ClusterSpec().max_restarts))
