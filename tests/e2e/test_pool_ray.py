"""The pool on real actors: deaths in the middle of leases, and how its processes run."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import ray

from fleetstep.config import PoolSpec
from fleetstep.errors import PoolError
from fleetstep.orchestration.pool import Notice, run_units
from fleetstep.orchestration.pool_status import PoolStatus

pytestmark = pytest.mark.usefixtures("ray_cluster")

# Actors cannot import a test.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Storing:
    """Takes 4 ms for a unit, stores that it is done, and writes down each time it began one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def run(self, unit: int) -> tuple[int, int]:
        done = self._folder / f"{unit:04d}.done"
        if not done.exists():
            with (self._folder / f"{unit:04d}.begun").open("a") as begun:
                begun.write("x")
            time.sleep(0.004)
            done.touch()
        return unit, os.getpid()


class Killer:
    """Kills an actor that is ready whenever so many units are done."""

    def __init__(self, after: list[int]) -> None:
        self._after = after
        self._pids: dict[int, int] = {}
        self.results: list[int] = []

    def notice(self, notice: Notice) -> None:
        if notice.kind == "ready" and notice.actor is not None:
            self._pids[notice.actor] = int(notice.text.split("process ")[1].rstrip(")"))
        if notice.kind == "lost" and notice.actor is not None:
            self._pids.pop(notice.actor)

    def result(self, unit: int, result: tuple[int, int]) -> None:
        assert result[0] == unit
        self.results.append(unit)
        if self._after and len(self.results) >= self._after[0] and len(self._pids) == 2:
            del self._after[0]
            # Not now, when its lease has come back, but in the middle of the next one.
            pid = self._pids[min(self._pids)]
            threading.Timer(0.1, os.kill, (pid, signal.SIGKILL)).start()


@pytest.mark.cluster  # the fast tier's deaths are in test_sweep_ray.py
def test_three_deaths_cost_a_unit_each_and_no_unit_is_reported_twice(tmp_path: Path):
    killer = Killer([100, 700, 1300])
    told: list[PoolStatus] = []
    run_units(
        range(2000),
        lambda: Storing(tmp_path),
        pool=PoolSpec(max=2, cpus_per_actor=0.5),
        on_result=killer.result,
        on_event=killer.notice,
        on_status=told.append,
    )
    assert sorted(killer.results) == list(range(2000))
    assert told[-1].done == 2000
    assert told[-1].replacements == 3
    assert max(status.in_flight for status in told) > 4
    begun = sum(path.stat().st_size for path in tmp_path.glob("*.begun"))
    assert 2000 <= begun <= 2003


class Telling:
    """Says how its process runs; raises what cannot be sent for unit 7."""

    def run(self, unit: int) -> tuple[int, int]:
        import torch

        if unit == 7:
            raise _Unsendable(threading.Lock())
        return os.nice(0), torch.get_num_threads()


class _Unsendable(Exception):
    def __init__(self, lock: object) -> None:
        super().__init__("it holds a lock")
        self.lock = lock


def test_an_actor_is_as_nice_as_asked_and_needs_no_cpu_and_its_errors_arrive():
    usual: int = ray.get(ray.remote(num_cpus=0)(lambda: os.nice(0)).remote())
    found: dict[int, tuple[int, int]] = {}
    with pytest.raises(PoolError, match=r"7 failed: RuntimeError: _Unsendable: it holds a lock"):
        run_units(
            range(20),
            Telling,
            pool=PoolSpec(max=1, cpus_per_actor=0.0),
            on_result=found.__setitem__,
            nice=3,
        )
    assert found == {unit: (usual + 3, 1) for unit in range(7)}
