"""A complete tiny run for tests: a network with dropout, a stream of pictures, EDM's objective.

Run as a script it is one worker of such a run, which can be told to kill itself at an event.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from fleetstep import rng
from fleetstep.data.augmentation import Augmentation
from fleetstep.data.batch import Batch
from fleetstep.diffusion.objective import build_objective
from fleetstep.diffusion.spec import EdmSpec, ProcessSpec, StrategySpec, WarmupSpec
from fleetstep.training.checkpoint import CheckpointStore, OnEvent, no_event
from fleetstep.training.checkpoint_format import Checkpoint, RunFacts
from fleetstep.training.ema import EmaTracks
from fleetstep.training.engine import DeepSpeedEngine, Engine, TorchEngine
from fleetstep.training.group import current_group
from fleetstep.training.loop import Callbacks, Job, Outcome, train
from fleetstep.training.resume import Resume, choose_start
from fleetstep.training.spec import (
    BatchPlan,
    EmaSpec,
    OptimizerSpec,
    TrainingSpec,
    batch_arithmetic,
)

SHAPE = (1, 4, 4)
EDM = EdmSpec()
# Two compute threads on two busy cores stall each other for whole scheduler slices.
torch.set_num_threads(1)
FACTS = RunFacts(identity="identity-a", dataset="dataset-a", config={"name": "toy"})


class ToyNetwork(nn.Module):
    """Two convolutions, dropout, noise and class embeddings, and a persistent buffer."""

    def __init__(self, dropout: float = 0.0, width: int = 6) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(1, width, 3, padding=1)
        self.noise = nn.Linear(2, width)
        self.label = nn.Embedding(3, width)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = nn.Conv2d(width, 1, 3, padding=1)
        self.register_buffer("frequencies", torch.tensor([1.0, 2.0]))

    def forward(
        self,
        x_BCHW: Tensor,
        c_noise_B: Tensor,
        labels_B: Tensor | None,
        augment_BA: Tensor | None = None,
    ) -> Tensor:
        angles = c_noise_B[:, None] * self.get_buffer("frequencies")
        e = self.noise(angles.sin().to(x_BCHW.dtype))
        if labels_B is not None:
            e = e + self.label(labels_B.clamp(min=0)) * (labels_B >= 0)[:, None]
        if augment_BA is not None:
            e = e + augment_BA.mean(1, keepdim=True).to(e.dtype)
        h = self.conv_in(x_BCHW) + e[:, :, None, None]
        out: Tensor = self.conv_out(self.dropout(nn.functional.silu(h)))
        return out


def toy_network(dropout: float = 0.0, seed: int = 0) -> ToyNetwork:
    """Equal weights for equal seeds; the global generator is left alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ToyNetwork(dropout)


class ToyStream:
    """An endless stream of 40 pictures in 3 classes."""

    classes = 3

    def batch(self, first: int, count: int) -> Batch:
        ids = np.arange(first, first + count) % 40
        pictures = [rng.bits(0, "picture", int(i), 1, SHAPE)[0] % np.uint64(256) for i in ids]
        return Batch(np.stack(pictures).astype(np.uint8), (ids % 3).astype(np.int64), first)


def training_spec(**changes: Any) -> TrainingSpec:
    """12 steps of 8 images, a checkpoint every 2 and a snapshot every 6, every step logged."""
    settings: dict[str, Any] = {
        "images": 96,
        "global_batch": 8,
        "micro_batch": 2,
        "optimizer": OptimizerSpec(kind="adamw", lr=1e-2, weight_decay=0.1),
        "lr_ramp": 16,
        "ema": {"ema": EmaSpec(half_life=64), "slow": EmaSpec(half_life=640, ramp_ratio=None)},
        "checkpoint_every": 16,
        "snapshot_every": 48,
        "log_every": 1,
    }
    return TrainingSpec(**(settings | changes))


def toy_engine(kind: str, training: TrainingSpec, plan: BatchPlan, network: nn.Module) -> Engine:
    """ "torch", or a ZeRO stage "0" to "3"."""
    if kind == "torch":
        return TorchEngine(network, training.optimizer, plan)
    stage: Any = int(kind)
    return DeepSpeedEngine(network, training.optimizer, plan, stage=stage)


def toy_job(
    root: Path,
    *,
    kind: str = "torch",
    log: Callable[[int, Mapping[str, float]], None] | None = None,
    on_event: OnEvent = no_event,
    dropout: float = 0.1,
    process: ProcessSpec = EDM,
    strategies: Sequence[StrategySpec] = (WarmupSpec(window="50%"),),
    augment: float = 0.0,
    **changes: Any,
) -> Job:
    """Everything a run needs, in `root`."""
    training = training_spec(**changes)
    world = current_group(torch.device("cpu")).world
    plan = batch_arithmetic(training.global_batch, world, training.micro_batch)
    assert isinstance(plan, BatchPlan)
    engine = toy_engine(kind, training, plan, toy_network(dropout))
    return Job(
        training=training,
        plan=plan,
        engine=engine,
        objective=build_objective(
            process,
            strategies,
            budget_images=training.images,
            global_batch=training.global_batch,
        ),
        stream=ToyStream(),
        augmentation=Augmentation(augment) if augment else None,
        ema=EmaTracks(
            training.ema,
            budget=training.images,
            global_batch=training.global_batch,
            owned=engine.owned(),
        ),
        store=CheckpointStore(root / "checkpoints", keep=training.keep_checkpoints),
        snapshots=root / "snapshots",
        facts=FACTS,
        callbacks=Callbacks() if log is None else Callbacks(log=log),
        on_event=on_event,
    )


Points = dict[int, float]
"""Logged loss by images seen."""


def run(
    root: Path, *, resume: Resume = "auto", job: Job | None = None, **settings: Any
) -> tuple[Outcome, Points]:
    """Run or resume a job in `root`; its outcome and the points it logged (on rank 0)."""
    points: Points = {}
    job = job or toy_job(root, **settings)

    def log(images_seen: int, metrics: Mapping[str, float]) -> None:
        assert math.isfinite(metrics["train/images_per_s"])
        points[images_seen] = metrics["train/loss"]

    job = replace(job, callbacks=replace(job.callbacks, log=log))
    start = choose_start(job.store, resume, job.facts, job.engine.group)
    return train(job, start), points


def save_again(source: Path, root: Path, kind: str) -> Checkpoint:
    """Load the newest checkpoint of one run into a fresh engine and save it as another run's."""
    job = toy_job(root, kind=kind)
    start = choose_start(CheckpointStore(source / "checkpoints"), "must", FACTS, job.engine.group)
    assert start is not None
    job.store.load(start, job.engine, job.ema)
    return job.store.save(job.engine, job.ema, FACTS, images_seen=start.images_seen)


def specs(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a job whose process and strategies are given as JSON."""
    types: dict[str, TypeAdapter[Any]] = {
        "process": TypeAdapter(ProcessSpec),
        "strategies": TypeAdapter(list[StrategySpec]),
    }
    return {
        key: types[key].validate_python(value) if key in types else value
        for key, value in changes.items()
    }


def kill_at(event: str, occurrence: int) -> OnEvent:
    """An `OnEvent` that sends SIGKILL to this process at the n-th occurrence of `event`."""
    met = 0

    def on_event(name: str) -> None:
        nonlocal met
        met += name == event
        if met == occurrence:
            os.kill(os.getpid(), signal.SIGKILL)

    return on_event


def main(arguments: dict[str, Any]) -> None:
    """One worker: the runs in `arguments["runs"]` one after the other.

    Points go to <root>/points.json. A run "from" another root only loads its checkpoint and saves
    it again.
    """
    rank, world = arguments["rank"], arguments["world"]
    if world > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=arguments["rendezvous"], rank=rank, world_size=world
        )
    for spec in arguments["runs"]:
        root = Path(spec["root"])
        if "from" in spec:
            save_again(Path(spec["from"]), root, spec["kind"])
            continue
        event = no_event
        if spec.get("kill") and spec.get("kill_rank", 0) == rank:
            event = kill_at(*spec["kill"])
        _, points = run(root, kind=spec["kind"], on_event=event, **specs(spec.get("changes", {})))
        if rank == 0:
            (root / "points.json").write_text(json.dumps(points))
    if world > 1:
        torch.distributed.destroy_process_group()
        # DeepSpeed keeps references to the group, whose threads now and then abort Python's exit.
        os._exit(0)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
