"""Removes what no trial of a search can need again, and nothing else: Ray's own rule, the newest
few of each trial, loses checkpoints that other trials are about to copy.

Kept are, of every unfinished trial, what it would go on from and, in a population, whatever
another may still copy or is about to; of every other trial its last snapshot; of the best ones
their last checkpoint as well.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fleetstep.durable import remove_folder
from fleetstep.errors import CheckpointError
from fleetstep.orchestration.due_snapshots import snapshots_in
from fleetstep.orchestration.run_folder import RunFolder
from fleetstep.orchestration.search_records import Life, SearchFolder, TrialRecord
from fleetstep.training.checkpoint_format import MANIFEST, open_checkpoint
from fleetstep.training.snapshot import FACTS

Place = tuple[str, int, int]
"""(trial, life, images seen) of a checkpoint."""


@dataclass(frozen=True)
class Janitor:
    """Tidies a search's folder.

    Args:
        folder: of the search.
        every: images between a population's comparisons; None where trials keep to themselves
            and their own training removes old checkpoints.
    """

    folder: SearchFolder
    every: int | None = None

    def tidy(
        self,
        records: Mapping[str, TrialRecord],
        lives: Mapping[str, Life],
        best: Collection[str],
    ) -> None:
        """Remove what is not needed.

        Args:
            records: of all trials that began.
            lives: of the unfinished ones the life that Ray has in mind for them, which may not
                have begun.
            best: the best trials.
        """
        wanted = set(self._wanted(records, lives))
        for record in records.values():
            for life in record.lives:
                run = self.folder.run(record.trial, life.index)
                if run.stop_request.exists():
                    continue  # its workers are still saving
                if record.open:
                    self._tidy_open(record, lives.get(record.trial, record.life), life, wanted)
                else:
                    keep = record.trial in best and life == record.life
                    self._tidy_over(run, record, life, wanted, keep)

    def _wanted(
        self, records: Mapping[str, TrialRecord], lives: Mapping[str, Life]
    ) -> Iterable[Place]:
        """Checkpoints that a life begins with and has not copied yet."""
        for trial, record in records.items():
            life = lives.get(trial, record.life)
            origin = life.origin
            if not record.open or origin is None:
                continue
            if not checkpoints_in(self.folder.run(trial, life.index).checkpoints):
                yield origin.trial, origin.life, origin.images_seen

    def _tidy_open(
        self, record: TrialRecord, present: Life, life: Life, wanted: Collection[Place]
    ) -> None:
        if self.every is None:
            return
        found = checkpoints_in(self.folder.run(record.trial, life.index).checkpoints)
        # At its last comparison it may be copied from now on, and it goes on from the newest.
        since = record.images_seen // self.every * self.every if life == present else None
        newest = max(found, default=0)
        for images_seen, path in found.items():
            needed = (record.trial, life.index, images_seen) in wanted
            mine = since is not None and (images_seen >= since or images_seen == newest)
            # Without its first checkpoint a life that begins later has nothing but this one.
            waiting = life != present and not self._has_begun(record.trial, present)
            if not (needed or mine or (waiting and images_seen == newest)):
                remove_folder(path, MANIFEST)

    def _tidy_over(
        self,
        run: RunFolder,
        record: TrialRecord,
        life: Life,
        wanted: Collection[Place],
        keep: bool,
    ) -> None:
        found = checkpoints_in(run.checkpoints)
        for images_seen, path in found.items():
            needed = (record.trial, life.index, images_seen) in wanted
            if not (needed or (keep and images_seen == max(found))):
                remove_folder(path, MANIFEST)
        snapshots = snapshots_in(run.snapshots)
        for images_seen, path in snapshots.items():
            if life != record.life or images_seen != max(snapshots):
                remove_folder(path, FACTS)

    def _has_begun(self, trial: str, life: Life) -> bool:
        return bool(checkpoints_in(self.folder.run(trial, life.index).checkpoints))


def checkpoints_in(folder: Path) -> dict[int, Path]:
    """The complete checkpoints of a run by images seen."""
    found: dict[int, Path] = {}
    for path in sorted(folder.glob("step-*")):
        try:
            found[open_checkpoint(path).images_seen] = path
        except CheckpointError:
            continue  # being written, or removed
    return found
