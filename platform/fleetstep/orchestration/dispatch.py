"""Which unit runs on which actor, and what follows when an actor dies: decisions only, no Ray, no
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
    """Go on with the actors that are left."""

    reason: str


@dataclass(frozen=True)
class Stop:
    """Give up: going on would fail the same way again."""

    message: str
    remedy: str


Decision = Replace | Retire | Stop


def breadth_first(groups: Sequence[Sequence[U]]) -> list[U]:
    """The first of every group, then the second of every group, ...; shorter groups end earlier.

    In this order an interrupted sweep has an equally good estimate of every cell, instead of some
    cells complete and some not begun.
    """
    nothing = object()
    rounds: Iterable[object] = chain.from_iterable(zip_longest(*groups, fillvalue=nothing))
    return [unit for unit in rounds if unit is not nothing]  # type: ignore[misc]


class Ledger(Generic[U]):
    """What is pending, in flight and done. Units start in the order given; a unit that lost its
    actor goes first.

    Args:
        units: the work, in the order in which it shall start.
        max_attempts: how often one unit may be started before it is blamed for the deaths of its
            actors.
        max_replacements: how many actors may be replaced in all.
    """

    def __init__(self, units: Sequence[U], *, max_attempts: int, max_replacements: int) -> None:
        self._units = tuple(units)
        self._pending = deque(range(len(self._units)))
        self._attempts = [0] * len(self._units)
        self._in_flight: dict[int, int] = {}
        self._actors: set[int] = set()
        self._done: set[int] = set()
        self._max_attempts = max_attempts
        self._max_replacements = max_replacements
        self.replacements = 0

    @property
    def complete(self) -> bool:
        """Every unit is done."""
        return len(self._done) == len(self._units)

    @property
    def done(self) -> int:
        """The number of finished units."""
        return len(self._done)

    def joined(self, actor: int) -> None:
        """`actor` was asked for; it counts as alive until it is lost."""
        self._actors.add(actor)

    def assign(self, actor: int) -> U | None:
        """The unit that the idle `actor` runs next; None when nothing is pending."""
        if not self._pending:
            return None
        index = self._pending.popleft()
        self._attempts[index] += 1
        self._in_flight[actor] = index
        return self._units[index]

    def unit_of(self, actor: int) -> U | None:
        """The unit that `actor` is running; None when it is starting or idle."""
        index = self._in_flight.get(actor)
        return None if index is None else self._units[index]

    def finished(self, actor: int) -> U:
        """`actor` finished its unit, which is returned."""
        index = self._in_flight.pop(actor)
        self._done.add(index)
        return self._units[index]

    def lost(self, actor: int, reason: str) -> Decision:
        """`actor` died for `reason`: its unit is pending again, and this says what to do.

        A unit of work that was started `max_attempts` times is taken to be the cause (too much
        memory, a crash in native code): it would take down every replacement, so the pool stops
        and names it. Otherwise the actor is replaced while replacements are left, and after that
        the pool shrinks: losing machines for good must not end a sweep that the remaining ones can
        finish.
        """
        self._actors.discard(actor)
        index = self._in_flight.pop(actor, None)
        if index is not None:
            if self._attempts[index] >= self._max_attempts:
                return Stop(
                    f"{self._units[index]} lost its actor {self._attempts[index]} times, "
                    f"the last time because: {reason}",
                    "a unit that does this usually needs too much memory: use fewer actors per "
                    "machine or a smaller batch; finished units are kept",
                )
            self._pending.appendleft(index)
        remaining = len(self._units) - len(self._done)
        if len(self._actors) >= remaining:
            return Retire("the remaining actors suffice for the remaining units")
        if self.replacements < self._max_replacements:
            self.replacements += 1
            return Replace()
        if self._actors:
            return Retire(f"all {self._max_replacements} replacements are used up")
        return Stop(
            f"no actor is left and all {self._max_replacements} replacements are used up; "
            f"the last one died because: {reason}",
            "look at the memory of the machines and at Ray's logs, then start again: "
            "finished units are kept",
        )
