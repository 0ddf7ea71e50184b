"""Actors without processes: a pool's cluster whose workers run in this process, and die as a
keyed stream says.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fleetstep import rng
from fleetstep.orchestration.pool_actors import Event, Finished, Lost, Ready
from fleetstep.orchestration.units import Fault

POINTS = ("unit half written", "unit before rename")


class KilledError(BaseException):
    """The end of a worker in the middle of a write."""


class Killer:
    """Ends a worker at some of the points of its writes.

    Args:
        seed: of the stream of deaths.
        share: of the points at which one dies.
        most: deaths in all.
    """

    def __init__(self, seed: int = 0, share: float = 0.0, most: int = 8) -> None:
        self._seed, self._share, self._most = seed, share, most
        self._asked = self.deaths = 0

    def __call__(self, point: str) -> None:
        assert point in POINTS
        (chance,) = rng.uniform(self._seed, "deaths", self._asked, 1)
        self._asked += 1
        if chance < self._share and self.deaths < self._most:
            self.deaths += 1
            raise KilledError


class _NoAutoscaler:
    def grows(self) -> bool:
        return False

    def node_kinds(self) -> Sequence[Mapping[str, float]]:
        return ()

    def ask(self, actors: int) -> None: ...

    def refuses(self) -> bool:
        return False


class InProcessCluster:
    """A machine of many CPUs. Which actor is heard of next follows from a seed.

    Args:
        make_worker: builds an actor's worker, given what is told of the points of its writes.
        killer: decides who dies.
        seed: of the order in which actors get on.
    """

    autoscaler = _NoAutoscaler()

    def __init__(
        self,
        make_worker: Callable[[Fault], Any],
        killer: Killer | None = None,
        seed: int = 0,
    ) -> None:
        self._make_worker, self._killer, self._seed = make_worker, killer or Killer(), seed
        self._workers: dict[int, Any] = {}
        self._leases: dict[int, deque[Sequence[Any]]] = {}
        self._starting: deque[int] = deque()
        self._events = 0
        self.started = 0

    def now(self) -> float:
        return float(self._events)

    def nodes(self) -> Sequence[Mapping[str, float]]:
        return ({"CPU": 64.0},)

    def start(self, actor: int) -> None:
        self.started += 1
        self._starting.append(actor)

    def submit(self, actor: int, units: Sequence[Any]) -> None:
        self._leases[actor].append(units)

    def end(self, actor: int) -> None:
        self._workers.pop(actor, None)
        self._leases.pop(actor, None)

    def next(self, timeout: float) -> Event | None:
        self._events += 1
        if self._starting:
            actor = self._starting.popleft()
            self._workers[actor] = self._make_worker(self._killer)
            self._leases[actor] = deque()
            return Ready(actor, 1000 + actor)
        busy = sorted(actor for actor, leases in self._leases.items() if leases)
        if not busy:
            return None
        (chance,) = rng.uniform(self._seed, "order", self._events, 1)
        actor = busy[int(chance * len(busy))]
        try:
            results = [self._workers[actor].run(unit) for unit in self._leases[actor].popleft()]
        except KilledError:
            self.end(actor)
            return Lost(actor, "killed by a test")
        return Finished(actor, results, seconds=0.3 * len(results))

    def close(self) -> None:
        self._workers.clear()
        self._leases.clear()
