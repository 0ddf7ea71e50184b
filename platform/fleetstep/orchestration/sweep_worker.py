"""What an actor of a sweep does with a unit: make its images, extract features, commit the file.

Legend: C channels, H W pixels, D features.
"""

from __future__ import annotations

import functools
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from fleetstep.evaluation.features import Extractor
from fleetstep.evaluation.spec import ExtractorSpec, MetricKind
from fleetstep.exactness import exact_on_cuda
from fleetstep.orchestration.cells import (
    Cell,
    FeatureSpace,
    ReferenceSet,
    SnapshotRef,
    Unit,
    space_of,
)
from fleetstep.orchestration.measures import classifies, extractors_of
from fleetstep.orchestration.pictures import lacks_pictures, write_pictures
from fleetstep.orchestration.references import is_closed
from fleetstep.orchestration.snapshots import load_denoiser, reference_images
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
from fleetstep.sampling.spec import GuidanceSpec

UInt8 = npt.NDArray[np.uint8]

NETWORKS_HELD = 8
"""Networks kept in memory by an actor: breadth-first order comes back to each of them. Each has
first calls of at most `FIRST_CALLS_BYTES` beside it."""


@dataclass(frozen=True)
class UnitSummary:
    """What an actor tells the driver: the results themselves are in files.

    Args:
        digests: SHA-256 of the features in each space, in the sweep's order; none of a reference
            that is closed.
        nfe: network calls per image, counted; the mean over batches for an adaptive solver.
        calls_made: those that were made: fewer where cells share their first call.
        seconds: time the work took; 0 when the files were there already.
        pid: the actor's process.
    """

    digests: tuple[str, ...]
    nfe: float
    calls_made: float
    seconds: float
    pid: int


class _Network:
    """A denoiser and the first calls made with it, of one namespace and rule of labels at a time:
    the cells of a sweep agree on both. Each guidance has calls of its own.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser
        self._start: tuple[int, str] | None = None
        self._first_calls: dict[GuidanceSpec | None, FirstCalls] = {}

    def first_calls_of(self, cell: Cell) -> FirstCalls:
        start = (cell.namespace, cell.labels)
        if self._start != start:
            self._start, self._first_calls = start, {}
        return self._first_calls.setdefault(cell.guidance, FirstCalls())


class SweepWorker:
    """Runs units; holds the extractors and the networks it has met.

    Args:
        storage: root of the results, shared by all actors.
        extractors: images to features; one pass of images feeds all.
        denoiser_of: loads the denoiser of a snapshot's EMA track, in evaluation mode.
        images_of: uint8 NCHW images first ... first+count-1 of a reference set.
        device: where networks run.
        pictures: first images of every cell that are kept.
        classified: names of the extractors whose class probabilities are wanted.
        fault: told of the points of a write.
    """

    def __init__(
        self,
        storage: Path,
        extractors: Sequence[Extractor],
        denoiser_of: Callable[[SnapshotRef, str], Denoiser],
        images_of: Callable[[ReferenceSet, int, int], UInt8],
        *,
        device: torch.device,
        pictures: int = 0,
        classified: Collection[str] = (),
        fault: Fault = no_fault,
    ) -> None:
        self._storage = storage
        self._classified = frozenset(classified)
        self._extractors = [(space_of(extractor), extractor) for extractor in extractors]
        self._denoiser_of, self._images_of = denoiser_of, images_of
        self._device, self._pictures, self._fault = device, pictures, fault
        self._networks: OrderedDict[tuple[str, str], _Network] = OrderedDict()
        self._closed: set[tuple[ReferenceSet, FeatureSpace]] = set()

    def run(self, unit: Unit) -> UnitSummary:
        """Do the unit but for what is there; its files are whole when this returns."""
        started = time.perf_counter()
        wanted = {
            space: extractor
            for space, extractor in self._extractors
            if not self._is_closed(unit, space)
        }
        found = {space: self._found(unit, space, extractor) for space, extractor in wanted.items()}
        if None not in found.values() and not self._wants_pictures(unit):
            return _summary(found.values(), 0.0)
        images, nfe, calls_made = self._images(unit)
        self._keep_pictures(unit, images)
        for space, extractor in wanted.items():
            if found[space] is None:
                found[space] = self._measure(
                    unit, space, extractor, images, nfe, calls_made, started
                )
        return _summary(found.values(), time.perf_counter() - started)

    def _is_closed(self, unit: Unit, space: FeatureSpace) -> bool:
        """Whether another sweep closed the unit's reference since this one was planned: it would
        be done for nobody.
        """
        if not isinstance(unit.source, ReferenceSet):
            return False
        place = (unit.source, space)
        if place not in self._closed and is_closed(self._storage, *place):
            self._closed.add(place)
        return place in self._closed

    def _found(self, unit: Unit, space: FeatureSpace, extractor: Extractor) -> UnitResult | None:
        """A sound result, unless it lacks class probabilities that are wanted."""
        result = read_unit(self._storage, unit, space)
        if extractor.name in self._classified and result is not None:
            return result if result.probabilities is not None else None
        return result

    def _measure(
        self,
        unit: Unit,
        space: FeatureSpace,
        extractor: Extractor,
        images: UInt8,
        nfe: float,
        calls_made: float,
        started: float,
    ) -> UnitResult:
        extracted = extractor(images)
        result = UnitResult(
            extracted.features,
            extracted.probabilities,
            digest_of(extracted.features, extracted.probabilities),
            nfe,
            calls_made,
            time.perf_counter() - started,
            this_hardware(self._device),
        )
        write_unit(self._storage, unit, space, result, self._fault)
        return result

    def _wants_pictures(self, unit: Unit) -> bool:
        return lacks_pictures(self._storage, unit, self._pictures)

    def _keep_pictures(self, unit: Unit, images: UInt8) -> None:
        if isinstance(unit.source, Cell) and self._wants_pictures(unit):
            write_pictures(self._storage, unit.source, images[: self._pictures])

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
                    guidance=cell.guidance,
                    namespace=cell.namespace,
                    first=unit.first,
                    count=unit.count,
                    shape=cell.snapshot.shape,
                    classes=cell.snapshot.classes,
                    batch=cell.batch,
                    labels=cell.labels,
                    dtype=cell.dtype,
                    quantisation=cell.quantisation,
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


def _summary(found: Iterable[UnitResult | None], seconds: float) -> UnitSummary:
    """What is told of a unit's results: they agree on the calls, and are none where its reference
    is closed.
    """
    results = [result for result in found if result is not None]
    nfe, calls_made = (results[0].nfe, results[0].calls_made) if results else (0.0, 0.0)
    digests = tuple(result.digest for result in results)
    return UnitSummary(digests, nfe, calls_made, seconds, os.getpid())


def build_worker(
    storage: Path,
    specs: Sequence[ExtractorSpec],
    *,
    metrics: Collection[MetricKind] = (),
    on_gpu: bool = False,
    pictures: int = 0,
    fault: Fault = no_fault,
) -> SweepWorker:
    """The worker of an actor, from what can be pickled.

    Args:
        storage, pictures, fault: see `SweepWorker`.
        specs: the extractors.
        metrics: what will be measured: some need class probabilities.
        on_gpu: whether networks run on a GPU.

    Raises:
        ExtractorError: an extractor's weights are missing or wrong on this machine.
    """
    device = torch.device("cuda" if on_gpu else "cpu")
    exact_on_cuda(device)
    extractors = extractors_of(specs, metrics, str(device))
    return SweepWorker(
        storage,
        extractors,
        functools.partial(load_denoiser, device=device),
        reference_images,
        device=device,
        pictures=pictures,
        classified=[
            extractor.name
            for spec, extractor in zip(specs, extractors, strict=True)
            if classifies(spec, metrics)
        ],
        fault=fault,
    )
