"""Writing, finding and keeping the checkpoints of a run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from fleetstep.durable import entry_of, remove_folder, write_json, write_whole
from fleetstep.errors import CheckpointError, NonFiniteError
from fleetstep.training.checkpoint_format import (
    FORMAT,
    MANIFEST,
    Checkpoint,
    CheckpointReader,
    RunFacts,
    open_checkpoint,
)
from fleetstep.training.ema import EmaTracks
from fleetstep.training.engine import Engine
from fleetstep.training.partition import QUANTITIES

OnEvent = Callable[[str], None]
"""Called with the name of each point at which a run may be interrupted; tests do so."""


def no_event(name: str) -> None:
    """The default `OnEvent`."""


@dataclass(frozen=True)
class Skipped:
    """A checkpoint that was passed over, and why."""

    path: Path
    reason: str


class CheckpointStore:
    """The checkpoints of a run. Its manifests alone decide what can be resumed and what is kept.

    Args:
        root: folder of the checkpoints, on storage that all workers see.
        keep: newest complete checkpoints kept; None keeps all.

    Attributes:
        skipped: what the last `latest` passed over, newest first.
    """

    def __init__(self, root: Path, *, keep: int | None = None) -> None:
        if keep is not None and keep < 1:
            raise ValueError(f"`keep >= 1` must hold, got {keep=}")
        self.root = Path(root)
        self.keep = keep
        self.skipped: list[Skipped] = []

    def folders(self) -> list[Path]:
        """Folders of checkpoints, complete or not, newest first."""
        return sorted(self.root.glob("step-*"), reverse=True)

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that is complete and undamaged (every hash is checked)."""
        self.skipped = []
        for folder in self.folders():
            try:
                return open_checkpoint(folder, verify=True)
            except CheckpointError as error:
                self.skipped.append(Skipped(folder, error.message))
        return None

    def save(
        self,
        engine: Engine,
        ema: EmaTracks,
        facts: RunFacts,
        *,
        images_seen: int,
        state: Mapping[str, Any] | None = None,
        on_event: OnEvent = no_event,
    ) -> Checkpoint:
        """Write a checkpoint of `engine.steps`; collective. A sound one that is there stays.

        Raises:
            NonFiniteError: weights or moments hold NaN or infinity: such a state must never be
                resumed from.
            CheckpointError: a part cannot be written (disk full, permissions); raised on every
                rank.
        """
        group, path = engine.group, self.root / f"step-{engine.steps:08d}"
        outcomes = group.gather(self._prepare(path) if group.rank == 0 else {"error": None})
        _raise_first(outcomes, path)
        if outcomes[0]["there"]:
            return open_checkpoint(path)
        outcome = self._write_part(path, engine, ema) | {"state": dict(state or {})}
        on_event("save:part-written")
        outcomes = group.gather(outcome)
        _raise_first(outcomes, path)
        problem = None
        if group.rank == 0:
            on_event("save:before-manifest")
            problem = _attempt(
                lambda: _write_manifest(path, engine, ema, facts, images_seen, outcomes)
            )
        _raise_first(group.gather({"error": problem}), path)
        # After the gather: nothing is dropped before every rank knows of the new checkpoint.
        problem = _attempt(lambda: self._prune(path)) if group.rank == 0 else None
        _raise_first(group.gather({"error": problem}), path)
        on_event("save:done")
        return open_checkpoint(path)

    def load(self, checkpoint: Checkpoint, engine: Engine, ema: EmaTracks) -> None:
        """Restore engine and EMA, re-sliced for their number of workers and stage; collective.

        Raises:
            CheckpointError: it belongs to another network, or lacks an EMA track.
        """
        with CheckpointReader(checkpoint) as reader:
            for piece in engine.owned():
                if checkpoint.shapes.get(piece.name) != piece.shape:
                    raise CheckpointError(
                        f"parameter {piece.name} has shape {piece.shape}, "
                        f"in {checkpoint.path} it has {checkpoint.shapes.get(piece.name)}",
                        "the checkpoint belongs to another network",
                    )
            engine.load(reader.read, checkpoint.step)
            for name, value in engine.buffers().items():
                value.copy_(reader.buffers[name])
            for track in ema.tracks:
                for piece, average in ema.slices(track):
                    average.copy_(
                        reader.read(f"ema.{track}", piece.name, piece.start, piece.numel)
                    )

    def _prepare(self, path: Path) -> dict[str, Any]:
        """Make an empty folder, unless a sound checkpoint is there; the outcome says which, or
        what went wrong.
        """
        if path.exists():
            with contextlib.suppress(CheckpointError):
                open_checkpoint(path, verify=True)
                return {"error": None, "there": True}

        def renew() -> None:
            if path.exists():
                remove_folder(path, MANIFEST)
            path.mkdir(parents=True)

        return {"error": _attempt(renew), "there": False}

    def _write_part(self, path: Path, engine: Engine, ema: EmaTracks) -> dict[str, Any]:
        """Write this rank's part; the outcome: shapes of its parameters, or what went wrong."""
        tensors: dict[str, Tensor] = {}
        for piece in engine.owned():
            for quantity in QUANTITIES:
                tensors[f"{quantity}/{piece.name}@{piece.start}"] = getattr(piece, quantity)
        for track in ema.tracks:
            for piece, average in ema.slices(track):
                tensors[f"ema.{track}/{piece.name}@{piece.start}"] = average
        for key, value in tensors.items():
            if not bool(torch.isfinite(value).all()):
                return {"error": f"{key} holds NaN or infinity", "finite": False}
        if engine.group.rank == 0:
            tensors |= {f"buffer/{name}": value for name, value in engine.buffers().items()}
        # Slices are views of one flat tensor, which safetensors takes for aliases: copy them out.
        copies = {
            key: value.detach().to("cpu", copy=True).contiguous() for key, value in tensors.items()
        }
        part = path / _part_name(engine.group.rank)
        error = _attempt(lambda: write_whole(part, lambda temporary: save_file(copies, temporary)))
        return {
            "error": error,
            "shapes": {piece.name: list(piece.shape) for piece in engine.owned()},
        }

    def _prune(self, newest: Path) -> None:
        """Drop what is older than `newest`: incomplete, or beyond the `keep` newest.

        What is newer than `newest` was passed over when the run was resumed; it is replaced when
        training gets there.
        """
        older = [folder for folder in self.folders() if folder.name < newest.name]
        complete = [folder for folder in older if (folder / MANIFEST).is_file()]
        surplus = [] if self.keep is None else complete[self.keep - 1 :]
        for folder in older:
            if folder in surplus or folder not in complete:
                remove_folder(folder, MANIFEST)


def _part_name(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"


def _attempt(write: Callable[[], None]) -> str | None:
    """Run a write; a failure becomes text that every rank is told, so that none waits for ever."""
    try:
        write()
    except (OSError, SafetensorError) as error:
        return str(error)
    return None


def _raise_first(outcomes: list[dict[str, Any]], path: Path) -> None:
    for rank, outcome in enumerate(outcomes):
        if outcome["error"] is None:
            continue
        if not outcome.get("finite", True):
            raise NonFiniteError(
                f"the state after {path.name} is not finite on rank {rank}: {outcome['error']}",
                "lower the learning rate or clip gradients; earlier checkpoints are sound",
            )
        raise CheckpointError(
            f"{path} cannot be written by rank {rank}: {outcome['error']}",
            "free space or fix permissions, and resume; earlier checkpoints are untouched",
        )


def _write_manifest(
    path: Path,
    engine: Engine,
    ema: EmaTracks,
    facts: RunFacts,
    images_seen: int,
    outcomes: list[dict[str, Any]],
) -> None:
    shapes: dict[str, list[int]] = {}
    for outcome in outcomes:
        shapes |= outcome["shapes"]
    write_json(
        path / MANIFEST,
        {
            "format": FORMAT,
            "step": engine.steps,
            "images_seen": images_seen,
            "facts": asdict(facts),
            "shapes": shapes,
            "tracks": list(ema.tracks),
            "states": [outcome["state"] for outcome in outcomes],
            "parts": [entry_of(path / _part_name(rank)) for rank in range(len(outcomes))],
        },
    )
