"""A sweep's worker for snapshots of a run that goes on: one that cannot be scored must not stop
the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from fleetstep.errors import CheckpointError, NonFiniteError
from fleetstep.orchestration.cells import Cell, Unit
from fleetstep.orchestration.pool_actors import Worker
from fleetstep.orchestration.sweep_worker import UnitSummary

SECOND_LOOK_S = 1.0
"""Seconds after which a snapshot that could not be read is looked at again."""


@dataclass(frozen=True)
class Refusal:
    """A unit's cell cannot be sampled, for that reason."""

    reason: str


class TolerantWorker:
    """Answers a unit of a cell that cannot be sampled with a refusal, where a sweep would stop.

    A snapshot may be removed or damaged while it waits, and a young network may draw what is not
    finite. That happens again for every unit of the cell, so the others are refused at once. Since
    a refusal is final, a snapshot that cannot be read is looked at twice. An error of the file
    system that lasts is raised, for it passes one day: the next start tries again. So is any other
    error: it is not the snapshot's.

    Args:
        worker: does the work.
    """

    def __init__(self, worker: Worker[Unit, UnitSummary]) -> None:
        self._worker = worker
        self._refused: dict[Cell, Refusal] = {}

    def run(self, unit: Unit) -> UnitSummary | Refusal:
        """Do the unit, or say why its cell cannot be."""
        if not isinstance(unit.source, Cell):
            return self._worker.run(unit)
        if unit.source not in self._refused:
            try:
                return self._run(unit)
            except (CheckpointError, NonFiniteError) as error:
                self._refused[unit.source] = Refusal(error.message)
        return self._refused[unit.source]

    def _run(self, unit: Unit) -> UnitSummary:
        try:
            return self._worker.run(unit)
        except (CheckpointError, OSError):
            time.sleep(SECOND_LOOK_S)
            return self._worker.run(unit)


def build_tolerant(build: Callable[[], Worker[Unit, UnitSummary]]) -> TolerantWorker:
    """The worker inside an actor; what `build` raises is raised."""
    return TolerantWorker(build())
