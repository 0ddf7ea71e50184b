"""Checkpoints of an AMED training: the same folders and manifests as a network's, so that the same
rule decides what can be resumed; one part, because every worker holds the same few numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fleetstep.durable import entry_of, remove_folder, write_json, write_whole
from fleetstep.errors import CheckpointError, NonFiniteError, ResumeError
from fleetstep.sampling.amed.training import TrainerState
from fleetstep.training.checkpoint import CheckpointStore, OnEvent, no_event
from fleetstep.training.checkpoint_format import (
    FORMAT,
    MANIFEST,
    Checkpoint,
    RunFacts,
    open_checkpoint,
)
from fleetstep.training.group import Group
from fleetstep.training.resume import Resume, choose_start

_PART = "rank-00000.safetensors"


def save_state(
    store: CheckpointStore,
    state: TrainerState,
    facts: RunFacts,
    *,
    loop: int,
    images_seen: int,
    group: Group,
    on_event: OnEvent = no_event,
) -> Checkpoint:
    """Write the checkpoint after `loop` loops; collective, rank 0 writes. Its manifest comes last,
    and only then are older ones dropped.

    Raises:
        NonFiniteError: the state holds NaN or infinity: it must never be resumed from.
        CheckpointError: it cannot be written; raised on every rank.
    """
    path = store.root / f"step-{loop:08d}"
    problem: dict[str, str] = {}
    if group.rank == 0:
        try:
            _write(path, state, facts, loop, images_seen, on_event)
            _drop_older(store, path)
        except NonFiniteError as error:
            problem = {"not_finite": error.message}
        except (OSError, SafetensorError) as error:
            problem = {"unwritten": str(error)}
    problem = group.gather(problem)[0]
    if "not_finite" in problem:
        raise NonFiniteError(problem["not_finite"], "lower the learning rate, training.lr")
    if "unwritten" in problem:
        raise CheckpointError(
            f"{path} cannot be written: {problem['unwritten']}",
            "free space or fix permissions, and resume; earlier checkpoints are untouched",
        )
    on_event("save:done")
    return open_checkpoint(path)


def choose_amed_start(
    store: CheckpointStore,
    resume: Resume,
    facts: RunFacts,
    images: int,
    group: Group | None = None,
) -> Checkpoint | None:
    """`choose_start`, within the budget: what a longer training learned must not be stored as the
    result of a shorter one; collective if a group is given.

    Args:
        store, resume, facts, group: see `choose_start`.
        images: latents of the whole training.

    Raises:
        ResumeError: the policy cannot be kept, or the checkpoint belongs to another training, or
            to a longer one.
    """
    start = choose_start(store, resume, facts, group)
    if start is not None and start.images_seen > images:
        raise ResumeError(
            f"{start.path} was trained on {start.images_seen:,} latents, which is more than the "
            f"{images:,} that training.images asks for",
            f"set training.images to {start.images_seen} or more, or choose another run name",
        )
    return start


def load_state(checkpoint: Checkpoint) -> TrainerState:
    """What `save_state` wrote, on the CPU."""
    (numbers,) = checkpoint.states
    return TrainerState(load_file(checkpoint.path / _PART), dict(numbers))


def _write(
    path: Path,
    state: TrainerState,
    facts: RunFacts,
    loop: int,
    images_seen: int,
    on_event: OnEvent,
) -> None:
    _check_finite(state.tensors, path)
    if path.exists():
        # Begun by a worker that died, or passed over when the run was resumed.
        remove_folder(path, MANIFEST)
    path.mkdir(parents=True)
    tensors = {name: value.contiguous() for name, value in state.tensors.items()}
    write_whole(path / _PART, lambda temporary: save_file(tensors, temporary))
    on_event("save:before-manifest")
    write_json(
        path / MANIFEST,
        {
            "format": FORMAT,
            "step": loop,
            "images_seen": images_seen,
            "facts": asdict(facts),
            "shapes": {name: list(value.shape) for name, value in tensors.items()},
            "tracks": [],
            "states": [state.numbers],
            "parts": [entry_of(path / _PART)],
        },
    )


def _check_finite(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    for name, value in tensors.items():
        if not bool(torch.isfinite(value).all()):
            raise NonFiniteError(f"the state after {path.name} is not finite: {name}")


def _drop_older(store: CheckpointStore, newest: Path) -> None:
    older = [folder for folder in store.folders() if folder.name < newest.name]
    for folder in older[(store.keep or len(older) + 1) - 1 :]:
        remove_folder(folder, MANIFEST)
