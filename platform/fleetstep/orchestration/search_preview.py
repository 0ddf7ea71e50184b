"""What a search would do, worked out before anything starts: trials, images, and how much disk."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fleetstep import config
from fleetstep.config import Experiment, SearchSpec, trials_of
from fleetstep.errors import ResourceError
from fleetstep.orchestration.pieces import network_of
from fleetstep.orchestration.placement import check_placement, placeable
from fleetstep.orchestration.search_records import Life, SearchFolder
from fleetstep.orchestration.search_setup import experiment_of
from fleetstep.spec import span_images
from fleetstep.training.spec import Saves

_FLOAT_BYTES = 4
_ADAM_MOMENTS = 2
# A tensor's name, shape and place in a file's header, and its share of the manifest.
_HEADER_BYTES = 256


@dataclass(frozen=True)
class DiskBound:
    """The most that a search of trainings has on disk at a time, in bytes.

    A checkpoint holds the weights, two moments of the optimiser and every average; a snapshot the
    averages. Headers are counted, which matters for small networks alone.

    Attributes:
        checkpoint, snapshot: of one, of the largest network among the trials.
        at_work: of a trial that is not over: checkpoints kept and the one being written, and all
            of its snapshots.
        over: of a trial that is: its last snapshot.
        total: of the search.
    """

    checkpoint: int
    snapshot: int
    at_work: int
    over: int
    total: int


@dataclass(frozen=True, kw_only=True)
class SearchPreview:
    """The numbers of a search before it starts.

    Attributes:
        name: of the search.
        trials: how many.
        known: whether their settings are known beforehand.
        budget: images of a trial that is not stopped.
        at_a_time: trials that run at a time; None before a cluster was asked.
        disk: the bound; of the trials' runs alone: spools, grids and logs are small beside it.
        rungs: images at which the scheduler decides.
        objectives: names, the deciding one first.
    """

    name: str
    trials: int
    known: bool
    budget: int
    at_a_time: int | None
    disk: DiskBound
    rungs: tuple[int, ...]
    objectives: tuple[str, ...]

    @property
    def images(self) -> int:
        """Trained in all, if no trial is stopped."""
        return self.trials * self.budget

    def text(self) -> str:
        """A few lines to print before it starts."""
        together = "" if self.at_a_time is None else f", {self.at_a_time} at a time"
        rungs = ", ".join(f"{rung:,}" for rung in self.rungs)
        lines = [
            f"{self.name}: {self.trials} trials of {self.budget:,} images{together}: at most "
            f"{self.images:,} images in all",
            f"  objectives: {', '.join(self.objectives)}"
            + (f"; decided at {rungs} images" if rungs else ""),
            f"  disk: at most {_size(self.disk.total)} of checkpoints "
            f"({_size(self.disk.checkpoint)} each) and snapshots "
            f"({_size(self.disk.snapshot)} each) at a time",
        ]
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return asdict(self) | {"images": self.images}


def search_size(search: SearchSpec) -> int:
    """How many trials there will be."""
    known = trials_of(search)
    if known is not None:
        return len(known)
    assert search.searcher.kind == "optuna", "the others' trials are known"
    return search.searcher.trials


def experiments_of(search: SearchSpec, folder: SearchFolder) -> list[Experiment]:
    """The experiments of all trials that are known beforehand; otherwise of the first option of
    everything.
    """
    known = trials_of(search) or [search.space.first()]
    return [
        experiment_of(search, folder, f"{index:04d}", Life(0, assignment))
        for index, assignment in enumerate(known)
    ]


def fitting(
    search: SearchSpec, experiments: Sequence[Experiment], nodes: Sequence[Mapping[str, float]]
) -> int:
    """How many trials run at a time.

    Raises:
        ResourceError: a trial could never be placed; with the sum.
    """
    least = math.inf
    for cluster in {experiment.cluster.model_dump_json() for experiment in experiments}:
        spec = config.ClusterSpec.model_validate_json(cluster)
        workers = {"cpus": spec.cpus_per_worker, "gpus": spec.gpus_per_worker}
        try:
            check_placement(nodes, actors=spec.workers, what="training workers", **workers)
        except ResourceError as error:
            raise ResourceError(f"a trial of the search {error.message}", error.remedy) from error
        least = min(least, placeable(nodes, **workers) // spec.workers)
    return int(min(least, search.concurrent or math.inf, search_size(search)))


def preview_search(
    search: SearchSpec,
    folder: SearchFolder,
    experiments: Sequence[Experiment],
    rungs: tuple[int, ...],
    at_a_time: int | None = None,
) -> SearchPreview:
    """Work the numbers out; builds the trials' networks to count their parameters."""
    trials = search_size(search)
    budget = max(Saves.of(experiment.training).end for experiment in experiments)
    together = at_a_time or search.concurrent or trials
    return SearchPreview(
        name=search.name,
        trials=trials,
        known=trials_of(search) is not None,
        budget=budget,
        at_a_time=at_a_time,
        disk=disk_bound(search, experiments, trials, together),
        rungs=rungs,
        objectives=tuple(one.name for one in search.objectives),
    )


def disk_bound(
    search: SearchSpec, experiments: Sequence[Experiment], trials: int, together: int
) -> DiskBound:
    """The bound that the janitor keeps. In a population every trial is at work to the end, and
    keeps what was saved since the last comparison, once of its life before and once of this one.
    """
    checkpoint = snapshot = at_work = over = 0
    for experiment, weights in _weights(experiments):
        training = experiment.training
        tracks = len(training.ema)
        one, image = weights * (1 + _ADAM_MOMENTS + tracks), weights * tracks
        saves = Saves.of(training)
        if search.scheduler.kind == "pbt":
            every = span_images(search.scheduler.every, training.images)
            per_interval = sum(1 for point in saves.checkpoints() if point <= every)
            kept = 2 * (per_interval + 1)
        else:
            kept = (training.keep_checkpoints or len(saves.checkpoints())) + 1
        checkpoint, snapshot = max(checkpoint, one), max(snapshot, image)
        at_work = max(at_work, kept * one + len(saves.snapshots()) * image)
        over = max(over, image)
    working = trials if search.scheduler.kind == "pbt" else min(together, trials)
    total = working * at_work + trials * over + checkpoint
    return DiskBound(checkpoint, snapshot, at_work, over, total)


def _weights(experiments: Sequence[Experiment]) -> list[tuple[Experiment, int]]:
    """Bytes of each one's weights in a file; a network that several share is built once."""
    known: dict[str, int] = {}
    found = []
    for experiment in experiments:
        network_of_it = experiment.model_dump(mode="json", include={"network", "process"})
        key = json.dumps([network_of_it, experiment.data.augment > 0], sort_keys=True)
        if key not in known:
            manifest = config.manifest_of(experiment)
            network = network_of(experiment, manifest.shape, manifest.classes)
            sizes = [tensor.numel() for tensor in network.state_dict().values()]
            known[key] = sum(sizes) * _FLOAT_BYTES + len(sizes) * _HEADER_BYTES
        found.append((experiment, known[key]))
    return found


def _size(count: int) -> str:
    value = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"
