"""Where a run starts: from zero, or from its newest sound checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from fleetstep.errors import ResumeError
from fleetstep.training.checkpoint import CheckpointStore
from fleetstep.training.checkpoint_format import Checkpoint, RunFacts, open_checkpoint
from fleetstep.training.group import Group
from fleetstep.training.snapshot import identity_of

Resume = Literal["auto", "must", "never"]


def choose_start(
    store: CheckpointStore, resume: Resume, facts: RunFacts, group: Group | None = None
) -> Checkpoint | None:
    """Where a run starts: its newest sound checkpoint, or None; collective if a group is given.

    Args:
        store: the run's checkpoints.
        resume: "auto" takes what there is; "must" never starts from zero; "never" wants an empty
            folder. A restart after a failure within a run is "auto" whatever the user asked for.
        facts: of the run about to start.
        group: the workers; rank 0 chooses for all (hashing every file once).

    Raises:
        ResumeError: the policy cannot be kept, or the checkpoint belongs to another experiment
            or dataset.
    """
    answer: dict[str, Any] = {}
    if group is None or group.rank == 0:
        try:
            chosen = _choose(store, resume, facts)
            answer["path"] = str(chosen.path) if chosen else None
        except ResumeError as error:
            answer["error"] = list(error.args)
    if group is not None:
        answer = group.gather(answer)[0]
    if "error" in answer:
        raise ResumeError(*answer["error"])
    return None if answer["path"] is None else open_checkpoint(Path(answer["path"]))


def check_leftovers(snapshots: Path, resume: Resume, facts: RunFacts) -> None:
    """Refuse to start from nothing where another experiment left its snapshots: they would stay
    and pass for this run's.

    Args:
        snapshots: the run's folder of snapshots.
        resume: "never" refuses snapshots of this same experiment too.
        facts: of the run about to start.

    Raises:
        ResumeError: such snapshots are there.
    """
    found = sorted(snapshots.glob("images-*"))
    if resume == "never" and found:
        raise ResumeError(
            f"resume is never, but {snapshots} holds {len(found)} snapshot(s), "
            f"the newest {found[-1].name}",
            "choose another run name, or resume with auto",
        )
    for path in found:
        if (identity := identity_of(path)) != facts.identity:
            raise ResumeError(
                f"the run starts from nothing, but {path} was made by another experiment "
                f"(identity fingerprint): {identity}, this run has {facts.identity}",
                "choose another run name, or remove the run's folder",
            )


def _choose(store: CheckpointStore, resume: Resume, facts: RunFacts) -> Checkpoint | None:
    if resume == "never":
        if folders := store.folders():
            raise ResumeError(
                f"resume is never, but {store.root} holds {len(folders)} checkpoint(s), "
                f"the newest {folders[0].name}",
                "choose another run name, or resume with auto",
            )
        return None
    chosen = store.latest()
    if chosen is None:
        if resume == "must":
            reasons = "".join(f"; {skipped.reason}" for skipped in store.skipped)
            raise ResumeError(
                f"resume is must, but {store.root} holds no sound checkpoint{reasons}",
                "check the run's name and storage path, or start anew with resume auto",
            )
        return None
    for what, mine, theirs in (
        ("experiment (identity fingerprint)", facts.identity, chosen.facts.identity),
        ("dataset (fingerprint)", facts.dataset, chosen.facts.dataset),
    ):
        if mine != theirs:
            raise ResumeError(
                f"{chosen.path} was made by another {what}: {theirs}, this run has {mine}",
                "restore the configuration and data it was made with, or choose another run name",
            )
    return chosen
