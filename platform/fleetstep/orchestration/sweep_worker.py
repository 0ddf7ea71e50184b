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
from fleetstep.sampling.generate import generate
from fleetstep.sampling.trajectory import Denoiser

UInt8 = npt.NDArray[np.uint8]

NETWORKS_HELD = 8
"""Networks kept in memory by an actor: breadth-first order comes back to each of them."""


@dataclass(frozen=True)
class UnitSummary:
    """What an actor tells the driver: the result itself is in the file.

    Args:
        digest: SHA-256 of the features.
        nfe: network calls per image, counted.
        seconds: time the work took; 0 when the file was there already.
        pid: the actor's process.
    """

    digest: str
    nfe: int
    seconds: float
    pid: int


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
        self._denoisers: OrderedDict[tuple[str, str], Denoiser] = OrderedDict()

    def run(self, unit: Unit) -> UnitSummary:
        """Do the unit unless its file is there; the file is whole when this returns."""
        path = unit.path(self._storage)
        if (found := read_unit(path, unit)) is not None:
            return UnitSummary(found.digest, found.nfe, 0.0, os.getpid())
        started = time.perf_counter()
        images, nfe = self._images(unit)
        features = self._extractor(images)
        result = UnitResult(
            features,
            digest_of(features),
            nfe,
            time.perf_counter() - started,
            this_hardware(self._device),
        )
        write_unit(path, unit, result, self._fault)
        return UnitSummary(result.digest, nfe, result.seconds, os.getpid())

    def _images(self, unit: Unit) -> tuple[UInt8, int]:
        """The unit's images, and the network calls that each of them cost."""
        match unit.source:
            case ReferenceSet() as reference:
                return self._images_of(reference, unit.first, unit.count), 0
            case Cell() as cell:
                generated = generate(
                    self._denoiser(cell.snapshot, cell.track),
                    cell.solver,
                    cell.nfe,
                    schedule=cell.schedule,
                    namespace=cell.namespace,
                    first=unit.first,
                    count=unit.count,
                    shape=cell.snapshot.shape,
                    classes=cell.snapshot.classes,
                    batch=cell.batch,
                    labels=cell.labels,
                )
                return generated.images, generated.nfe

    def _denoiser(self, snapshot: SnapshotRef, track: str) -> Denoiser:
        key = (snapshot.digest, track)
        if key not in self._denoisers:
            if len(self._denoisers) >= NETWORKS_HELD:
                self._denoisers.popitem(last=False)
            self._denoisers[key] = self._denoiser_of(snapshot, track)
        self._denoisers.move_to_end(key)
        return self._denoisers[key]


def build_worker(
    storage: Path, extractor: ExtractorSpec, *, on_gpu: bool = False, fault: Fault = no_fault
) -> SweepWorker:
    """The worker of an actor, from what can be pickled.

    Raises:
        ExtractorError: the extractor's weights are missing or wrong on this machine.
    """
    device = torch.device("cuda" if on_gpu else "cpu")
    return SweepWorker(
        storage,
        load_extractor(extractor, str(device)),
        functools.partial(load_denoiser, device=device),
        reference_images,
        device=device,
        fault=fault,
    )
