"""Actors die at random moments all along a sweep that is also stopped and started again: its
scores are still those of one process that nothing happened to.
"""

from __future__ import annotations

import os
import re
import signal
import threading
from pathlib import Path

import pytest

from fleetstep import rng
from fleetstep.config import SweepSpec
from fleetstep.errors import PoolError
from fleetstep.orchestration.cell_scores import CellScore
from fleetstep.orchestration.finished_units import Progress
from fleetstep.orchestration.pool import Notice
from fleetstep.orchestration.sweep import Listener, plan, score, sweep
from fleetstep.orchestration.sweep_worker import build_worker

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900), pytest.mark.usefixtures("ray_cluster")]

STOPS = 3
"""Times the sweep is interrupted before it may end."""

MOST_STARTS = 12


def spec_of(digits: Path, storage: Path) -> SweepSpec:
    return SweepSpec.model_validate(
        {
            "runs": f"exact:{digits}",
            "storage": str(storage),
            "solvers": [{"kind": "euler"}, {"kind": "heun"}, {"kind": "dpmpp", "order": 2}],
            "nfe": [3, 15],
            "metrics": ["fd", "kid"],
            "pictures": 0,
            "pool": {"max": 3, "cpus_per_actor": 0.5},
        }
    )


def bits(scores: tuple[CellScore, ...]) -> dict[str, tuple[object, ...]]:
    return {
        s.cell.key: (s.moments_sha256, [(r.metric, r.raw, r.pseudo_values) for r in s.records])
        for s in scores
    }


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, digits_path: Path
) -> dict[str, tuple[object, ...]]:
    """By one worker in this process, in the order of the plan."""
    spec = spec_of(digits_path, tmp_path_factory.mktemp("undisturbed"))
    work = plan(spec)
    worker = build_worker(Path(spec.storage), spec.extractors, metrics=spec.metrics)
    for unit in work.remaining:
        worker.run(unit)
    return bits(score(spec, work))


class Killer:
    """A thread that kills one of the ready actors again and again, for the time of a block: some
    units and a part of a second after the last one, so that a slow machine gets on as well.

    Args:
        seed: of the moments, and of the choice.
    """

    def __init__(self, seed: int) -> None:
        self._seed, self.kills, self._drawn = seed, 0, 0
        self._pids: dict[int, int] = {}
        self._over = threading.Event()
        self._units = threading.Semaphore(0)

    def notice(self, notice: Notice) -> None:
        """Remember who is alive."""
        if notice.actor is not None and notice.kind == "ready":
            (pid,) = re.findall(r"process (\d+)", notice.text)
            self._pids[notice.actor] = int(pid)
        elif notice.actor is not None and notice.kind in ("lost", "ended"):
            self._pids.pop(notice.actor, None)

    def unit(self) -> None:
        """A unit is finished."""
        self._units.release()

    def __enter__(self) -> Killer:
        self._pids.clear()
        self._over.clear()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._units.release()
        self._thread.join()

    def _work(self) -> None:
        while not self._over.is_set():
            units, delay, choice = rng.uniform(self._seed, "kills", self._drawn, 3)
            self._drawn += 1
            for _ in range(1 + int(8 * units)):
                self._units.acquire()
                if self._over.is_set():
                    return
            if self._over.wait(delay):
                return
            if alive := sorted(self._pids):
                pid = self._pids.pop(alive[int(choice * len(alive))])
                os.kill(pid, signal.SIGKILL)
                self.kills += 1


def start(spec: SweepSpec, killer: Killer, stop_after: int | None) -> tuple[CellScore, ...] | None:
    """One start of the sweep: its scores, or None if it ended before.

    Args:
        stop_after: units of this start after which Ctrl-C comes.
    """
    work = plan(spec)
    finished = 0

    def count(progress: Progress) -> None:
        nonlocal finished
        finished += 1
        killer.unit()
        if finished == stop_after:
            raise KeyboardInterrupt

    try:
        with killer:
            listener = Listener(progress=count, notice=killer.notice)
            return sweep(spec, work, listener=listener).scores
    except KeyboardInterrupt:
        return None
    except PoolError as error:
        # Chance may hit one unit, alone, three times: taken for the cause, as it must be.
        if not re.search(r"lost its actor 3 times|replacements are used up", error.message):
            raise
        return None


@pytest.mark.parametrize("seed", [0, 1])
def test_deaths_all_along_and_interrupts_change_no_bit(
    seed: int,
    undisturbed: dict[str, tuple[object, ...]],
    digits_path: Path,
    tmp_path: Path,
):
    spec, killer, starts = spec_of(digits_path, tmp_path), Killer(seed), 0
    scores = None
    while scores is None:
        assert starts < MOST_STARTS, "the sweep does not get on"
        (share,) = rng.uniform(seed, "interrupts", starts, 1)
        starts += 1
        scores = start(spec, killer, 5 + int(10 * share) if starts <= STOPS else None)
    assert starts > STOPS
    assert killer.kills >= 4
    assert len(undisturbed) == len(plan(spec).cells) == 6
    assert bits(scores) == undisturbed
