"""Snapshots on their way from disk to scores: which units of them are still missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fleetstep.orchestration.cells import Cell, Unit
from fleetstep.orchestration.sweep_plan import SweepPlan, network_calls


@dataclass(kw_only=True)
class _Open:
    """A snapshot of which units are missing, and the cells that turned out impossible."""

    plan: SweepPlan
    missing: set[Unit]
    refused: dict[Cell, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A snapshot of which no unit is missing any more.

    Attributes:
        images_seen: training progress.
        plan: its cells, without the refused ones.
        refused: what could not be sampled: cell and reason, a line each.
    """

    images_seen: int
    plan: SweepPlan
    refused: tuple[str, ...]


class SnapshotQueue:
    """Several snapshots in flight. Units are handed out oldest snapshot first, so that results
    come in that order where actors are as fast as each other; none waits for another's.

    Args:
        plan: cells and units of the snapshot in a folder.
    """

    def __init__(self, plan: Callable[[Path], SweepPlan]) -> None:
        self._plan = plan
        self._open: dict[int, _Open] = {}
        self._in_flight: set[Unit] = set()
        self._units = self._calls = self._calls_done = 0

    def take(self, images_seen: int, snapshot: Path) -> list[Unit]:
        """Take a snapshot in; its units that nobody has and nobody is at work on, in order.

        Raises:
            FleetstepError: the snapshot cannot be planned: damaged, gone, of other data.
        """
        plan = self._plan(snapshot)
        self._open[images_seen] = _Open(plan=plan, missing=set(plan.remaining))
        # The reference's units belong to every snapshot until they are done.
        new = [unit for unit in plan.remaining if unit not in self._in_flight]
        self._in_flight.update(new)
        self._units += len(new)
        self._calls += network_calls(new)
        return new

    def finished(self, unit: Unit) -> None:
        """The unit's results are there."""
        self._came_back(unit)
        for snapshot in self._open.values():
            snapshot.missing.discard(unit)

    def refused(self, unit: Unit, reason: str) -> None:
        """The unit's cell cannot be sampled: nothing more is expected of it."""
        self._came_back(unit)
        for snapshot in self._open.values():
            cell = unit.source
            if isinstance(cell, Cell) and cell in snapshot.plan.cells:
                snapshot.refused[cell] = reason
                snapshot.missing = {one for one in snapshot.missing if one.source != cell}

    def measured(self) -> list[Measured]:
        """The snapshots of which nothing is missing, oldest first; they leave the queue."""
        ready = sorted(images for images, one in self._open.items() if not one.missing)
        return [_measured(images, self._open.pop(images)) for images in ready]

    @property
    def open(self) -> tuple[int, ...]:
        """Images seen of the snapshots of which units are missing, oldest first."""
        return tuple(sorted(self._open))

    @property
    def units(self) -> int:
        """Units handed out."""
        return self._units

    @property
    def units_done(self) -> int:
        """Those of them that came back."""
        return self._units - len(self._in_flight)

    @property
    def calls(self) -> int:
        """Network calls on one image in all units handed out."""
        return self._calls

    @property
    def calls_done(self) -> int:
        """Those of units that came back."""
        return self._calls_done

    def _came_back(self, unit: Unit) -> None:
        self._in_flight.remove(unit)
        self._calls_done += network_calls([unit])


def _measured(images_seen: int, snapshot: _Open) -> Measured:
    return Measured(
        images_seen=images_seen,
        plan=snapshot.plan.without(snapshot.refused.keys()),
        refused=tuple(f"{cell}: {reason}" for cell, reason in snapshot.refused.items()),
    )
