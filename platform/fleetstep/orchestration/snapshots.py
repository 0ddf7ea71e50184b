"""Networks as sampling and sweeps see them: found, described and loaded; and their data.

A network is a snapshot of a run, or the exact denoiser of a packed dataset (`exact:FOLDER`).
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ValidationError
from torch import Tensor

from fleetstep.config import Experiment
from fleetstep.data.manifest import Manifest, load_manifest
from fleetstep.data.spec import DataSpec
from fleetstep.data.stream import Stream
from fleetstep.diffusion.precondition import Denoiser as TrainedDenoiser
from fleetstep.errors import CheckpointError, DataError
from fleetstep.orchestration import exact_sources
from fleetstep.orchestration.cells import ReferenceSet, SnapshotRef
from fleetstep.orchestration.exact_sources import exact_source, exact_text
from fleetstep.orchestration.pieces import network_of, objective_of
from fleetstep.sampling.denoiser import Denoiser
from fleetstep.training.snapshot import FACTS, read_snapshot

UInt8 = npt.NDArray[np.uint8]


def find_snapshots(
    sources: Sequence[str], *, which: Literal["last", "all"], track: str
) -> list[SnapshotRef]:
    """The networks that sources name, in the order given.

    Args:
        sources: run folders, single snapshot folders, or `exact:FOLDER`.
        which: of a run folder, its last snapshot, or all of them in order of training.
        track: the EMA track that will be sampled; an exact denoiser has none and takes any.

    Raises:
        CheckpointError: a source holds no snapshot, or one is damaged or has no such track.
        DataError: the dataset of an exact denoiser or of an older snapshot is missing or has
            changed.
        UsageError: a source asks for an exact denoiser of no images.
    """
    return [found for source in sources for found in _found(source, which, track)]


def _found(source: str, which: Literal["last", "all"], track: str) -> list[SnapshotRef]:
    if (exact := exact_source(source)) is not None:
        return [exact_sources.describe_exact(exact)]
    return [describe_snapshot(path, track) for path in _snapshots_in(Path(source), which)]


def track_of(snapshot: SnapshotRef, track: str) -> str:
    """The EMA track as plans and records name it: "exact" for an exact denoiser."""
    return track if snapshot.kind == "snapshot" else exact_sources.TRACK


def source_of(snapshot: SnapshotRef) -> str:
    """The source that names this network alone."""
    return str(snapshot.path) if snapshot.kind == "snapshot" else exact_text(snapshot)


def _snapshots_in(source: Path, which: Literal["last", "all"]) -> list[Path]:
    if (source / FACTS).is_file():
        return [source]
    found = sorted(file.parent for file in source.glob(f"snapshots/images-*/{FACTS}"))
    if not found:
        raise CheckpointError(
            f"{source} is neither a run folder with snapshots nor a snapshot",
            "name a folder such as runs/digits-edm or runs/digits-edm/snapshots/images-000012800; "
            "a run writes its first snapshot before its first step",
        )
    return found if which == "all" else found[-1:]


def describe_snapshot(path: Path, track: str) -> SnapshotRef:
    """What a plan needs to know of a snapshot.

    Raises:
        CheckpointError: it is missing, damaged, or has no such track.
        DataError: it is an older one that does not name the shape of its images, and the dataset
            it was trained on is missing or has changed.
    """
    _, facts = read_snapshot(path, track)
    experiment = _experiment(path, facts)
    shape, classes = _images(path, experiment, facts)
    return SnapshotRef(
        path=path.resolve(),
        digest=_digest(facts, track, experiment, shape, classes),
        run=experiment.name,
        images_seen=facts["images_seen"],
        shape=shape,
        classes=classes,
        data=Path(experiment.data.path).resolve(),
        dataset=facts["dataset"],
    )


def trained_experiment(snapshot: SnapshotRef) -> Experiment:
    """The experiment that a snapshot says it is of; of imported weights, its defaults elsewhere.

    Raises:
        CheckpointError: its facts cannot be read, or it is an exact denoiser.
    """
    _refuse_exact(snapshot)
    try:
        facts = json.loads((snapshot.path / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{snapshot.path / FACTS} cannot be read ({error!r})", "use another snapshot"
        ) from error
    return _experiment(snapshot.path, facts)


def load_denoiser(snapshot: SnapshotRef, track: str, *, device: torch.device) -> Denoiser:
    """The denoiser of a network, in evaluation mode, on `device`.

    Raises:
        CheckpointError: the snapshot is damaged, or it or an exact denoiser's dataset has changed
            since it was described.
        DataError: an exact denoiser's dataset is missing or damaged.
    """
    if snapshot.kind == "exact":
        return exact_sources.load_exact(snapshot, device=device)
    return load_trained(snapshot, track, device=device)


def load_trained(snapshot: SnapshotRef, track: str, *, device: torch.device) -> TrainedDenoiser:
    """The denoiser of a snapshot's EMA track, with its network and that network's features.

    Raises:
        CheckpointError: the snapshot is damaged, has changed since it was described, or is an
            exact denoiser.
    """
    _refuse_exact(snapshot)
    weights, facts = read_snapshot(snapshot.path, track)
    experiment = _experiment(snapshot.path, facts)
    if _digest(facts, track, experiment, snapshot.shape, snapshot.classes) != snapshot.digest:
        raise CheckpointError(
            f"the snapshot at {snapshot.path} has changed since it was chosen",
            "start again with the snapshot that is there now",
        )
    return build_denoiser(experiment, snapshot.shape, snapshot.classes, weights, device=device)


def _refuse_exact(snapshot: SnapshotRef) -> None:
    if snapshot.kind == "exact":
        raise CheckpointError(
            f"{source_of(snapshot)} is an exact denoiser: it was not trained, and has no network "
            "with bottleneck features",
            "name a run folder or a snapshot folder",
        )


def build_denoiser(
    experiment: Experiment,
    shape: tuple[int, int, int],
    classes: int,
    weights: Mapping[str, Tensor],
    *,
    device: torch.device,
) -> TrainedDenoiser:
    """The denoiser of an experiment with these weights, in evaluation mode.

    Args:
        experiment: its network, process and strategies (FDM changes the preconditioning).
        shape: (C, H, W) of an image.
        classes: number of classes, 0 for an unconditional network.
        weights: state dict of the network.
        device: where to put it.
    """
    network = network_of(experiment, shape, classes)
    network.load_state_dict(dict(weights))
    return objective_of(experiment).denoiser(network.requires_grad_(False)).to(device).eval()


def reference_of(snapshot: SnapshotRef, split: str) -> ReferenceSet:
    """The images of `split` of the dataset that the snapshot's run was trained on.

    Raises:
        DataError: the snapshot names no dataset, or the dataset is missing, has changed or has no
            such split.
    """
    if not snapshot.dataset:
        raise DataError(
            f"{snapshot.run} was imported, and names no dataset to compare its samples with",
            "import it again with --data and the folder of a packed dataset",
        )
    manifest = _manifest(snapshot.path, snapshot.data, snapshot.dataset)
    if not manifest.splits.get(split):
        raise DataError(
            f"{snapshot.data} has no split {split!r} to compare {snapshot.run} with",
            f"set reference_split to one of: {', '.join(manifest.splits)}",
        )
    return ReferenceSet(
        data=snapshot.data,
        fingerprint=manifest.fingerprint,
        split=split,
        samples=manifest.samples(split),
    )


def reference_images(reference: ReferenceSet, first: int, count: int) -> UInt8:
    """Images first ... first+count-1 of a reference set, uint8 [n, C, H, W].

    Raises:
        DataError: they cannot be read, or the dataset has changed since the sweep was planned.
    """
    stream = _stream(reference.data, reference.split)
    if stream.fingerprint != reference.fingerprint:
        raise DataError(
            f"the dataset at {reference.data} is not the one that the sweep was planned for: "
            f"{stream.fingerprint[:12]} instead of {reference.fingerprint[:12]}",
            "put it back, or start the sweep again",
        )
    return stream.split(reference.split, first, count).images


@functools.lru_cache(maxsize=4)
def _stream(data: Path, split: str) -> Stream:
    """Opened once in a process: units come back to it."""
    return Stream(DataSpec(path=str(data), split=split), seed=0)


# What an imported snapshot does not say, and no denoiser depends on.
_UNSAID = {"data": {"path": "."}, "training": {"images": 1, "global_batch": 1}}


def _experiment(path: Path, facts: Mapping[str, Any]) -> Experiment:
    try:
        unsaid = _UNSAID if "imported_from" in facts else {}
        return Experiment.model_validate(unsaid | facts["config"])
    except (KeyError, TypeError, ValidationError) as error:
        raise CheckpointError(
            f"the configuration in {path / FACTS} is not one of this version: {error}",
            "use the version of fleetstep that wrote the snapshot",
        ) from error


def _images(
    path: Path, experiment: Experiment, facts: Mapping[str, Any]
) -> tuple[tuple[int, int, int], int]:
    """(shape, classes) of the images that a snapshot is for: its own facts, or its dataset's."""
    if facts.get("shape") is None:
        manifest = _manifest(path, Path(experiment.data.path), facts["dataset"])
        return manifest.shape, manifest.classes
    channels, height, width = facts["shape"]
    return (channels, height, width), facts["classes"]


def _manifest(path: Path, data: Path, fingerprint: str) -> Manifest:
    manifest = load_manifest(data)
    if manifest.fingerprint != fingerprint:
        raise DataError(
            f"{path} was trained on dataset {fingerprint[:12]}, but {data} "
            f"now holds {manifest.fingerprint[:12]}",
            "put the dataset back that the run was trained on",
        )
    return manifest


def _digest(
    facts: Mapping[str, Any],
    track: str,
    experiment: Experiment,
    shape: tuple[int, int, int],
    classes: int,
) -> str:
    """SHA-256 of the weights' hash and of all that turns weights into a denoiser."""
    parts = {
        "weights": facts["tracks"][track]["sha256"],
        "shape": shape,
        "classes": classes,
        **experiment.model_dump(mode="json", include={"network", "process", "strategies"}),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
