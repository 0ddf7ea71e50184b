"""Snapshots: full EMA weights that leave the trainer, merged from a complete checkpoint.

snapshots/images-000012800/
    ema.safetensors            one file a track: the network's parameters and buffers, fp32
    snapshot.json              written with them: progress, hashes, configuration, fingerprints,
                               and the images that the network is for

Weights imported from elsewhere are such a folder too, with one track.
"""

from __future__ import annotations

import json
import math
import shutil
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fleetstep.durable import (
    damage_of,
    entry_of,
    remove_folder,
    sync,
    write_json,
    write_whole,
)
from fleetstep.errors import CheckpointError
from fleetstep.training.checkpoint import OnEvent, no_event
from fleetstep.training.checkpoint_format import Checkpoint, CheckpointReader

FORMAT = 1
FACTS = "snapshot.json"
# Made when the snapshot callback has returned: without it, a resumed run calls it again.
REPORTED = "reported"


def snapshot_path(root: Path, images_seen: int) -> Path:
    """Folder of the snapshot at `images_seen`."""
    return root / f"images-{images_seen:09d}"


def write_snapshot(root: Path, checkpoint: Checkpoint, *, on_event: OnEvent = no_event) -> Path:
    """Write all tracks of a checkpoint; one process does this. A sound snapshot of the same
    experiment stays.

    Returns:
        its folder, which appears whole or not at all.

    Raises:
        CheckpointError: it cannot be written.
    """
    path = snapshot_path(root, checkpoint.images_seen)
    try:
        _write(root, path, checkpoint, on_event)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be written: {error}", "free space or fix permissions, and resume"
        ) from error
    return path


def _write(root: Path, path: Path, checkpoint: Checkpoint, on_event: OnEvent) -> None:
    if path.exists():
        if not damages_of(path) and identity_of(path) == checkpoint.facts.identity:
            return
        remove_folder(path, FACTS)
    facts = checkpoint.facts
    with CheckpointReader(checkpoint) as reader:
        tracks = ((track, _weights(reader, checkpoint, track)) for track in checkpoint.tracks)
        _write_folder(
            path,
            path.with_name(f".{path.name}.tmp"),
            tracks,
            {
                "step": checkpoint.step,
                "images_seen": checkpoint.images_seen,
                "identity": facts.identity,
                "dataset": facts.dataset,
                "shape": None if facts.shape is None else list(facts.shape),
                "classes": facts.classes,
                "config": dict(facts.config),
            },
            on_event,
        )
    on_event("snapshot:done")


def _weights(reader: CheckpointReader, checkpoint: Checkpoint, track: str) -> dict[str, Tensor]:
    weights = {
        name: reader.read(f"ema.{track}", name, 0, math.prod(shape)).view(shape)
        for name, shape in checkpoint.shapes.items()
    }
    return weights | reader.buffers


def write_imported(path: Path, weights: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write weights that no run here trained as a snapshot with the one track "ema".

    Args:
        path: the snapshot's folder, which appears whole or not at all.
        weights: the network's state dict, fp32.
        facts: what `read_snapshot` gives back, but for format and tracks.

    Raises:
        CheckpointError: the folder exists already, or cannot be written.
    """
    if path.exists():
        raise CheckpointError(f"{path} exists already", "choose another --out, or remove it")
    # Its own: of two imports into one folder, neither takes away what the other has begun.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        _write_folder(path, temporary, [("ema", dict(weights))], facts)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be written: {error}", "free space or fix permissions"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_folder(
    path: Path,
    temporary: Path,
    tracks: Iterable[tuple[str, dict[str, Tensor]]],
    facts: Mapping[str, Any],
    on_event: OnEvent = no_event,
) -> None:
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    entries: dict[str, Any] = {}
    for track, weights in tracks:
        file = temporary / f"{track}.safetensors"
        write_whole(file, lambda target, weights=weights: save_file(weights, target))  # type: ignore[misc]
        entries[track] = entry_of(file)
    on_event("snapshot:weights-written")
    write_json(temporary / FACTS, {"format": FORMAT, "tracks": entries, **facts})
    temporary.rename(path)
    sync(path.parent)


def damages_of(path: Path) -> list[str]:
    """What is wrong with a snapshot's files; [] if nothing is."""
    facts = path / FACTS
    if not facts.is_file():
        return [f"{FACTS} is missing"]
    try:
        entries = json.loads(facts.read_text(encoding="utf-8"))["tracks"].values()
    except (ValueError, KeyError, AttributeError) as error:
        return [f"{FACTS} cannot be read ({error!r})"]
    return [damage for entry in entries if (damage := damage_of(path, entry)) is not None]


def identity_of(path: Path) -> str | None:
    """Identity of the experiment that wrote a snapshot, None if it does not say."""
    try:
        return str(json.loads((path / FACTS).read_text(encoding="utf-8"))["identity"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_snapshot(path: Path, track: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The network's state dict (fp32, on the CPU) under one EMA track, and the snapshot's facts.

    Facts: format, step, images_seen, tracks {name: {file, bytes, sha256}}, identity, dataset,
    shape [C, H, W], classes, config; of imported weights also imported_from {file, sha256,
    files, format, notes}. Older snapshots name neither shape nor classes: their dataset does.

    Raises:
        CheckpointError: there is no such snapshot or track, or it is damaged.
    """
    facts_file = path / FACTS
    if not facts_file.is_file():
        raise CheckpointError(
            f"{path} is not a snapshot: it has no {FACTS}",
            "name a folder such as snapshots/images-000012800",
        )
    try:
        facts: dict[str, Any] = json.loads(facts_file.read_text(encoding="utf-8"))
        tracks = facts["tracks"]
    except (ValueError, KeyError) as error:
        raise CheckpointError(
            f"{facts_file} cannot be read ({error!r})", "use another snapshot"
        ) from error
    if track not in tracks:
        raise CheckpointError(f"{path} has no EMA track {track!r}", f"it has: {', '.join(tracks)}")
    if (damage := damage_of(path, tracks[track])) is not None:
        raise CheckpointError(f"{path} is damaged: {damage}", "use another snapshot")
    return load_file(path / tracks[track]["file"]), facts


def is_reported(path: Path, identity: str) -> bool:
    """Whether the snapshot callback has returned for this snapshot of that experiment."""
    return (path / REPORTED).exists() and identity_of(path) == identity


def mark_reported(path: Path) -> None:
    """Remember that the snapshot callback has returned."""
    (path / REPORTED).touch()
