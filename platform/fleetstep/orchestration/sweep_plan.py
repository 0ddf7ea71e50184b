"""What a sweep will do, before anything runs: cells, units, network calls, and what is skipped.

A cell is everything that decides a sample's bits; the hash of it names its folder, so results are
found again by what they are, never by when or by whom they were made. A unit is 100 consecutive
sample ids of one cell.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fleetstep.errors import SamplingError, UsageError
from fleetstep.orchestration.dispatch import breadth_first
from fleetstep.orchestration.sweep_solvers import (
    Skipped,
    StateDtype,
    reachable,
    reason_of,
    solver_text,
    state_dtype,
)
from fleetstep.sampling.spec import SIGMA_MAX, SIGMA_MIN, AmedSpec, ScheduleFacts, SolverSpec

UNIT = 100
"""Sample ids in a unit: part of the format, because a unit's file name stands for its ids."""

QUICK_BLOCKS, BLOCKS = 10, 20
"""Jackknife blocks of a cell: each is a whole number of units."""

FORMAT = 2
"""Of a cell's identity."""

REFERENCE_FORMAT = 1
"""Of a reference set's identity."""

ADAPTIVE_CALLS = 120
"""Calls per image that plans and progress expect of an adaptive solver, which nobody knows before
it has run: about what FDM's Table 7 counts. Scores hold what was counted."""

_PICTURE_CHANNELS = (1, 3)

LabelRule = Literal["random", "balanced"]


@dataclass(frozen=True, kw_only=True)
class SnapshotRef:
    """A snapshot to be scored: where it is, and the facts of it that a plan needs.

    Args:
        path: the snapshot's folder.
        digest: SHA-256 of its weights and of all that turns them into a denoiser.
        run: name of the training run.
        images_seen: training progress.
        shape: (C, H, W) of a sample.
        classes: number of classes; 0 for an unconditional network.
        data: folder of the dataset it was trained on.
        dataset: fingerprint of that dataset; "" for weights imported without one.
    """

    path: Path
    digest: str
    run: str
    images_seen: int
    shape: tuple[int, int, int]
    classes: int
    data: Path
    dataset: str

    @property
    def draws_pictures(self) -> bool:
        """Whether samples are grey or RGB images; the latents of a VAE have other channels."""
        return self.shape[0] in _PICTURE_CHANNELS


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One snapshot, one solver, one number of network calls: samples numbered 0, 1, 2, ...

    Args:
        snapshot, track: the network.
        solver: with its schedule.
        nfe: network calls per image; None for an adaptive solver.
        labels, namespace: how labels and latents follow from a sample's number.
        batch: fixed batch of the network.
        extractor: SHA-256 of the extractor.
        dtype: of the solver's state.
    """

    snapshot: SnapshotRef
    track: str
    solver: SolverSpec
    nfe: int | None
    labels: LabelRule
    namespace: int
    batch: int
    extractor: str
    dtype: StateDtype = "float64"

    @property
    def schedule(self) -> ScheduleFacts | None:
        """The schedule that is walked; None for an adaptive solver."""
        return None if self.solver.adaptive else self.solver.chosen_schedule

    @property
    def expected_calls(self) -> int:
        """Network calls per image, a guess for an adaptive solver."""
        return ADAPTIVE_CALLS if self.nfe is None else self.nfe

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that decides the bits of a sample's features, as JSON values."""
        return {
            "format": FORMAT,
            "snapshot": self.snapshot.digest,
            "track": self.track,
            # Its schedule follows resolved: naming the default changes nothing.
            "solver": {k: v for k, v in self.solver.identity.items() if k != "schedule"},
            "nfe": self.nfe,
            "schedule": None if self.schedule is None else self.schedule.model_dump(mode="json"),
            "labels": self.labels,
            "namespace": self.namespace,
            "batch": self.batch,
            "extractor": self.extractor,
            "dtype": self.dtype,
            "sigma_range": [SIGMA_MIN, SIGMA_MAX],
        }

    @property
    def key(self) -> str:
        """Content hash of the identity: the name of the cell's folder."""
        return content_hash(self.identity)

    def __str__(self) -> str:
        where = f"{self.snapshot.run} at {self.snapshot.images_seen:,} images"
        calls = "its own" if self.nfe is None else self.nfe
        return f"{solver_text(self.solver)}, {calls} calls, {where}"


@dataclass(frozen=True, kw_only=True)
class ReferenceSet:
    """The images that samples are compared with: a split of a dataset, in the order of its
    manifest.

    Args:
        data: folder of the shards.
        fingerprint: content hash of the dataset.
        split: name of the split.
        samples: images in it.
        extractor: SHA-256 of the extractor.
        preprocess: the extractor's preprocessing.
    """

    data: Path
    fingerprint: str
    split: str
    samples: int
    extractor: str
    preprocess: str

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that decides the statistics' bits."""
        return {
            "format": REFERENCE_FORMAT,
            "dataset": self.fingerprint,
            "split": self.split,
            "extractor": self.extractor,
            "preprocess": self.preprocess,
        }

    @property
    def key(self) -> str:
        """Content hash of the identity."""
        return content_hash(self.identity)

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

    def path(self, storage: Path) -> Path:
        """Where the result is kept."""
        return folder(storage, self.source) / f"unit-{self.index:05d}.safetensors"

    def __str__(self) -> str:
        return f"unit {self.index} of ({self.source})"


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """The work of a sweep.

    Args:
        cells: in the order snapshot, solver, NFE.
        references: one for each dataset that the snapshots were trained on.
        reference_of: what each cell is compared with.
        skipped: pairs of the grid that no solver setting reaches.
        samples: sample ids of each cell.
        units: all units of cells and references, in the order in which they shall start.
        finished: those of `units` whose results were found.
    """

    cells: tuple[Cell, ...]
    references: tuple[ReferenceSet, ...]
    reference_of: dict[Cell, ReferenceSet]
    skipped: tuple[Skipped, ...]
    samples: int
    units: tuple[Unit, ...]
    finished: frozenset[Unit] = field(default_factory=frozenset)

    @property
    def blocks(self) -> int:
        """Jackknife blocks of each cell."""
        return blocks_of(self.samples)

    @property
    def remaining(self) -> tuple[Unit, ...]:
        """The units still to do, in order."""
        return tuple(unit for unit in self.units if unit not in self.finished)

    @property
    def network_calls(self) -> int:
        """Evaluations of a network on one image, over the whole grid."""
        return network_calls(self.units)

    @property
    def remaining_network_calls(self) -> int:
        """Evaluations of a network on one image that are still to do."""
        return network_calls(self.remaining)


def network_calls(units: Iterable[Unit]) -> int:
    """Evaluations of a network on one image: the measure of cost, and of progress.

    First calls that cells share are counted for each; an adaptive solver's are a guess.
    """
    return sum(u.count * u.source.expected_calls for u in units if isinstance(u.source, Cell))


def content_hash(identity: dict[str, Any]) -> str:
    """20 hex digits of SHA-256 over canonical JSON."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def folder(storage: Path, source: Cell | ReferenceSet) -> Path:
    """The folder of a cell's units, or of a reference set's."""
    return storage / ("sweeps" if isinstance(source, Cell) else "references") / source.key


def blocks_of(samples: int) -> int:
    """20 blocks where they are whole units, else 10.

    Raises:
        UsageError: `samples` cannot be cut into 10 blocks of whole units.
    """
    quick, full = QUICK_BLOCKS * UNIT, BLOCKS * UNIT
    if samples <= 0 or samples % quick:
        nearest = max(quick, round(samples / quick) * quick)
        raise UsageError(
            f"samples per cell must be a multiple of {quick:,} ({QUICK_BLOCKS} blocks of "
            f"whole units of {UNIT}), got {samples:,}",
            f"use {nearest:,}; multiples of {full:,} give {BLOCKS} blocks",
        )
    return BLOCKS if samples % full == 0 else QUICK_BLOCKS


def units_of(source: Cell | ReferenceSet, samples: int) -> list[Unit]:
    """Ids 0 ... samples-1 cut into units; only a reference set's last one may be short."""
    return [
        Unit(source, index, min(UNIT, samples - index * UNIT))
        for index in range((samples + UNIT - 1) // UNIT)
    ]


def refuse_latents(snapshots: Iterable[SnapshotRef]) -> None:
    """Refuse snapshots whose samples are no pictures: an extractor sees nothing else.

    Raises:
        UsageError: it names the first of them.
    """
    for snapshot in snapshots:
        if not snapshot.draws_pictures:
            raise UsageError(
                f"{snapshot.run} cannot be scored: its samples are {shape_text(snapshot.shape)}, "
                "and features are of images with 1 or 3 channels",
                "leave it out; latents can be scored once they can be decoded by their VAE, which "
                "this version cannot do yet",
            )


def shape_text(shape: tuple[int, int, int]) -> str:
    """A shape as messages write it: "4 x 32 x 32"."""
    return " x ".join(map(str, shape))


def _misfit(cell: Cell) -> Skipped | None:
    """Why the cell's predictor cannot be used on its snapshot."""
    if not isinstance(cell.solver, AmedSpec):
        return None
    try:
        cell.solver.check_network(cell.snapshot.digest, cell.track, None)
    except SamplingError as error:
        where = f"{cell.solver.label} on {cell.snapshot.run}"
        return Skipped(where, cell.expected_calls, reason_of(error))
    return None


def nothing_to_score(skipped: Sequence[Skipped]) -> UsageError:
    """The refusal of a grid of which nothing can be run."""
    reasons = "; ".join(f"{s.solver} at {s.nfe}: {s.reason}" for s in skipped)
    return UsageError(
        "nothing to score: no snapshot, solver and NFE fit together "
        f"({reasons or 'no snapshots'})",
        "name at least one snapshot, and a number of calls that a solver can reach",
    )


def plan_sweep(
    snapshots: Sequence[tuple[SnapshotRef, ReferenceSet]],
    *,
    solvers: Sequence[SolverSpec],
    nfe: Sequence[int],
    samples: int,
    track: str,
    namespace: int,
    labels: LabelRule,
    batch: int,
    extractor: str,
    dtype: StateDtype = "float64",
    finished: Callable[[Unit], bool],
) -> SweepPlan:
    """The product of snapshots, solvers and NFE as cells and units.

    Args:
        snapshots: each with the reference set of the dataset it was trained on.
        solvers: each with its settings and schedule; two that agree are one.
        nfe: network calls for each image, where the solver leaves the choice.
        samples: sample ids of each cell.
        track: the EMA track.
        namespace: names the stream of latents; cells share it, so that differences are paired.
        labels: the rule that gives sample i its class.
        batch: fixed batch of the network inside a unit.
        extractor: SHA-256 of the extractor.
        dtype: of the solvers' state.
        finished: says whether a unit's result is already there and sound.

    Raises:
        UsageError: `samples` makes no whole blocks, nothing of the grid can be run, or a snapshot
            draws latents.
    """
    blocks_of(samples)
    refuse_latents(snapshot for snapshot, _ in snapshots)
    pairs, skipped = reachable(solvers, nfe)
    references: dict[str, ReferenceSet] = {}
    reference_of: dict[Cell, ReferenceSet] = {}
    for snapshot, reference in snapshots:
        for solver, calls in pairs:
            cell = Cell(
                snapshot=snapshot,
                track=track,
                solver=solver,
                nfe=calls,
                labels=labels,
                namespace=namespace,
                batch=batch,
                extractor=extractor,
                dtype=state_dtype(solver, dtype),
            )
            if (misfit := _misfit(cell)) is not None:
                skipped.append(misfit)
                continue
            # A dataset has one reference, however many copies of its folder there are.
            reference_of[cell] = references.setdefault(reference.key, reference)
    if not reference_of:
        raise nothing_to_score(skipped)
    # Runs that start from the same weights share samples: one set of units, a score for each.
    sampled = {cell.key: cell for cell in reversed(reference_of)}
    # References first: with them done, every cell can be scored from the moment it closes.
    units = [
        *breadth_first(
            [units_of(reference, reference.samples) for reference in references.values()]
        ),
        *breadth_first([units_of(c, samples) for c in reference_of if sampled[c.key] is c]),
    ]
    return SweepPlan(
        cells=tuple(reference_of),
        references=tuple(references.values()),
        reference_of=reference_of,
        skipped=tuple(skipped),
        samples=samples,
        units=tuple(units),
        finished=frozenset(unit for unit in units if finished(unit)),
    )
