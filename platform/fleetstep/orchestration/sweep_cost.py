"""What a sweep will cost, before it starts: network calls, time, machines' hours, disk.

Time per network call is measured, not guessed: on units that are finished, or by a probe that
draws a few images on the hardware of an actor.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import ray
import torch

from fleetstep.config import SweepSpec
from fleetstep.evaluation.network_extractor import NetworkExtractor, UInt8
from fleetstep.evaluation.reference import FEATURES_KEPT
from fleetstep.exactness import exact_on_cuda
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
_HEADER_BYTES = 2_000

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


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What the rest of a sweep costs.

    Args:
        calls: network calls on one image that are still to do.
        actors: that will work at the same time.
        actor_s: seconds of one actor; None where nothing could be measured.
        measured: where that was measured, or why it was not.
        disk_bytes: of results to come.
        free_bytes: on the disk that will hold them.
        cpus, gpus: of an actor.
        price_per_hour: of an actor; None if nobody said.
    """

    calls: int
    actors: int
    actor_s: float | None
    measured: str
    disk_bytes: int
    free_bytes: int
    cpus: float
    gpus: float
    price_per_hour: float | None

    @property
    def wall_s(self) -> float | None:
        """Seconds until it is done."""
        return None if self.actor_s is None else self.actor_s / self.actors

    @property
    def price(self) -> float | None:
        """Of all actors' time."""
        if self.actor_s is None or self.price_per_hour is None:
            return None
        return self.actor_s / 3600 * self.price_per_hour

    def lines(self) -> Iterator[str]:
        """For people."""
        if not self.actor_s:
            yield f"time: {self.measured}"
        else:
            yield (
                f"time: about {duration(self.wall_s or 0)} with {self.actors} "
                f"actor{'s' * (self.actors != 1)}, {self._hours()}{self._money()} "
                f"({self.measured})"
            )
        short = "" if self.disk_bytes < self.free_bytes else ": MORE THAN THERE IS"
        yield (
            f"disk: about {_size(self.disk_bytes)} of results, "
            f"{_size(self.free_bytes)} free{short}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return {
            "network_calls": self.calls,
            "actors": self.actors,
            "eta_s": self.wall_s,
            "actor_s": self.actor_s,
            "measured": self.measured,
            "price": self.price,
            "disk_bytes": self.disk_bytes,
            "free_bytes": self.free_bytes,
        }

    def _hours(self) -> str:
        hours = (self.actor_s or 0) / 3600
        if self.gpus:
            return f"{hours * self.gpus:.3g} GPU-hours"
        return f"{hours * (self.cpus or 1):.3g} CPU-hours"

    def _money(self) -> str:
        return "" if self.price is None else f", {self.price:.2f} at your price"


def cost_of(spec: SweepSpec, work: SweepPlan, speed: Speed | str) -> Cost:
    """What remains of a plan.

    Args:
        speed: of an actor, or why it is not known.
    """
    storage = Path(spec.storage).resolve()
    there = next(path for path in (storage, *storage.parents) if path.exists())
    known = isinstance(speed, Speed)
    return Cost(
        calls=work.remaining_network_calls,
        actors=expected_actors(spec),
        actor_s=speed.seconds(work.remaining) if isinstance(speed, Speed) else None,
        measured=speed.measured if isinstance(speed, Speed) else speed,
        disk_bytes=_disk_bytes(spec, work),
        free_bytes=shutil.disk_usage(there).free,
        cpus=spec.pool.cpus_per_actor,
        gpus=spec.pool.gpus_per_actor,
        price_per_hour=spec.pool.price_per_hour if known else None,
    )


def expected_actors(spec: SweepSpec) -> int:
    """Actors that fit on the machines there are; of a cluster that is not connected, all."""
    pool = spec.pool
    if ray.is_initialized():
        nodes = alive_nodes()
    elif spec.address is None:
        nodes = [{"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}]
    else:
        return pool.max
    fit = placeable(nodes, cpus=pool.cpus_per_actor, gpus=pool.gpus_per_actor)
    return max(1, min(pool.max, fit))


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
    return found


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


def _disk_bytes(spec: SweepSpec, work: SweepPlan) -> int:
    """Features of every unit to come, of references that are kept, and the pictures."""
    extractors = extractors_of(spec.extractors, spec.metrics)
    rows = sum(unit.count for unit in work.remaining)
    numbers = sum(rows * (extractor.dim + extractor.classes) for extractor in extractors)
    kept = sum(
        min(reference.samples, FEATURES_KEPT) * extractor.dim + 2 * extractor.dim**2
        for reference in work.references
        for extractor in extractors
    )
    pictures = sum(spec.pictures * int(np.prod(cell.snapshot.shape)) for cell in work.cells)
    headers = len(work.remaining) * len(extractors) * _HEADER_BYTES
    return 4 * (numbers + kept) + pictures + headers


def duration(seconds: float) -> str:
    """ "3 h 20 min", "12 min", "40 s"."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
