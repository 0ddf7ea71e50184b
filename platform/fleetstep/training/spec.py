"""How a run is trained, as a closed config, and its batch arithmetic, in plain Python."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from fleetstep.spec import Span, Spec, span_images

Precision = Literal["fp32", "bf16"]
ZeroStage = Literal[0, 1, 2, 3]
Compile = Literal["off", "inductor", "aot_eager"]
TrackName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")]


class OptimizerSpec(Spec):
    """Adam or AdamW; the defaults are EDM's for CIFAR-10 (Karras et al. 2022, table 7)."""

    kind: Literal["adam", "adamw"] = "adam"
    lr: Annotated[float, Field(gt=0, description="Learning rate after the ramp.")] = 1e-3
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (
        0.9,
        0.999,
    )
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip_grad_norm: Annotated[
        float | None, Field(gt=0, description="Largest global gradient norm; null never clips.")
    ] = None


class EmaSpec(Spec):
    """One moving average of the weights, by images (Karras et al. 2022, released code).

    A constant decay per step is a half-life without a ramp: DiT's 0.9999 at a global batch of 256
    is ln 2 / -ln 0.9999 * 256 = 1,774,368 images with `ramp_ratio: null`.
    """

    half_life: Annotated[Span, Field(description="Images after which a weight counts half.")] = (
        500_000
    )
    ramp_ratio: Annotated[
        float | None,
        Field(gt=0, description="Half-life is at most this share of images seen; null: no ramp."),
    ] = 0.05


class HeldOutSpec(Spec):
    """The denoising error of the EMA on images never trained on: comparable across strategies."""

    bins: Annotated[PositiveInt, Field(description="Equal shares of the process's noise law.")] = 8
    batch: Annotated[PositiveInt, Field(description="Images per network call.")] = 64
    images: Annotated[
        PositiveInt | None, Field(description="Held-out images used; null uses all of them.")
    ] = None


class TrainingSpec(Spec):
    """The `training` section of an experiment.

    Execution (micro_batch, precision's memory, zero_stage, checkpointing, compile, cadences) may
    change on resume; what decides the numbers (budget-relative spans, global_batch, seed,
    optimizer, ramp, ema, label_dropout, precision) may not.
    """

    images: Annotated[PositiveInt, Field(description="Budget: training images to be seen.")]
    global_batch: Annotated[
        PositiveInt, Field(description="Images per optimiser step, over all workers.")
    ]
    micro_batch: Annotated[
        PositiveInt | None,
        Field(description="Images per forward pass of one worker; null: its whole share."),
    ] = None
    seed: Annotated[int, Field(ge=0)] = 0
    optimizer: OptimizerSpec = OptimizerSpec()
    lr_ramp: Annotated[
        Span, Field(description="Images over which the learning rate grows from zero.")
    ] = 10_000_000
    ema: dict[TrackName, EmaSpec] = Field({"ema": EmaSpec()}, min_length=1)
    label_dropout: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="Share of the images trained without their label, which classifier-free "
            "guidance needs; the data must have classes.",
        ),
    ] = 0.0
    precision: Precision = "fp32"
    activation_checkpointing: Annotated[
        bool, Field(description="Compute blocks again in the backward: less memory, more time.")
    ] = False
    compile: Annotated[
        Compile, Field(description="Back end of torch.compile; off runs the network as it is.")
    ] = "off"
    zero_stage: Annotated[
        ZeroStage | None,
        Field(description="DeepSpeed ZeRO stage; null: 0 for one fp32 worker, else 1."),
    ] = None
    checkpoint_every: Annotated[Span, Field(description="Images between checkpoints.")] = "10%"
    snapshot_every: Annotated[Span, Field(description="Images between EMA snapshots.")] = "20%"
    keep_checkpoints: Annotated[
        PositiveInt | None, Field(description="Newest checkpoints kept; null keeps all.")
    ] = 2
    log_every: Annotated[PositiveInt, Field(description="Steps between logged points.")] = 10
    heldout: HeldOutSpec = HeldOutSpec()


@dataclass(frozen=True)
class BatchPlan:
    """How a global batch is cut: global_batch = workers * accumulation * micro_batch.

    Attributes:
        workers: data-parallel workers, each with a contiguous slice of the global batch.
        per_worker: images of that slice.
        micro_batch: images per forward pass.
        accumulation: forward passes per optimiser step.
    """

    workers: int
    per_worker: int
    micro_batch: int
    accumulation: int

    @property
    def global_batch(self) -> int:
        """Images per optimiser step."""
        return self.workers * self.per_worker


def batch_arithmetic(global_batch: int, workers: int, micro_batch: int | None) -> BatchPlan | str:
    """Cut a global batch over workers and micro-batches, or say why not and what works."""
    unit = workers * (micro_batch or 1)
    if global_batch % unit:
        below, above = global_batch // unit * unit, (global_batch // unit + 1) * unit
        nearest = above if below == 0 or above - global_batch < global_batch - below else below
        parts = f"{workers} workers" + (f" x micro_batch {micro_batch}" if micro_batch else "")
        problem = (
            f"global_batch {global_batch} is not a multiple of {parts} = {unit}; "
            f"nearest that works: {nearest}"
        )
        if micro_batch and global_batch % workers == 0:
            share = global_batch // workers
            fits = max(m for m in range(1, min(micro_batch, share) + 1) if share % m == 0)
            problem += f" (or micro_batch {fits})"
        return problem
    per_worker = global_batch // workers
    micro = micro_batch or per_worker
    return BatchPlan(workers, per_worker, micro, per_worker // micro)


def total_steps(images: int, global_batch: int) -> int:
    """Optimiser steps that see at least `images` images."""
    return -(-images // global_batch)


@dataclass(frozen=True)
class Saves:
    """When a run saves, by images seen.

    Attributes:
        end: images of the whole run.
        global_batch: images per optimiser step.
        checkpoint_every, snapshot_every: images between them.
    """

    end: int
    global_batch: int
    checkpoint_every: int
    snapshot_every: int

    @classmethod
    def of(cls, spec: TrainingSpec) -> Saves:
        """The rule of a training section."""
        return cls(
            total_steps(spec.images, spec.global_batch) * spec.global_batch,
            spec.global_batch,
            span_images(spec.checkpoint_every, spec.images),
            span_images(spec.snapshot_every, spec.images),
        )

    def snapshot(self, images_seen: int) -> bool:
        """Whether a snapshot is due; the first is the untrained network, which every result is
        measured against.
        """
        return images_seen == 0 or self._due(self.snapshot_every, images_seen)

    def checkpoint(self, images_seen: int) -> bool:
        """Whether a checkpoint is due; a snapshot is cut from one."""
        return self.snapshot(images_seen) or self._due(self.checkpoint_every, images_seen)

    def snapshots(self) -> frozenset[int]:
        """Images seen at every snapshot of the run."""
        return self._points(self.snapshot_every)

    def checkpoints(self) -> frozenset[int]:
        """Images seen at every checkpoint of the run."""
        return self.snapshots() | self._points(self.checkpoint_every)

    def _points(self, every: int) -> frozenset[int]:
        """Where `_due` holds, without asking each of a million steps; and the start."""
        batch = self.global_batch
        due = {-(-n // batch) * batch for n in range(every, self.end + 1, max(every, batch))}
        return frozenset({0, *due, self.end})

    def _due(self, every: int, images_seen: int) -> bool:
        """Whether a multiple of `every` was reached by the last batch, or the end."""
        crossed = images_seen // every > (images_seen - self.global_batch) // every
        return images_seen >= self.end or (images_seen > 0 and crossed)


def effective_stage(spec: TrainingSpec, workers: int) -> ZeroStage:
    """The ZeRO stage a run uses: sharding costs time, and one fp32 worker gains nothing by it."""
    if spec.zero_stage is not None:
        return spec.zero_stage
    return 0 if workers == 1 and spec.precision == "fp32" else 1


def check_training(spec: TrainingSpec, workers: int) -> list[str]:
    """Problems of a training section under a number of workers; [] if there are none."""
    problems: list[str] = []
    plan = batch_arithmetic(spec.global_batch, workers, spec.micro_batch)
    if isinstance(plan, str):
        problems.append(f"training.global_batch: {plan}")
    if spec.precision == "bf16" and spec.zero_stage == 0:
        problems.append(
            "training.zero_stage: 0 keeps no fp32 master weights, which precision bf16 needs; "
            "use 1, 2 or 3, or null"
        )
    for name in ("checkpoint_every", "snapshot_every"):
        if span_images(getattr(spec, name), spec.images) == 0:
            problems.append(f"training.{name}: must be at least one image")
    return problems


def learning_rate(spec: TrainingSpec, images_seen: int) -> float:
    """lr * min(n / ramp, 1), n = images seen before the batch (EDM: its first step is zero)."""
    ramp = span_images(spec.lr_ramp, spec.images)
    return spec.optimizer.lr * (min(images_seen / ramp, 1.0) if ramp else 1.0)


def ema_beta(spec: EmaSpec, budget: int, images_seen: int, batch: int) -> float:
    """Weight of the old average: 0.5 ** (batch / h), h = min(half_life, ramp_ratio * n).

    n is images seen before the batch, so the first step (beta = 0) copies the weights. Released
    code of Karras et al. (2022), training_loop.py.
    """
    half_life = float(span_images(spec.half_life, budget))
    if spec.ramp_ratio is not None:
        half_life = min(half_life, spec.ramp_ratio * images_seen)
    return float(0.5 ** (batch / max(half_life, 1e-8)))
