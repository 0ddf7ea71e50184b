"""What is sampled and measured: snapshots, cells, reference sets, and units of their images.

A cell is everything that decides a sample's bits; the hash of it names its folder, so results are
found again by what they are, never by when or by whom they were made. A unit is 100 consecutive
sample ids of one cell. What the images are measured in, a feature space, names a unit's files: one
pass of images feeds any number of them.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fleetstep.evaluation.features import Extractor
from fleetstep.evaluation.spec import IMAGE_CHANNELS, Quantisation
from fleetstep.orchestration.sweep_solvers import StateDtype, solver_text
from fleetstep.sampling.spec import (
    SIGMA_MAX,
    SIGMA_MIN,
    GuidanceSpec,
    ScheduleFacts,
    SolverSpec,
)

UNIT = 100
"""Sample ids in a unit: part of the format, because a unit's file name stands for its ids."""

FORMAT = 3
"""Of a cell's identity."""

REFERENCE_FORMAT = 2
"""Of a reference set's identity."""

ADAPTIVE_CALLS = 120
"""Calls per image that plans and progress expect of an adaptive solver, which nobody knows before
it has run: about what FDM's Table 7 counts. Scores hold what was counted."""

LabelRule = Literal["random", "balanced"]


@dataclass(frozen=True, kw_only=True)
class SnapshotRef:
    """A network to be scored: where it is, and the facts of it that a plan needs.

    Args:
        path: the snapshot's folder; of an exact denoiser, the dataset's.
        digest: SHA-256 of its weights and of all that turns them into a denoiser.
        run: name of the training run.
        images_seen: training progress.
        shape: (C, H, W) of a sample.
        classes: number of classes; 0 for an unconditional network.
        data: folder of the dataset it was trained on.
        dataset: fingerprint of that dataset; "" for weights imported without one.
        kind: "exact" is the exact denoiser of a finite dataset, which has no weights.
        images: of an exact denoiser's dataset; 0 for a snapshot.
    """

    path: Path
    digest: str
    run: str
    images_seen: int
    shape: tuple[int, int, int]
    classes: int
    data: Path
    dataset: str
    kind: Literal["snapshot", "exact"] = "snapshot"
    images: int = 0

    @property
    def draws_pictures(self) -> bool:
        """Whether samples are grey or RGB images; the latents of a VAE have other channels."""
        return self.shape[0] in IMAGE_CHANNELS


@dataclass(frozen=True, kw_only=True)
class FeatureSpace:
    """What images are measured in: an extractor, as files are named by it.

    Args:
        name: of the extractor.
        sha256: of its weights.
        preprocess: from image to its input.
    """

    name: str
    sha256: str
    preprocess: str

    @functools.cached_property
    def key(self) -> str:
        """Twelve hex digits of the content hash."""
        return content_hash(
            {"name": self.name, "sha256": self.sha256, "preprocess": self.preprocess}
        )[:12]


def space_of(extractor: Extractor) -> FeatureSpace:
    """The space of an extractor's features."""
    return FeatureSpace(
        name=extractor.name, sha256=extractor.digest, preprocess=extractor.preprocess
    )


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One network, one solver, one number of network calls: samples numbered 0, 1, 2, ...

    Args:
        snapshot, track: the network.
        solver: with its schedule.
        nfe: network calls per image, guidance's included; None for an adaptive solver.
        guidance: classifier-free guidance; None for none.
        labels, namespace: how labels and latents follow from a sample's number.
        batch: fixed batch of the network.
        dtype: of the solver's state.
        quantisation: from the sampler's numbers to pixels.
    """

    snapshot: SnapshotRef
    track: str
    solver: SolverSpec
    nfe: int | None
    labels: LabelRule
    namespace: int
    batch: int
    guidance: GuidanceSpec | None = None
    dtype: StateDtype = "float64"
    quantisation: Quantisation = "round"

    @property
    def schedule(self) -> ScheduleFacts | None:
        """The schedule that is walked; None for an adaptive solver."""
        return None if self.solver.adaptive else self.solver.chosen_schedule

    @property
    def expected_calls(self) -> int:
        """Network calls per image, a guess for an adaptive solver."""
        return ADAPTIVE_CALLS if self.nfe is None else self.nfe

    @property
    def deterministic(self) -> bool:
        """Whether an image follows from its latent alone, whatever images share its batch."""
        return not (self.solver.stochastic or self.solver.adaptive)

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that decides a sample's bits, as JSON values."""
        return {
            "format": FORMAT,
            "snapshot": self.snapshot.digest,
            "track": self.track,
            # Its schedule follows resolved: naming the default changes nothing.
            "solver": {k: v for k, v in self.solver.identity.items() if k != "schedule"},
            "nfe": self.nfe,
            "schedule": None if self.schedule is None else self.schedule.model_dump(mode="json"),
            "guidance": None if self.guidance is None else self.guidance.model_dump(mode="json"),
            "labels": self.labels,
            "namespace": self.namespace,
            "batch": self.batch,
            "dtype": self.dtype,
            "quantisation": self.quantisation,
            "sigma_range": [SIGMA_MIN, SIGMA_MAX],
        }

    @functools.cached_property
    def key(self) -> str:
        """Content hash of the identity: the name of the cell's folder."""
        return content_hash(self.identity)

    @property
    def facts(self) -> dict[str, Any]:
        """What files that people read say of it."""
        return {
            "key": self.key,
            "run": self.snapshot.run,
            "images_seen": self.snapshot.images_seen,
            "ema": self.track,
            "solver": solver_text(self.solver),
            "nfe": self.nfe,
            "guidance": guidance_text(self.guidance),
        }

    def __str__(self) -> str:
        where = f"{self.snapshot.run} at {self.snapshot.images_seen:,} images"
        if self.snapshot.kind == "exact":
            where = self.snapshot.run
        calls = "its own" if self.nfe is None else self.nfe
        guided = "" if self.guidance is None else f", {guidance_text(self.guidance)}"
        return f"{solver_text(self.solver)}, {calls} calls{guided}, {where}"


def guidance_text(guidance: GuidanceSpec | None) -> str:
    """Guidance as records name it: "cfg 1.5"; "" for none."""
    if guidance is None:
        return ""
    some = "" if guidance.channels == "all" else f" on {guidance.channels}"
    return f"cfg {guidance.scale:g}{some}"


@dataclass(frozen=True, kw_only=True)
class ReferenceSet:
    """The images that samples are compared with: a split of a dataset, in the order of its
    manifest.

    Args:
        data: folder of the shards.
        fingerprint: content hash of the dataset.
        split: name of the split.
        samples: images in it.
    """

    data: Path
    fingerprint: str
    split: str
    samples: int

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that decides which images they are."""
        return {
            "format": REFERENCE_FORMAT,
            "dataset": self.fingerprint,
            "split": self.split,
        }

    @functools.cached_property
    def key(self) -> str:
        """Content hash of the identity: the name of the reference's folder."""
        return content_hash(self.identity)

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.data.name}/{self.split}"

    def __str__(self) -> str:
        return f"reference {self.split} of {self.data.name}"


@dataclass(frozen=True)
class Unit:
    """Consecutive ids of one cell, or of one reference set: first ... first + count - 1."""

    source: Cell | ReferenceSet
    index: int
    count: int

    @property
    def first(self) -> int:
        """The first id."""
        return self.index * UNIT

    def path(self, storage: Path, space: FeatureSpace) -> Path:
        """Where its features in that space are kept."""
        return folder(storage, self.source) / f"unit-{self.index:05d}.{space.key}.safetensors"

    def __str__(self) -> str:
        return f"unit {self.index} of ({self.source})"


def pictures_path(storage: Path, cell: Cell) -> Path:
    """Where the first images of a cell are kept."""
    return folder(storage, cell) / "pictures.safetensors"


def content_hash(identity: dict[str, Any]) -> str:
    """20 hex digits of SHA-256 over canonical JSON."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def folder(storage: Path, source: Cell | ReferenceSet) -> Path:
    """The folder of a cell's units, or of a reference set's."""
    return storage / ("cells" if isinstance(source, Cell) else "references") / source.key


def units_of(source: Cell | ReferenceSet, samples: int, first: int = 0) -> list[Unit]:
    """Ids first ... first+samples-1 cut into units, `first` at a unit's start; only a reference
    set's last one may be short.
    """
    start = first // UNIT
    return [
        Unit(source, start + index, min(UNIT, samples - index * UNIT))
        for index in range((samples + UNIT - 1) // UNIT)
    ]


def shape_text(shape: tuple[int, int, int]) -> str:
    """A shape as messages write it: "4 x 32 x 32"."""
    return " x ".join(map(str, shape))
