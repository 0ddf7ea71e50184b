"""What the pool itself costs: empty units through real actors, and one driver's limits.

Units per second and the driver's memory before and after; then, from the driver's CPU time for a
lease and for a unit, what one driver could serve. Its own work for many actors is measured with
1,000 actors on a virtual clock; that Ray's waiting on as many answers costs no more than that is
measured apart.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import ray

from fleetstep.config import PoolSpec
from fleetstep.orchestration.pool import run_units
from fleetstep.orchestration.pool_policy import LEASE_S, MOST_UNITS
from fleetstep.orchestration.pool_status import PoolStatus
from simulated_cluster import SimulatedAutoscaler, SimulatedCluster

UNITS = 10_000
CROWD = 1_000
_MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Empty units through real actors, start of the actors left out.

    Args:
        actors: of the pool.
        units_per_s: from the first result to the last.
        driver_us_per_unit: the driver's CPU time, in microseconds.
        mib_at_first, mib_at_half, mib_at_last: the driver's resident memory when the first, half
            and all of the results were there.
    """

    actors: int
    units_per_s: float
    driver_us_per_unit: float
    mib_at_first: float
    mib_at_half: float
    mib_at_last: float


@dataclass(frozen=True, kw_only=True)
class Crowd:
    """One driver and many actors.

    Args:
        actors: how many.
        policy_ms_per_lease: the pool's own CPU time for a lease of one unit.
        wait_ms_per_lease: Ray's, to find which of as many answers have come and take them,
            where a hundredth of them have.
        leases_per_s: what one driver can serve.
    """

    actors: int
    policy_ms_per_lease: float
    wait_ms_per_lease: float
    leases_per_s: float


class Empty:
    """Does nothing."""

    def run(self, unit: int) -> int:
        """The unit."""
        return unit


def throughput(actors: int, units: int = UNITS) -> Throughput:
    """Send empty units through a pool on the connected Ray."""
    marks: list[tuple[float, float, float]] = []

    def on_result(unit: int, result: int) -> None:
        nonlocal count
        count += 1
        if count in (1, units // 2, units):
            marks.append((time.perf_counter(), time.process_time(), _resident_mib()))

    count = 0
    run_units(
        range(units),
        Empty,
        pool=PoolSpec(min=actors, max=actors, cpus_per_actor=0.5),
        on_result=on_result,
    )
    first, half, last = marks
    return Throughput(
        actors=actors,
        units_per_s=(units - 1) / (last[0] - first[0]),
        driver_us_per_unit=(last[1] - first[1]) / (units - 1) * 1e6,
        mib_at_first=first[2],
        mib_at_half=half[2],
        mib_at_last=last[2],
    )


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / _MIB


def crowd(actors: int = CROWD) -> Crowd:
    """The driver's work for many actors whose units fill a lease each."""
    policy, wait = _policy_s(actors), _wait_s(actors)
    return Crowd(
        actors=actors,
        policy_ms_per_lease=policy * 1e3,
        wait_ms_per_lease=wait * 1e3,
        leases_per_s=1 / (policy + wait),
    )


def _policy_s(actors: int) -> float:
    units = [f"unit {number}" for number in range(10 * actors)]
    cluster = SimulatedCluster(
        unit_s=lambda unit: 10.0 + int(unit.split()[1]) % 1000 / 1000,
        machines=[{"CPU": float(actors)}],
        cpus=1.0,
        autoscaler=SimulatedAutoscaler(),
    )
    statuses: list[PoolStatus] = []
    started = time.process_time()
    run_units(
        units,
        Empty,
        pool=PoolSpec(max=actors, cpus_per_actor=1.0),
        on_result=lambda unit, result: None,
        on_status=statuses.append,
        cluster=cluster,
    )
    return (time.process_time() - started) / len(units)


def _wait_s(actors: int, rounds: int = 50) -> float:
    """One actor's late answers stand for those of many."""
    late = ray.remote(num_cpus=0)(_Late).remote()
    ray.get(late.answer.remote())
    blocked = ray.remote(num_cpus=0)(_Late).remote()
    ray.get(blocked.answer.remote())
    blocked.sleep.remote(60.0)
    pending = [blocked.answer.remote() for _ in range(actors)]
    arrived = max(1, actors // 100)
    spent = 0.0
    for _ in range(rounds):
        come = [late.answer.remote() for _ in range(arrived)]
        ray.wait(come, num_returns=arrived)
        waited = [*pending, *come]
        started = time.process_time()
        done, _ = ray.wait(waited, num_returns=len(waited), timeout=0)
        ray.get(done)
        late_s = time.process_time() - started
        assert len(done) == arrived
        spent += late_s
    ray.kill(late)
    ray.kill(blocked)
    return spent / (rounds * arrived)


class _Late:
    def answer(self) -> tuple[list[int], float, None]:
        return [1], 1.0, None

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


def control_plane() -> dict[str, Any]:
    """All of it as plain data, on the connected Ray or on a local one of two CPUs."""
    if not ray.is_initialized():
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=100 * _MIB,
            log_to_driver=False,
            logging_level="ERROR",
        )
    runs = [throughput(actors) for actors in (1, 2)]
    many = crowd()
    return {
        "units": UNITS,
        "throughput": [asdict(run) for run in runs],
        "crowd": asdict(many),
        "estimate": estimate(many),
    }


def estimate(many: Crowd) -> str:
    """What one driver sustains, in words."""
    shortest = many.actors / many.leases_per_s
    return (
        f"{many.actors:,} actors with units of X s, X >= {LEASE_S:g}, need {many.actors:,}/X "
        f"leases/s; one driver sustains {many.leases_per_s:.0f} leases/s, so leases must last "
        f"{shortest:.2f} s: shorter units fill leases of {LEASE_S:g} s, "
        f"{many.actors / LEASE_S:.0f} leases/s, of up to {MOST_UNITS} units each"
    )


if __name__ == "__main__":
    print(json.dumps(control_plane(), indent=1))
