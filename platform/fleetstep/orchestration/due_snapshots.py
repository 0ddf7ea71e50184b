"""Which snapshots of a run are scored while it trains, and which of them are there."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import pairwise
from pathlib import Path

from fleetstep.config import EvaluateSpec
from fleetstep.spec import span_images
from fleetstep.training.snapshot import FACTS, identity_of
from fleetstep.training.spec import Saves, TrainingSpec


def due_points(snapshots: Iterable[int], every: int) -> tuple[int, ...]:
    """Those of a run's snapshots that are to be scored, as images seen, ascending.

    They are the first snapshot at or after each multiple of `every`, and the last one. The
    untrained network is scored only if `every` is 0, which scores all: it costs as much as any
    other, and no curve needs it.

    Args:
        snapshots: images seen at each.
        every: images between scores.
    """
    points = sorted(set(snapshots))
    if every == 0:
        return tuple(points)
    due = {here for before, here in pairwise([0, *points]) if here // every > before // every}
    return tuple(sorted(due | set(points[-1:])))


def planned_points(training: TrainingSpec, evaluate: EvaluateSpec) -> tuple[int, ...]:
    """The snapshots that a whole run of that length has to score, as images seen."""
    snapshots = Saves.of(training).snapshots()
    return due_points(snapshots, span_images(evaluate.every, training.images))


def snapshots_in(folder: Path) -> dict[int, Path]:
    """The complete snapshots of a run's snapshots folder by images seen, ascending."""
    found = sorted(file.parent for file in folder.glob(f"images-*/{FACTS}"))
    named = {path.name.removeprefix("images-"): path for path in found}
    return {int(number): path for number, path in named.items() if number.isdecimal()}


class DueSnapshots:
    """A run's due snapshots as they appear in its folder.

    The rule is applied to what there is: snapshots on disk, those that were scored or given up,
    whether they are still there or not, and those still to be written. A run that was stopped and
    goes on with other `snapshot_every` is thereby judged by the snapshots that it really has.

    Args:
        folder: the run's snapshots.
        identity: of the run's experiment; others' snapshots are not seen.
        planned: images seen at every snapshot that the run is to write.
        every: images between scores.
    """

    def __init__(self, folder: Path, identity: str, planned: Iterable[int], every: int) -> None:
        self._folder, self._identity = folder, identity
        self._planned, self._every = frozenset(planned), every

    def look(self, known: Collection[int]) -> tuple[dict[int, Path], tuple[int, ...]]:
        """The due snapshots that are there and not known, oldest first, and all points that are
        due.

        Args:
            known: images seen of the snapshots that were taken up before, wherever they are now.
        """
        found = snapshots_in(self._folder)
        newest = max(found, default=-1)
        to_come = {point for point in self._planned if point > newest}
        due = due_points(found.keys() | set(known) | to_come, self._every)
        fresh = (point for point in due if point in found and point not in known)
        ours = {
            point: found[point] for point in fresh if identity_of(found[point]) == self._identity
        }
        return ours, due
