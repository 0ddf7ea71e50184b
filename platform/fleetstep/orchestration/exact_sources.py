"""A packed dataset where a run or a snapshot can stand: `exact:FOLDER` is its exact denoiser.

Sampling it needs no weights and no training, so solvers, sweeps and metrics can be tried end to
end, with an outcome that is known: enough network calls give back the dataset.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch

from fleetstep.data.manifest import FILE_NAME, Manifest, load_manifest
from fleetstep.data.shards import Int64, ShardReader, UInt8
from fleetstep.errors import CheckpointError, DataError, UsageError
from fleetstep.evaluation.reference import kept_ids
from fleetstep.orchestration.cells import SnapshotRef
from fleetstep.sampling.finite import FiniteDenoiser

TRACK: Final = "exact"
"""What stands for the EMA track of an exact denoiser, which has none."""

SPLIT: Final = "train"

_PREFIX = "exact:"
_COUNT = re.compile(r"[1-9]\d*")


@dataclass(frozen=True)
class ExactSource:
    """What `exact:FOLDER` or `exact:FOLDER#N` names.

    Args:
        folder: of the packed dataset.
        images: N, that many images spaced evenly over the split; None for all.
    """

    folder: Path
    images: int | None

    @property
    def how_to_pack(self) -> str:
        """What to do if it is not there."""
        return f"pack a dataset, e.g. `fleetstep data pack digits --out {self.folder}`"


def exact_source(source: str) -> ExactSource | None:
    """`source` if it names an exact denoiser; None for a run or a snapshot.

    Raises:
        UsageError: the number of images is none.
    """
    if not source.startswith(_PREFIX):
        return None
    folder, hash_, images = source.removeprefix(_PREFIX).partition("#")
    if not folder or (hash_ and not _COUNT.fullmatch(images)):
        raise UsageError(
            "an exact denoiser is exact:FOLDER for all images of a packed dataset, or "
            f"exact:FOLDER#N for N of them, N from 1 on, got {source!r}",
            "write for example exact:data/digits or exact:data/digits#500",
        )
    return ExactSource(Path(folder).expanduser(), int(images) if hash_ else None)


def exact_text(snapshot: SnapshotRef) -> str:
    """The source that names an exact denoiser."""
    return f"{_PREFIX}{snapshot.data}#{snapshot.images}"


def describe_exact(source: ExactSource) -> SnapshotRef:
    """What a plan needs to know of an exact denoiser.

    Raises:
        DataError: the dataset is missing or damaged, has too few images, or those used lack a
            class.
    """
    manifest = _manifest(source)
    everything = manifest.samples(SPLIT)
    images = everything if source.images is None else source.images
    if images > everything:
        raise DataError(
            f"exact:{source.folder}#{images} asks for more images than the {everything} of split "
            f"{SPLIT}",
            f"use #{everything} at most, or leave the number out for all of them",
        )
    _check_classes(source, manifest, images)
    return SnapshotRef(
        path=source.folder.resolve(),
        digest=_digest(manifest, images),
        run=f"exact-{manifest.name}" + ("" if images == everything else f"-{images}"),
        images_seen=0,
        shape=manifest.shape,
        classes=manifest.classes,
        data=source.folder.resolve(),
        dataset=manifest.fingerprint,
        kind="exact",
        images=images,
    )


def load_exact(snapshot: SnapshotRef, *, device: torch.device) -> FiniteDenoiser:
    """The denoiser that `describe_exact` described, on `device`.

    Raises:
        CheckpointError: the dataset has changed since.
        DataError: the dataset is missing or damaged.
    """
    manifest = load_manifest(snapshot.data)
    if _digest(manifest, snapshot.images) != snapshot.digest:
        raise CheckpointError(
            f"the dataset at {snapshot.data} has changed since it was chosen",
            "start again with the dataset that is there now",
        )
    images, labels = _read(snapshot.data, manifest, snapshot.images)
    return FiniteDenoiser(images, labels, manifest.classes).to(device)


def _manifest(source: ExactSource) -> Manifest:
    if not (source.folder / FILE_NAME).is_file():
        raise DataError(
            f"exact:{source.folder} is not there: the folder holds no packed dataset",
            source.how_to_pack,
        )
    manifest = load_manifest(source.folder)
    if not manifest.splits.get(SPLIT):
        raise DataError(
            f"exact:{source.folder} needs split {SPLIT!r}, and the dataset has "
            f"{', '.join(manifest.splits)}",
            source.how_to_pack,
        )
    return manifest


def _check_classes(source: ExactSource, manifest: Manifest, images: int) -> None:
    """Labels are drawn from all classes, so each of them needs an image."""
    counts = np.asarray(manifest.class_histogram[SPLIT])
    if images < manifest.samples(SPLIT):
        _, labels = _read(source.folder, manifest, images)
        counts = np.bincount(labels + 1, minlength=manifest.classes + 1)[1:]
    if not counts.all():
        missing = manifest.class_names[int(counts.argmin())]
        raise DataError(
            f"exact:{source.folder} with {images} images has none of class {missing!r}, and a "
            "denoiser of that class does not exist",
            "use more images, so that every class has one",
        )


def _read(folder: Path, manifest: Manifest, images: int) -> tuple[UInt8, Int64]:
    """Evenly spaced images [n, C, H, W] of the split, and their labels [n]."""
    reader = ShardReader(folder, manifest, SPLIT)
    try:
        return reader.read(np.array(kept_ids(manifest.samples(SPLIT), images)))
    finally:
        reader.close()


def _digest(manifest: Manifest, images: int) -> str:
    """SHA-256 of what decides the denoiser: which images it is of."""
    parts = ["exact", manifest.fingerprint, SPLIT, images]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
