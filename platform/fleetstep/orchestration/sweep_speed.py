"""How fast an actor is: seconds per network call and per image, measured and not guessed, on
units that are finished or by a probe that draws a few images on the hardware of an actor.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import ray
import torch

from fleetstep.config import SweepSpec
from fleetstep.evaluation.network_extractor import NetworkExtractor, UInt8
from fleetstep.exactness import exact_on_cuda
from fleetstep.orchestration.autoscaling import RayAutoscaler
from fleetstep.orchestration.cells import Cell, ReferenceSet, SnapshotRef, Unit, space_of
from fleetstep.orchestration.measures import extractors_of
from fleetstep.orchestration.placement import placeable
from fleetstep.orchestration.pool_actors import THREADS
from fleetstep.orchestration.session import alive_nodes, worker_environment
from fleetstep.orchestration.snapshots import load_denoiser
from fleetstep.orchestration.sweep_plan import SweepPlan
from fleetstep.orchestration.units import read_unit, this_hardware
from fleetstep.sampling.denoiser import Denoiser
from fleetstep.sampling.generate import generate
from fleetstep.sampling.spec import EulerSpec

PROBE_CALLS = 2
"""Network calls per image of a probe."""

PROBE_S = 10.0
"""A probe on a whole batch that would take longer is done on the smallest one instead."""

UNITS_READ = 20
"""Most finished units of a network that are looked at."""

PLACEMENT_S = 60.0
"""How long a probe waits for an actor's resources."""

_SMALLEST_BATCH = 2

Network = tuple[str, str]
"""A snapshot's digest, and its EMA track."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Seconds of one actor.

    Args:
        call_s: of one network call on one image, by network.
        image_s: of the features of one image, in all spaces.
        measured: where, for people.
    """

    call_s: Mapping[Network, float]
    image_s: float
    measured: str

    def seconds(self, units: Sequence[Unit]) -> float:
        """Of one actor that does these units."""
        return sum(unit.count * self._per_image(unit.source) for unit in units)

    def _per_image(self, source: Cell | ReferenceSet) -> float:
        if isinstance(source, ReferenceSet):
            return self.image_s
        return source.expected_calls * self.call_s[_network(source)] + self.image_s


def measure_speed(spec: SweepSpec, work: SweepPlan) -> Speed | str:
    """Seconds per call of each network and per image of the extractors, or why they are not known.

    On the CPU it is measured in this process, on one thread, as an actor computes. On a GPU it is
    measured by a task with an actor's resources, on the cluster that this process is connected to.
    """
    if not work.remaining:
        return Speed(call_s={}, image_s=0.0, measured="nothing is left to do")
    if spec.pool.gpus_per_actor == 0:
        return probe(spec, work, "cpu")
    if not ray.is_initialized():
        return "not measured: that needs a GPU of the cluster, and nothing was started"
    asked = {"cpus": spec.pool.cpus_per_actor, "gpus": spec.pool.gpus_per_actor}
    if placeable(alive_nodes(), **asked) == 0 and not RayAutoscaler(**asked).grows():
        return "not measured: no machine of the cluster has an actor's GPU"
    task = ray.remote(
        num_cpus=spec.pool.cpus_per_actor,
        num_gpus=spec.pool.gpus_per_actor,
        max_retries=0,
        runtime_env={"env_vars": worker_environment(THREADS)},
    )(probe)
    answer = task.remote(spec, work, "cuda")
    try:
        found: Speed = ray.get(answer, timeout=PLACEMENT_S)
    except ray.exceptions.GetTimeoutError:
        ray.cancel(answer, force=True)
        return f"not measured: no GPU was free for {PLACEMENT_S:g} s"
    except ray.exceptions.RayError as error:  # an estimate is no reason to end a sweep
        return f"not measured: the probe failed: {_first_line(error)}"
    return found


def _first_line(error: Exception) -> str:
    cause = getattr(error, "cause", None)
    lines = str(cause or error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def probe(spec: SweepSpec, work: SweepPlan, device_name: str) -> Speed:
    """Measure in this process, by finished units where there are some of this hardware."""
    device = torch.device(device_name)
    exact_on_cuda(device)
    extractors = extractors_of(spec.extractors, spec.metrics, device_name)
    cells = {
        _network(unit.source): unit.source
        for unit in work.remaining
        if isinstance(unit.source, Cell)
    }
    shape = work.cells[0].snapshot.shape
    with _threads_of_an_actor():
        image_s = sum(_image_s(extractor, shape) for extractor in extractors)
        found = {
            network: _finished_call_s(spec, work, network, extractors, image_s, device)
            for network in cells
        }
        call_s = {
            network: _probed_call_s(cells[network], device) if known is None else known
            for network, known in found.items()
        }
    probed = sum(known is None for known in found.values())
    where = f"measured here, {this_hardware(device).device}, one thread"
    if not probed and cells:
        where = "by finished units of this hardware"
    return Speed(call_s=call_s, image_s=image_s, measured=where)


@contextlib.contextmanager
def _threads_of_an_actor() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _network(cell: Cell) -> Network:
    return (cell.snapshot.digest, cell.track)


def _image_s(extractor: NetworkExtractor, shape: tuple[int, int, int]) -> float:
    """Of images that are all grey: an extractor's time does not depend on what they show."""
    images = np.full((extractor.batch, *shape), 128, np.uint8)
    first = _seconds(extractor, images)
    warm = first if first > PROBE_S else _seconds(extractor, images)
    return warm / len(images)


def _seconds(extractor: NetworkExtractor, images: UInt8) -> float:
    started = time.perf_counter()
    extractor(images)
    return time.perf_counter() - started


def _probed_call_s(cell: Cell, device: torch.device) -> float:
    """Per call and image, latents included: the network once to warm up and once to measure."""
    denoiser = load_denoiser(cell.snapshot, cell.track, device=device)
    few = min(_draw_s(denoiser, cell.snapshot, cell, _SMALLEST_BATCH) for _ in range(2))
    if few * cell.batch / _SMALLEST_BATCH > PROBE_S:
        return few / _SMALLEST_BATCH / PROBE_CALLS
    many = min(_draw_s(denoiser, cell.snapshot, cell, cell.batch) for _ in range(2))
    return many / cell.batch / PROBE_CALLS


def _draw_s(denoiser: Denoiser, snapshot: SnapshotRef, cell: Cell, batch: int) -> float:
    started = time.perf_counter()
    generate(
        denoiser,
        EulerSpec(),
        PROBE_CALLS,
        namespace=cell.namespace,
        count=batch,
        shape=snapshot.shape,
        classes=snapshot.classes,
        batch=batch,
        labels=cell.labels,
    )
    return time.perf_counter() - started


def _finished_call_s(
    spec: SweepSpec,
    work: SweepPlan,
    network: Network,
    extractors: Sequence[NetworkExtractor],
    image_s: float,
    device: torch.device,
) -> float | None:
    """The median over finished units of this network and hardware; None if there are none."""
    storage = Path(spec.storage).resolve()
    # The file of the last space was written last, so its seconds are of the whole unit.
    space, here = space_of(extractors[-1]), this_hardware(device)
    units = [
        unit
        for unit in work.units
        if unit in work.finished
        and isinstance(unit.source, Cell)
        and _network(unit.source) == network
    ]
    found = []
    for unit in units[:UNITS_READ]:
        result = read_unit(storage, unit, space)
        if result is not None and result.hardware == here and result.calls_made:
            sampling_s = result.seconds / unit.count - image_s
            found.append(max(sampling_s, 0.0) / result.calls_made)
    return median(found) if found else None
