"""What an actor of a sweep does with a unit: make its images, extract features, commit the file.

Legend: C channels, H W pixels, D features.
"""

from __future__ import annotations

import functools
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from fleetstep.evaluation.features import Extractor, load_extractor
from fleetstep.evaluation.spec import ExtractorSpec
from fleetstep.exactness import exact_on_cuda
from fleetstep.orchestration.snapshots import load_denoiser, reference_images
from fleetstep.orchestration.sweep_plan import Cell, ReferenceSet, SnapshotRef, Unit
from fleetstep.orchestration.units import (
    Fault,
    UnitResult,
    digest_of,
    no_fault,
    read_unit,
    this_hardware,
    write_unit,
)
from fleetstep.sampling.denoiser import Denoiser
from fleetstep.sampling.first_calls import FirstCalls
from fleetstep.sampling.generate import generate

UInt8 = npt.NDArray[np.uint8]

NETWORKS_HELD = 8
"""Networks kept in memory by an actor: breadth-first order comes back to each of them. Each has
first calls of at most `FIRST_CALLS_BYTES` beside it."""


@dataclass(frozen=True)
class UnitSummary:
    """What an actor tells the driver: the result itself is in the file.

    Args:
        digest: SHA-256 of the features.
        nfe: network calls per image, counted; the mean over batches for an adaptive solver.
        calls_made: those that were made: fewer where cells share their first call.
        seconds: time the work took; 0 when the file was there already.
        pid: the actor's process.
    """

    digest: str
    nfe: float
    calls_made: float
    seconds: float
    pid: int


class _Network:
    """A denoiser and the first calls made with it, of one namespace and rule of labels at a time:
    the cells of a sweep agree on both.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser
        self._first_calls: tuple[tuple[int, str], FirstCalls] | None = None

    def first_calls_of(self, cell: Cell) -> FirstCalls:
        start = (cell.namespace, cell.labels)
        if self._first_calls is None or self._first_calls[0] != start:
            self._first_calls = (start, FirstCalls())
        return self._first_calls[1]


class SweepWorker:
    """Runs units; holds the extractor and the networks it has met.

    Args:
        storage: root of the results, shared by all actors.
        extractor: images to features.
        denoiser_of: loads the denoiser of a snapshot's EMA track, in evaluation mode.
        images_of: uint8 NCHW images first ... first+count-1 of a reference set.
        device: where networks run.
        fault: told of the points of a write.
    """

    def __init__(
        self,
        storage: Path,
        extractor: Extractor,
        denoiser_of: Callable[[SnapshotRef, str], Denoiser],
        images_of: Callable[[ReferenceSet, int, int], UInt8],
        *,
        device: torch.device,
        fault: Fault = no_fault,
    ) -> None:
        self._storage, self._extractor = storage, extractor
        self._denoiser_of, self._images_of = denoiser_of, images_of
        self._device, self._fault = device, fault
        self._networks: OrderedDict[tuple[str, str], _Network] = OrderedDict()

    def run(self, unit: Unit) -> UnitSummary:
        """Do the unit unless its file is there; the file is whole when this returns."""
        path = unit.path(self._storage)
        if (found := read_unit(path, unit)) is not None:
            return UnitSummary(found.digest, found.nfe, found.calls_made, 0.0, os.getpid())
        started = time.perf_counter()
        images, nfe, calls_made = self._images(unit)
        features = self._extractor(images)
        result = UnitResult(
            features,
            digest_of(features),
            nfe,
            calls_made,
            time.perf_counter() - started,
            this_hardware(self._device),
        )
        write_unit(path, unit, result, self._fault)
        return UnitSummary(result.digest, nfe, calls_made, result.seconds, os.getpid())

    def _images(self, unit: Unit) -> tuple[UInt8, float, float]:
        """The unit's images, the network calls that each of them counts, and those made."""
        match unit.source:
            case ReferenceSet() as reference:
                return self._images_of(reference, unit.first, unit.count), 0, 0
            case Cell() as cell:
                network = self._network(cell)
                generated = generate(
                    network.denoiser,
                    cell.solver,
                    cell.nfe,
                    namespace=cell.namespace,
                    first=unit.first,
                    count=unit.count,
                    shape=cell.snapshot.shape,
                    classes=cell.snapshot.classes,
                    batch=cell.batch,
                    labels=cell.labels,
                    dtype=cell.dtype,
                    first_calls=network.first_calls_of(cell),
                )
                return generated.images, generated.nfe, generated.calls_made

    def _network(self, cell: Cell) -> _Network:
        key = (cell.snapshot.digest, cell.track)
        if key not in self._networks:
            if len(self._networks) >= NETWORKS_HELD:
                self._networks.popitem(last=False)
            self._networks[key] = _Network(self._denoiser_of(cell.snapshot, cell.track))
        self._networks.move_to_end(key)
        return self._networks[key]


def build_worker(
    storage: Path, extractor: ExtractorSpec, *, on_gpu: bool = False, fault: Fault = no_fault
) -> SweepWorker:
    """The worker of an actor, from what can be pickled.

    Raises:
        ExtractorError: the extractor's weights are missing or wrong on this machine.
    """
    device = torch.device("cuda" if on_gpu else "cpu")
    exact_on_cuda(device)
    return SweepWorker(
        storage,
        load_extractor(extractor, str(device)),
        functools.partial(load_denoiser, device=device),
        reference_images,
        device=device,
        fault=fault,
    )
