"""What one Ray Train worker does for an AMED predictor: its share of every batch of latents, and
on rank 0 the predictor, the metrics and the report.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fleetstep.config import AmedExperiment
from fleetstep.durable import write_json
from fleetstep.exactness import exact_on_cuda
from fleetstep.networks.dit import Dit
from fleetstep.orchestration.amed_checkpoint import choose_amed_start, load_state, save_state
from fleetstep.orchestration.amed_report import make_report
from fleetstep.orchestration.cells import SnapshotRef
from fleetstep.orchestration.fit_worker import Assignment, as_worker, logger_of, report_checkpoint
from fleetstep.orchestration.run_folder import RunFolder
from fleetstep.orchestration.snapshots import load_trained
from fleetstep.sampling.amed.files import save_predictor
from fleetstep.sampling.amed.predictor import Learned
from fleetstep.sampling.amed.training import AmedTrainer, LoopReport, Share
from fleetstep.training.checkpoint import CheckpointStore
from fleetstep.training.checkpoint_format import RunFacts
from fleetstep.training.group import current_group

_KEEP = 2


@dataclass(frozen=True)
class AmedAssignment(Assignment):
    """What a worker needs beside the rest: the network that the predictor is for."""

    snapshot: SnapshotRef


def facts_of(experiment: AmedExperiment, snapshot: SnapshotRef) -> RunFacts:
    """What a checkpoint of this training says about itself."""
    return RunFacts(
        identity=experiment.identity(snapshot.digest),
        dataset=snapshot.dataset,
        execution=experiment.execution(),
        config=experiment.model_dump(mode="json"),
        shape=snapshot.shape,
        classes=snapshot.classes,
    )


def predictor_folder(folder: RunFolder) -> Path:
    """Where a run keeps its predictor."""
    return folder.root / "predictor"


def report_file(folder: RunFolder) -> Path:
    """Where a run keeps what its predictor gains."""
    return folder.root / "report.json"


def run_amed_worker(arguments: dict[str, Any]) -> dict[str, Any]:
    """Train as one of the workers; what rank 0 returns reaches the driver."""
    job: AmedAssignment = arguments["assignment"]
    experiment = AmedExperiment.model_validate_json(job.experiment)

    def trained(folder: RunFolder, device: torch.device) -> dict[str, Any]:
        with _Run(experiment, folder, job, device) as run:
            return run.train()

    return as_worker(job, experiment.cluster, trained)


class _Run:
    """A training in this worker."""

    def __init__(
        self,
        experiment: AmedExperiment,
        folder: RunFolder,
        job: AmedAssignment,
        device: torch.device,
    ) -> None:
        self._experiment, self._folder, self._snapshot = experiment, folder, job.snapshot
        self._on_event, self._facts = job.on_event, facts_of(experiment, job.snapshot)
        exact_on_cuda(device)
        self._group = group = current_group(device)
        self._denoiser = load_trained(job.snapshot, experiment.track, device=device)
        self._trainer = AmedTrainer(
            self._denoiser,
            experiment.training,
            shape=job.snapshot.shape,
            classes=job.snapshot.classes,
            device=device,
            standardise=isinstance(self._denoiser.network, Dit),
            share=Share(
                group.rank, group.world, lambda values: group.sum(values).to(values.device)
            ),
        )
        self._store = CheckpointStore(folder.checkpoints, keep=_KEEP)
        self._outputs: list[Tensor] = []
        self._trainer.predictor.register_forward_hook(self._keep_outputs)
        self._logger = logger_of(job, folder) if group.rank == 0 else None

    def __enter__(self) -> _Run:
        return self

    def __exit__(self, *_: object) -> None:
        if self._logger is not None:
            self._logger.close()

    def train(self) -> dict[str, Any]:
        """All loops that are left, from the newest sound checkpoint; then the predictor and what
        it gains.
        """
        start = choose_amed_start(
            self._store, "auto", self._facts, self._experiment.images, self._group
        )
        if start is not None:
            self._trainer.load_state_dict(load_state(start))
        loops, saved = self._experiment.training.loops, self._trainer.loops_done
        while (done := self._trainer.loops_done) < loops and not self._stop_wanted():
            self._one_loop(done)
            done += 1
            if done == loops or done % self._experiment.checkpoint_loops == 0:
                saved = self._save()
        if done != saved:
            self._save()
        finished = done >= loops
        if finished:
            self._finish()
        return {"images_seen": done * self._experiment.training.batch, "finished": finished}

    def _one_loop(self, index: int) -> None:
        started = time.monotonic()
        self._outputs.clear()
        report = self._trainer.run_loop(index)
        # Means over the workers' shares, which are equally large: [steps, 3].
        means = torch.stack(self._outputs)[-len(report.losses) :].double()
        means = self._group.sum(means) / self._group.world
        rate = self._experiment.training.batch / max(time.monotonic() - started, 1e-9)
        if self._logger is not None:
            self._logger.log(report.images, metrics_of(report, means, rate))
        self._on_event("loop")

    def _keep_outputs(self, _module: object, _inputs: object, learned: Learned) -> None:
        self._outputs.append(torch.stack([value.detach().mean() for value in learned]))

    def _stop_wanted(self) -> bool:
        """What rank 0 sees, on all: a request that comes while they look must not divide them."""
        return bool(self._group.gather(self._folder.stop_request.exists())[0])

    def _save(self) -> int:
        done = self._trainer.loops_done
        checkpoint = save_state(
            self._store,
            self._trainer.state_dict(),
            self._facts,
            loop=done,
            images_seen=done * self._experiment.training.batch,
            group=self._group,
            on_event=self._on_event,
        )
        report_checkpoint(checkpoint)
        return done

    def _finish(self) -> None:
        """The predictor, and what it gains."""
        snapshot, out = self._snapshot, predictor_folder(self._folder)
        if self._group.rank == 0:
            facts = self._trainer.facts(
                snapshot=snapshot.digest,
                track=self._experiment.track,
                run=snapshot.run,
                images_seen=snapshot.images_seen,
            )
            save_predictor(out, self._trainer.predictor, facts)
        self._group.barrier()
        self._on_event("predictor")
        evaluation = self._experiment.evaluation
        if evaluation.latents == 0:
            return
        report = make_report(
            self._denoiser,
            out,
            self._experiment.training,
            evaluation,
            shape=snapshot.shape,
            classes=snapshot.classes,
            group=self._group,
        )
        if self._group.rank == 0:
            write_json(report_file(self._folder), report.as_dict())


def metrics_of(report: LoopReport, means: Tensor, rate: float) -> dict[str, float]:
    """What is logged of a loop; step n of N - 1 counts from zero, as in Zhou et al. (2024).

    Args:
        report: of the loop.
        means: of r, c and a over the batch, [steps, 3].
        rate: latents a second.
    """
    metrics = {
        "train/loss": sum(report.losses) / len(report.losses),
        "train/images_per_s": rate,
        "train/replaced_gradients": float(report.replaced),
    }
    for n, (loss, norm, row) in enumerate(
        zip(report.losses, report.grad_norms, means.tolist(), strict=True)
    ):
        metrics |= {f"train/loss_{n}": loss, f"train/grad_norm_{n}": norm}
        metrics |= {f"learned/{key}_{n}": value for key, value in zip("rca", row, strict=True)}
    return metrics
