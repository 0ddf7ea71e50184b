"""What the training of a predictor would do, worked out before it starts:
`fleetstep amed train --dry-run`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleetstep import config
from fleetstep.config import AmedExperiment
from fleetstep.config.amed import how_to_make
from fleetstep.diffusion.spec.laws import level_range
from fleetstep.errors import CheckpointError
from fleetstep.orchestration.sample import guidance_warnings
from fleetstep.orchestration.snapshots import find_snapshots, trained_experiment
from fleetstep.sampling.amed.predictor import AmedPredictor
from fleetstep.sampling.schedules import sigmas
from fleetstep.sampling.spec import SIGMA_MAX, SIGMA_MIN


@dataclass(frozen=True, kw_only=True)
class AmedPreview:
    """The numbers of a training before it starts; calls are the network's, guidance included.

    Attributes:
        network: the snapshot, or how to make one where there is none.
        warnings: what a user should know before it starts.
        levels: of the student; on the whole range if the network is not there.
        nfe: calls per image of the trained sampler.
        teacher_calls: per latent of a loop.
        student_calls: per latent of a loop, forward.
        backward_calls: per latent of a loop: of the student's, those that are differentiated.
        loops, updates: of the whole training.
        calls: forward calls on a latent, of the whole training.
        parameters: numbers in the predictor.
        checkpoints: that will be written.
    """

    experiment: AmedExperiment
    network: str
    warnings: tuple[str, ...]
    levels: tuple[float, ...]
    nfe: int
    teacher_calls: int
    student_calls: int
    backward_calls: int
    loops: int
    updates: int
    calls: int
    parameters: int
    checkpoints: int

    def summary(self) -> str:
        """A few lines to print before training starts."""
        training, workers = self.experiment.training, self.experiment.cluster.workers
        schedule, teacher = training.chosen_schedule.label, training.chosen_teacher.label
        scales = f"scale_dir {training.scale_dir:g}, scale_time {training.chosen_scale_time:g}"
        learned = ", ".join(
            name
            for name, kept in (
                ("r", True),
                ("c", training.scale_dir > 0),
                ("a", training.chosen_scale_time > 0),
            )
            if kept
        )
        lines = [
            f"{self.experiment.name}: a predictor of {learned} ({self.parameters:,} parameters, "
            f"{scales}) for {training.student.label} at NFE {self.nfe}"
            f"{' with an analytical first step' if training.afs else ''}",
            f"  network {self.network}, track {self.experiment.track}",
            f"  {len(self.levels)} points of {schedule}: "
            f"{', '.join(f'{level:.4g}' for level in self.levels)}",
            f"  teacher {teacher}, {training.chosen_intermediate} level(s) between two of the "
            f"student's: {self.teacher_calls} network calls per latent",
            f"  {self.loops} loops of {training.batch} latents = {workers} worker(s) x "
            f"{training.batch // workers}; {self.updates} updates, {self.checkpoints} "
            "checkpoint(s)",
            f"  {self.calls:,} network calls on one latent in all, and "
            f"{self.backward_calls * self.experiment.images:,} backward",
        ]
        warnings = (f"  warning: {warning}" for warning in self.warnings)
        published = (f"  published: {entry.text}" for entry in self.experiment.published)
        return "\n".join([*lines, *warnings, *published])

    def text(self) -> str:
        """The summary after the resolved configuration."""
        return f"{config.dump(self.experiment)}---\n{self.summary()}"

    def as_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        names = [name for name in self.__dataclass_fields__ if name != "experiment"]
        return {
            "experiment": self.experiment.model_dump(mode="json"),
            **{name: getattr(self, name) for name in names},
            "levels": list(self.levels),
            "warnings": list(self.warnings),
        }


def preview_amed(experiment: AmedExperiment) -> AmedPreview:
    """Work the training's numbers out; reads the snapshot's facts if it is there, starts
    nothing.

    Raises:
        CheckpointError: the snapshot is damaged.
        SamplingError: the schedule cannot have these points.
    """
    training = experiment.training
    steps, guided = training.chosen_points - 1, training.guidance
    calls = 1 if guided is None else guided.calls
    teacher = training.chosen_teacher.evals_per_step * (training.chosen_intermediate + 1)
    network = _network(experiment)
    every = experiment.checkpoint_loops
    student_calls = training.chosen_nfe
    teacher_calls = calls * teacher * steps
    return AmedPreview(
        experiment=experiment,
        network=network.text,
        warnings=network.warnings,
        levels=tuple(
            sigmas(training.chosen_schedule, steps + 1, network.low, network.high).tolist()
        ),
        nfe=training.chosen_nfe,
        teacher_calls=teacher_calls,
        student_calls=student_calls,
        backward_calls=calls * steps,
        loops=training.loops,
        updates=training.loops * steps,
        calls=(teacher_calls + student_calls) * experiment.images,
        parameters=_parameters(experiment),
        checkpoints=training.loops // every + bool(training.loops % every),
    )


def _parameters(experiment: AmedExperiment) -> int:
    training = experiment.training
    predictor = AmedPredictor(training.scale_dir, training.chosen_scale_time)
    return sum(parameter.numel() for parameter in predictor.parameters())


@dataclass(frozen=True)
class _Network:
    """What is said of the network, and the range of levels that it shares with samplers."""

    text: str
    low: float = SIGMA_MIN
    high: float = SIGMA_MAX
    warnings: tuple[str, ...] = ()


def _network(experiment: AmedExperiment) -> _Network:
    """What there is of the network."""
    run = experiment.run
    try:
        (snapshot,) = find_snapshots([run], which="last", track=experiment.track)
    except CheckpointError:
        # A dry run asks for no network; one that is there must be sound.
        if Path(run).exists():
            raise
        return _Network(
            f"{run} is NOT THERE, so nothing was checked against it: {how_to_make(run)}"
        )
    low, high = level_range(trained_experiment(snapshot).process)
    return _Network(
        f"{snapshot.run} at {snapshot.images_seen:,} images ({snapshot.path})",
        max(low, SIGMA_MIN),
        min(high, SIGMA_MAX),
        tuple(guidance_warnings(snapshot, experiment.training.guidance)),
    )
