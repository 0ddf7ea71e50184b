"""The training loop: events happen in the order of lines. It knows neither Ray nor DeepSpeed.

Shapes: B batch, C channels, H W pixels.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from fleetstep.data import augmentation
from fleetstep.data.augmentation import Augmentation, dropped_labels
from fleetstep.data.batch import Batch
from fleetstep.data.prefetch import BatchSource, Prefetched, prefetched
from fleetstep.diffusion.adaptive import State
from fleetstep.diffusion.loss import DiffusionLoss, noise_at
from fleetstep.diffusion.objective import Objective
from fleetstep.diffusion.precondition import Denoiser
from fleetstep.errors import CheckpointError, NonFiniteError
from fleetstep.training.adaptation import Adaptation
from fleetstep.training.checkpoint import CheckpointStore, OnEvent, no_event
from fleetstep.training.checkpoint_format import Checkpoint, RunFacts
from fleetstep.training.ema import EmaTracks
from fleetstep.training.engine import Engine
from fleetstep.training.snapshot import is_reported, mark_reported, snapshot_path, write_snapshot
from fleetstep.training.spec import BatchPlan, Saves, TrainingSpec, learning_rate, total_steps


class Draws(NamedTuple):
    """What a batch's stream positions draw, on the CPU.

    Attributes:
        uniforms_B: numbers that the law turns into noise levels, once the step is known.
        eps_BCHW: standard normal noise, float32.
        labels_B: class ids after drop-out, int64.
        augment: how the images are augmented, if they are.
    """

    uniforms_B: Tensor
    eps_BCHW: Tensor
    labels_B: Tensor
    augment: augmentation.Draws | None


class TrainingStream(BatchSource, Protocol):
    """What the loop reads: batches by stream position."""

    @property
    def classes(self) -> int:
        """Number of classes; 0 if unlabelled."""
        ...


def _nothing(*_: object) -> None:
    pass


def _go_on() -> bool:
    return False


@dataclass(frozen=True, kw_only=True)
class Callbacks:
    """What the loop tells the world. `log` is called on rank 0, the others on every rank.

    Attributes:
        log: (images_seen, metrics named train/...): every `log_every` steps and at the end.
        report: (checkpoint) after each one is complete.
        snapshot: (folder, images_seen) after each one is written: held-out loss, grids. Called
            again after a restart if the process died before it returned.
    """

    log: Callable[[int, Mapping[str, float]], None] = _nothing
    report: Callable[[Checkpoint], None] = _nothing
    snapshot: Callable[[Path, int], None] = _nothing


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        status: "finished": the budget is spent; "stopped": it was asked to, and can be resumed.
        images_seen: progress.
        checkpoint: the last one.
    """

    status: Literal["finished", "stopped"]
    images_seen: int
    checkpoint: Checkpoint


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that a run needs and that does not change while it goes on.

    Attributes:
        training: its config.
        plan: how the global batch is cut.
        engine: holds the network.
        objective: what is trained.
        stream: the data.
        augmentation: how images are augmented; None not at all.
        prefetch: batches prepared ahead.
        ema: averages over the engine's partition.
        store: checkpoints.
        snapshots: folder of snapshots.
        facts: fingerprints and configuration, for checkpoints.
        callbacks: what to tell whom.
        on_event: called with the name of each point at which tests interrupt a run.
        should_stop: true asks for a checkpoint and an early return; with several workers it is
            asked at log points, and one worker's yes stops all.
    """

    training: TrainingSpec
    plan: BatchPlan
    engine: Engine
    objective: Objective
    stream: TrainingStream
    augmentation: Augmentation | None = None
    prefetch: int = 2
    ema: EmaTracks
    store: CheckpointStore
    snapshots: Path
    facts: RunFacts
    callbacks: Callbacks = Callbacks()
    on_event: OnEvent = no_event
    should_stop: Callable[[], bool] = _go_on


def train(job: Job, start: Checkpoint | None = None) -> Outcome:
    """Train from `start` (None: from zero) until the budget is spent; collective.

    A finished run has no step left: its last snapshot is reported if it was not, and it returns.

    Raises:
        NonFiniteError: a loss or gradient is NaN or infinite; nothing of it reaches a checkpoint.
        CheckpointError: a checkpoint or snapshot cannot be written or read.
    """
    training, engine = job.training, job.engine
    end = total_steps(training.images, training.global_batch) * training.global_batch
    images_seen, saved = 0, start
    if start is not None:
        job.store.load(start, engine, job.ema)
        images_seen = start.images_seen
    meter = _Meter(job, start)
    adaptation = Adaptation(job.objective, engine.group, _adapted(start))
    denoise = job.objective.denoiser(engine.network)
    with _batches(job, images_seen, end) as batches:
        while True:
            stopping = images_seen < end and meter.asked_to_stop(images_seen)
            saved = _save_if_due(job, images_seen, saved, meter, adaptation, stopping)
            if images_seen >= end or stopping:
                assert saved is not None  # both are reasons to save
                return Outcome("stopped" if stopping else "finished", images_seen, saved)
            batch, draws = next(batches)
            losses = _accumulate(job, denoise, batch, draws, images_seen, adaptation)
            engine.step(learning_rate(training, images_seen))
            _check_gradient(engine.grad_norm(), batch, images_seen // training.global_batch)
            adaptation.advance()
            job.ema.update(images_seen)
            images_seen += training.global_batch
            meter.add(losses)
            job.on_event("step")
            if meter.due(images_seen, end):
                meter.log(images_seen, end, batches.wait_s, adaptation.metrics())


def _adapted(start: Checkpoint | None) -> State | None:
    return None if start is None else start.states[0].get("adaptive")


def _batches(job: Job, images_seen: int, end: int) -> Prefetched[Draws]:
    """This worker's contiguous slices of the global batches up to `end`, with their draws."""
    plan, seed = job.plan, job.training.seed

    def positions() -> Iterator[tuple[int, int]]:
        for first in range(images_seen, end, plan.global_batch):
            yield first + job.engine.group.rank * plan.per_worker, plan.per_worker

    def draws(batch: Batch) -> Draws:
        first, count = batch.first, len(batch)
        labels_B = torch.from_numpy(batch.labels)
        augmentation = job.augmentation
        return Draws(
            job.objective.coupling.uniforms(seed, first, count),
            noise_at(seed, first, count, batch.images.shape[1:]),
            dropped_labels(labels_B, seed, first, job.training.label_dropout),
            None if augmentation is None else augmentation.draws(seed, first, count),
        )

    return prefetched(job.stream, positions(), job.prefetch, draws)


def _accumulate(
    job: Job,
    denoise: Denoiser,
    batch: Batch,
    draws: Draws,
    images_seen: int,
    adaptation: Adaptation,
) -> list[float]:
    """Forward and backward of the worker's micro-batches; their mean losses."""
    step, size = images_seen // job.training.global_batch, job.plan.micro_batch
    loss_of = DiffusionLoss(job.objective)
    inputs = _inputs(job, batch, draws, step, adaptation.state)
    losses = []
    for m in range(job.plan.accumulation):
        _seed_dropout(job.training.seed, step, m, job.engine.group.rank)
        rows = inputs.rows(slice(m * size, (m + 1) * size))
        found = loss_of.parts(
            denoise,
            rows.x0_BCHW,
            rows.labels_B,
            rows.sigma_B,
            rows.eps_BCHW,
            step,
            rows.augment_BA,
        )
        weighted_B = adaptation.weighted(found.denoising_B, batch.first + m * size)
        loss = found._replace(denoising_B=weighted_B).total_B().mean()
        job.engine.backward(loss)
        losses.append(loss.detach())
    values: list[float] = torch.stack(losses).tolist()
    for m, value in enumerate(values):
        if not math.isfinite(value):
            first = batch.first + m * size
            raise _not_finite(f"the loss is {value}", step, first, size)
    return values


class _Inputs(NamedTuple):
    """What the loss reads of a worker's slice, on its device."""

    x0_BCHW: Tensor
    labels_B: Tensor | None
    sigma_B: Tensor
    eps_BCHW: Tensor
    augment_BA: Tensor | None

    def rows(self, rows: slice) -> _Inputs:
        """Those of a micro-batch."""
        return _Inputs(
            self.x0_BCHW[rows],
            None if self.labels_B is None else self.labels_B[rows],
            self.sigma_B[rows],
            self.eps_BCHW[rows],
            None if self.augment_BA is None else self.augment_BA[rows],
        )


def _inputs(job: Job, batch: Batch, draws: Draws, step: int, state: State | None) -> _Inputs:
    device = job.engine.device
    x0_BCHW = torch.from_numpy(batch.images).to(device).float() / 127.5 - 1
    labels_B = draws.labels_B.to(device) if job.stream.classes else None
    sigma_B = job.objective.levels(draws.uniforms_B, batch.first, step, state).to(device)
    augment_BA = None
    if job.augmentation is not None:
        assert draws.augment is not None
        x0_BCHW, augment_BA = job.augmentation.apply(x0_BCHW, draws.augment)
    return _Inputs(x0_BCHW, labels_B, sigma_B, draws.eps_BCHW.to(device), augment_BA)


def _seed_dropout(seed: int, step: int, micro_batch: int, rank: int) -> None:
    """The one use of torch's generator: dropout, exact on resume with as many workers."""
    key = hashlib.blake2b(f"{seed}|dropout|{step}|{micro_batch}|{rank}".encode(), digest_size=8)
    torch.manual_seed(int.from_bytes(key.digest(), "little") >> 1)


def _check_gradient(norm: float, batch: Batch, step: int) -> None:
    if not math.isfinite(norm):
        raise _not_finite(f"the gradient norm is {norm}", step, batch.first, len(batch))


def _not_finite(what: str, step: int, first: int, count: int) -> NonFiniteError:
    return NonFiniteError(
        f"{what} at step {step}, on this worker at stream positions {first}-{first + count - 1}",
        "lower training.optimizer.lr or set clip_grad_norm; the last checkpoint is from before",
    )


def _save_if_due(
    job: Job,
    images_seen: int,
    saved: Checkpoint | None,
    meter: _Meter,
    adaptation: Adaptation,
    stopping: bool,
) -> Checkpoint | None:
    """Checkpoint and snapshot (cut from a checkpoint) where they are due; the last checkpoint."""
    due = Saves.of(job.training)
    if not (stopping or due.checkpoint(images_seen)):
        return saved
    with meter.paused():
        if saved is None or saved.images_seen != images_seen:
            saved = job.store.save(
                job.engine,
                job.ema,
                job.facts,
                images_seen=images_seen,
                state=meter.state() | adaptation.checkpointed(),
                on_event=job.on_event,
            )
            job.callbacks.report(saved)
        if due.snapshot(images_seen):
            _snapshot(job, saved)
    return saved


def _snapshot(job: Job, checkpoint: Checkpoint) -> None:
    """Write a snapshot on rank 0 and tell every rank, unless both were done before a restart."""
    group = job.engine.group
    path = snapshot_path(job.snapshots, checkpoint.images_seen)
    answer: list[str] | str = ""
    if group.rank == 0 and not is_reported(path, checkpoint.facts.identity):
        try:
            write_snapshot(job.snapshots, checkpoint, on_event=job.on_event)
            answer = "written"
        except CheckpointError as error:
            answer = list(error.args)
    answer = group.gather(answer)[0]
    if isinstance(answer, list):
        raise CheckpointError(*answer)
    if answer == "written":
        job.callbacks.snapshot(path, checkpoint.images_seen)
        group.barrier()
        if group.rank == 0:
            mark_reported(path)
        job.on_event("snapshot:reported")


class _Meter:
    """Loss and speed since the last logged point; checkpointed, so that it survives a resume."""

    def __init__(self, job: Job, start: Checkpoint | None) -> None:
        self._job = job
        self._loss_sum, self._steps = 0.0, 0
        if start is not None:
            states, rank = start.states, job.engine.group.rank
            same = len(states) == job.plan.workers
            sums = [state["loss_sum"] for state in states]
            self._loss_sum = sums[rank] if same else sum(sums) / len(sums)
            self._steps = int(states[0]["loss_steps"])
        self._timed_steps = 0
        self._waited = 0.0
        self._since = time.perf_counter()

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of this rank's meter."""
        return {"loss_sum": self._loss_sum, "loss_steps": self._steps}

    def add(self, losses: list[float]) -> None:
        """Count one step."""
        self._loss_sum += math.fsum(losses) / len(losses)
        self._steps += 1
        self._timed_steps += 1

    def due(self, images_seen: int, end: int) -> bool:
        """Whether this step is a log point."""
        step = images_seen // self._job.training.global_batch
        return step % self._job.training.log_every == 0 or images_seen >= end

    def log(self, images_seen: int, end: int, waited_s: float, more: Mapping[str, float]) -> None:
        """Reduce over workers, tell rank 0's `log` this and `more`, and start over."""
        job, group = self._job, self._job.engine.group
        total = float(group.sum(torch.tensor([self._loss_sum], dtype=torch.float64)))
        elapsed = max(time.perf_counter() - self._since, 1e-9)
        rate = self._timed_steps * job.training.global_batch / elapsed
        if group.rank == 0:
            metrics: dict[str, float] = {
                "train/loss": total / group.world / self._steps,
                "train/lr": learning_rate(job.training, images_seen - job.training.global_batch),
                "train/grad_norm": job.engine.grad_norm(),
                "train/images_per_s": rate,
                "train/data_wait_share": (waited_s - self._waited) / elapsed,
                "train/kimg": images_seen / 1000,
                "train/eta_s": (end - images_seen) / rate,
            }
            job.callbacks.log(images_seen, metrics | dict(more))
        self._loss_sum, self._steps, self._timed_steps = 0.0, 0, 0
        self._waited = waited_s
        self._since = time.perf_counter()

    def asked_to_stop(self, images_seen: int) -> bool:
        """Whether any worker was asked to stop; several workers agree on it at log points only."""
        group = self._job.engine.group
        if group.world == 1:
            return self._job.should_stop()
        if not self.due(images_seen, images_seen + 1):
            return False
        return any(group.gather(self._job.should_stop()))

    def paused(self) -> _Pause:
        """A `with` block whose time is not training time."""
        return _Pause(self)

    def shift(self, seconds: float) -> None:
        """Leave `seconds` out of the elapsed time."""
        self._since += seconds


class _Pause:
    def __init__(self, meter: _Meter) -> None:
        self._meter = meter

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._meter.shift(time.perf_counter() - self._start)
