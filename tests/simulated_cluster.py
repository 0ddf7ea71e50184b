"""A cluster of actors on a virtual clock: no Ray, no processes, no waiting.

It keeps the promises of `fleetstep.orchestration.pool_actors.Cluster`, and checks that a pool
keeps its own: no lease to an actor that is not ready, no actor ended over its work.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fleetstep.orchestration.placement import placeable
from fleetstep.orchestration.pool_actors import Event, Failed, Finished, Lost, Ready
from fleetstep.orchestration.pool_policy import LONGEST_LEASE_S

START_S = 2.0
"""Seconds from the placing of an actor until it is ready."""

DIE = "die"
"""In a script: the actor dies when it begins the unit."""

PREEMPT = "preempt"
"""In a script: the actor's machine goes, and the actor with it, when it begins the unit."""


class SimulatedAutoscaler:
    """Adds one-CPU machines `after_s` after they were asked for, up to `most`; takes the empty
    ones away when they are let go.
    """

    def __init__(
        self, *, most: int = 0, after_s: float = 5.0, kinds: Sequence[Mapping[str, float]] = ()
    ) -> None:
        self.most, self.after_s, self.kinds = most, after_s, kinds
        self.asked: list[tuple[float, int]] = []
        self.refusing = False
        self.cluster: SimulatedCluster

    def grows(self) -> bool:
        return self.most > 0

    def node_kinds(self) -> Sequence[Mapping[str, float]]:
        return self.kinds

    def ask(self, actors: int) -> None:
        if self.asked and self.asked[-1][1] == actors:
            return
        self.asked.append((self.cluster.clock, actors))
        if self.grows():
            self.cluster.at(self.after_s, self._arrive)

    def refuses(self) -> bool:
        return self.refusing

    def _arrive(self) -> None:
        wanted = min(self.asked[-1][1], self.most)
        self.cluster.machines = [{"CPU": 1.0}] * max(wanted, self.cluster.placed_actors())


@dataclass
class _Simulated:
    leases: deque[Sequence[Any]] = field(default_factory=deque)
    placed: bool = False
    ready: bool = False
    at_work: bool = False


class SimulatedCluster:
    """Actors that do a unit in `unit_s` seconds, return its text in capitals, and die to a script.

    Args:
        script: for a unit, what happens at its first, second, ... start: `DIE`, `PREEMPT`, or an
            exception it raises; then it is done.
        starts: what becomes of the first, second, ... actor: None is normal, else a reason to be
            lost at the start, or an exception while its worker is built.
        unit_s: seconds of a unit that is not stored yet.
        machines: their resources.
        cpus: of an actor.
    """

    def __init__(
        self,
        script: Mapping[str, Sequence[str | Exception]] | None = None,
        *,
        starts: Sequence[str | Exception | None] = (),
        unit_s: float | Callable[[str], float] = 10.0,
        machines: Sequence[Mapping[str, float]] = ({"CPU": 2.0},),
        cpus: float = 0.5,
        autoscaler: SimulatedAutoscaler | None = None,
    ) -> None:
        self.script = {unit: deque(events) for unit, events in (script or {}).items()}
        self.starts = deque(starts)
        self.unit_s = unit_s if callable(unit_s) else lambda unit: unit_s
        self.machines, self._cpus = list(machines), cpus
        self.autoscaler = autoscaler or SimulatedAutoscaler()
        self.autoscaler.cluster = self
        self.clock = 0.0
        self.actors: dict[int, _Simulated] = {}
        self.started: list[int] = []
        self.leases: list[tuple[int, tuple[str, ...]]] = []
        self.ended: list[tuple[float, int]] = []
        self.stored: set[str] = set()
        self.closed = 0
        self._agenda: list[tuple[float, int, Callable[[], Event | None]]] = []
        self._order = itertools.count()

    # --- for tests -------------------------------------------------------------------------------

    @property
    def begun(self) -> list[str]:
        """Every unit of every lease, as they were handed out."""
        return [unit for _, units in self.leases for unit in units]

    def at(self, after_s: float, happen: Callable[[], Event | None]) -> None:
        heapq.heappush(self._agenda, (self.clock + after_s, next(self._order), happen))

    def placed_actors(self) -> int:
        return sum(actor.placed for actor in self.actors.values())

    def kill(
        self, actor: int, reason: str = "killed by a test", *, machine_gone: bool = False
    ) -> Event:
        del self.actors[actor]
        return Lost(actor, reason, machine_gone)

    # --- Cluster ---------------------------------------------------------------------------------

    def now(self) -> float:
        return self.clock

    def nodes(self) -> Sequence[Mapping[str, float]]:
        return self.machines

    def start(self, actor: int) -> None:
        self.started.append(actor)
        self.actors[actor] = _Simulated()
        self._place()

    def submit(self, actor: int, units: Sequence[str]) -> None:
        assert self.actors[actor].ready, "a lease for an actor that is not ready"
        self.leases.append((actor, tuple(units)))
        self.actors[actor].leases.append(units)
        self._work(actor)

    def end(self, actor: int) -> None:
        assert not self.actors[actor].leases, "an actor was ended over its work"
        del self.actors[actor]
        self.ended.append((self.clock, actor))

    def next(self, timeout: float) -> Event | None:
        until = self.clock + timeout
        while self._agenda and self._agenda[0][0] <= until:
            self.clock, _, happen = heapq.heappop(self._agenda)
            if (event := happen()) is not None:
                return event
        self.clock = until
        self._place()
        assert self.clock < 1e6, "the pool waits for something that will never come"
        return None

    def close(self) -> None:
        self.closed += 1
        self.actors.clear()

    # --- actors ----------------------------------------------------------------------------------

    def _place(self) -> None:
        room = placeable(self.machines, cpus=self._cpus, gpus=0) - self.placed_actors()
        waiting = [number for number, actor in self.actors.items() if not actor.placed]
        for number in waiting[: max(0, room)]:
            self.actors[number].placed = True
            self.at(START_S, lambda number=number: self._begin(number))

    def _begin(self, number: int) -> Event | None:
        if number not in self.actors:
            return None
        fate = self.starts.popleft() if self.starts else None
        if isinstance(fate, Exception):
            return Failed(number, fate)
        if fate is not None:
            return self.kill(number, fate)
        self.actors[number].ready = True
        return Ready(number, 1000 + number)

    def _work(self, number: int) -> None:
        actor = self.actors[number]
        if actor.at_work or not actor.leases:
            return
        actor.at_work = True
        results: list[str] = []
        seconds, death, error = 0.0, None, None
        for unit in actor.leases[0]:
            fate = events.popleft() if (events := self.script.get(unit)) else None
            if fate is not None:
                death, error = (None, fate) if isinstance(fate, Exception) else (fate, None)
                break
            seconds += 0.0 if unit in self.stored else self.unit_s(unit)
            results.append(unit.upper())
            self.stored.add(unit)
            if seconds >= LONGEST_LEASE_S:
                break
        self.at(seconds, lambda: self._answer(number, results, seconds, death, error))

    def _answer(
        self,
        number: int,
        results: list[str],
        seconds: float,
        death: str | None,
        error: Exception | None,
    ) -> Event | None:
        if number not in self.actors:
            return None
        if death is not None:
            return self.kill(number, machine_gone=death == PREEMPT)
        actor = self.actors[number]
        actor.leases.popleft()
        actor.at_work = False
        self._work(number)
        return Finished(number, results, seconds, error)
