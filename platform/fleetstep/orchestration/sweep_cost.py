"""What a sweep will cost, before it starts: network calls, time, machines' hours, disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from fleetstep.config import SweepSpec
from fleetstep.evaluation.reference import FEATURES_KEPT
from fleetstep.orchestration.measures import extractors_of
from fleetstep.orchestration.placement import placeable
from fleetstep.orchestration.session import alive_nodes
from fleetstep.orchestration.sweep_plan import SweepPlan
from fleetstep.orchestration.sweep_speed import Speed

_HEADER_BYTES = 2_000
"""Of a unit's file, about."""


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
