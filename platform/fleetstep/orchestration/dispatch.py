"""Which units run on which actor, and what follows when an actor dies: decisions only, no Ray, no
clock.

The pool (pool.py) reports facts to a `Ledger` and carries out the `Decision` it gets back, so that
every way a pool can end is read, and tested, here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Generic, TypeVar

U = TypeVar("U")


@dataclass(frozen=True)
class Replace:
    """Start a new actor in the place of the lost one."""


@dataclass(frozen=True)
class Retire:
    """Go on with the actors that are left; `for_good`: the pool stays smaller by this one."""

    reason: str
    for_good: bool


@dataclass(frozen=True)
class Stop:
    """Give up: going on would fail the same way again."""

    message: str
    remedy: str


Decision = Replace | Retire | Stop


@dataclass(frozen=True)
class Lease(Generic[U]):
    """Units that go to an actor together and are done there in order.

    Args:
        units: at least one.
        deaths: actors that died, on machines that live, while they ran this one unit alone.
        suspect: the unit was in a lease whose actor died; such a lease holds it alone.
    """

    units: tuple[U, ...]
    deaths: int = 0
    suspect: bool = False

    def __str__(self) -> str:
        more = f" and {len(self.units) - 1} more" if len(self.units) > 1 else ""
        return f"{self.units[0]}{more}"


def breadth_first(groups: Sequence[Sequence[U]]) -> list[U]:
    """The first of every group, then the second of every group, ...; shorter groups end earlier.

    In this order an interrupted sweep has an equally good estimate of every cell, instead of some
    cells complete and some not begun.
    """
    nothing = object()
    rounds: Iterable[object] = chain.from_iterable(zip_longest(*groups, fillvalue=nothing))
    return [unit for unit in rounds if unit is not nothing]  # type: ignore[misc]


class Ledger(Generic[U]):
    """What is pending and in flight (units that actors hold); of what is done only the number is
    kept.

    Units start in the order given. When an actor dies, which unit of its lease was to blame is not
    known, and those before it may be done and stored: each of them starts again alone, before all
    others. A death is counted against a unit only where it ran alone and its machine lives on,
    so that a unit that kills its actors is named, and neither its neighbours are nor one whose
    machines are preempted. What takes machines down is bounded by `max_replacements`.

    Args:
        units: the work, in the order in which it shall start.
        max_attempts: actors that one unit may take down, alone, before it is blamed.
        max_replacements: actors that may be replaced in a row; every finished lease gives one
            back, for machines that come and go must not end a sweep that gets on.
    """

    def __init__(self, units: Sequence[U], *, max_attempts: int, max_replacements: int) -> None:
        self._pending = deque(units)
        self._suspects: deque[Lease[U]] = deque()
        self._held: dict[int, deque[Lease[U]]] = {}
        self._max_attempts = max_attempts
        self._max_replacements = max_replacements
        self._left = max_replacements
        self.in_flight = 0
        self.done = 0
        self.replacements = 0

    @property
    def pending(self) -> int:
        """Units that no actor holds."""
        return len(self._pending) + len(self._suspects)

    @property
    def complete(self) -> bool:
        """Every unit is done."""
        return not (self._pending or self._suspects or self._held)

    @property
    def busy(self) -> int:
        """Actors that hold a lease."""
        return len(self._held)

    def held_by(self, actor: int) -> int:
        """Leases that `actor` holds."""
        return len(self._held.get(actor, ()))

    def add(self, units: Iterable[U]) -> None:
        """More work, behind what is pending."""
        self._pending.extend(units)

    def assign(self, actor: int, size: int) -> Lease[U] | None:
        """The next lease, of at most `size` units, now held by `actor`; None when nothing is
        pending.
        """
        if self._suspects:
            lease = self._suspects.popleft()
        elif self._pending:
            count = min(size, len(self._pending))
            lease = Lease(tuple(self._pending.popleft() for _ in range(count)))
        else:
            return None
        self._held.setdefault(actor, deque()).append(lease)
        self.in_flight += len(lease.units)
        return lease

    def running(self, actor: int) -> Lease[U] | None:
        """The lease that `actor` is at; None when it is starting or idle."""
        leases = self._held.get(actor)
        return leases[0] if leases else None

    def finished(self, actor: int, count: int) -> Lease[U]:
        """`actor` did the first `count` units of its oldest lease, which is returned; the rest of
        them is pending again, before all others.
        """
        leases = self._held[actor]
        lease = leases.popleft()
        if not leases:
            del self._held[actor]
        self.in_flight -= len(lease.units)
        self.done += count
        self._left = min(self._left + 1, self._max_replacements)
        self._pending.extendleft(reversed(lease.units[count:]))
        return lease

    def lost(
        self, actor: int, reason: str, *, machine_gone: bool = False
    ) -> Lease[U] | Stop | None:
        """`actor` died for `reason`; the lease that starts again, if it held one.

        Args:
            actor: it holds nothing any more.
            reason: for the message of a `Stop`.
            machine_gone: its machine went with it, as in a preemption: no unit is blamed for that.

        A unit that took down `max_attempts` actors alone is taken to be the cause (too much
        memory, a crash in native code): it would take down every other one, so the pool stops and
        names it.
        """
        leases = self._held.pop(actor, None)
        if leases is None:
            return None
        self.in_flight -= sum(len(lease.units) for lease in leases)
        for lease in reversed(list(leases)[1:]):  # not begun: no suspicion
            self._return(lease)
        running = leases[0]
        blamed = len(running.units) == 1 and not machine_gone
        deaths = running.deaths + blamed
        if deaths >= self._max_attempts:
            return Stop(
                f"{running.units[0]} lost its actor {deaths} times, "
                f"the last time because: {reason}",
                "a unit that does this usually needs too much memory: use fewer actors per "
                "machine or a smaller batch; finished units are kept",
            )
        alone = [Lease((unit,), deaths, suspect=True) for unit in running.units]
        self._suspects.extendleft(reversed(alone))
        return running

    def _return(self, lease: Lease[U]) -> None:
        if lease.suspect:
            self._suspects.appendleft(lease)
        else:
            self._pending.extendleft(reversed(lease.units))

    def replace(self, *, alive: int, wanted: int, reason: str) -> Decision:
        """What becomes of the place of an actor that died for `reason`.

        Args:
            alive: actors that are left.
            wanted: actors that the work left asks for.

        The actor is replaced while replacements are left, and after that the pool shrinks: losing
        machines for good must not end a sweep that the remaining ones can finish.
        """
        if alive >= wanted:
            return Retire("the remaining actors suffice for the remaining units", for_good=False)
        if self._left > 0:
            self._left -= 1
            self.replacements += 1
            return Replace()
        if alive:
            return Retire(f"all {self._max_replacements} replacements are used up", for_good=True)
        return Stop(
            f"no actor is left and all {self._max_replacements} replacements are used up; "
            f"the last one died because: {reason}",
            "look at the memory of the machines and at Ray's logs, then start again: "
            "finished units are kept",
        )
