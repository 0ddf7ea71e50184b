"""The training of an AMED predictor as one closed tree, and what its parts must agree on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveInt, TypeAdapter, ValidationError, field_validator

from fleetstep.config.paths import PathText
from fleetstep.config.specs import ClusterSpec, PublishedSpec, TrackingSpec
from fleetstep.diffusion.spec import ProcessSpec, check_range
from fleetstep.sampling.spec import SIGMA_MAX, SIGMA_MIN
from fleetstep.sampling.spec.amed_training import AmedTrainingSpec
from fleetstep.spec import Span, Spec, span_images

# What a snapshot says about itself; written by training.snapshot, which needs torch.
_SNAPSHOT_FACTS = "snapshot.json"


class AmedEvaluationSpec(Spec):
    """The report at the end: distances to a fine reference trajectory on latents that training
    never drew.

    Attributes:
        latents: how many, at least 2; 0 makes no report.
        reference_nfe: network calls per image of the reference, at least; Heun's method on a
            refinement of the same levels.
        batch: latents in a call; the last call may have fewer, or one more.
    """

    latents: int = Field(256, ge=0)
    reference_nfe: PositiveInt = 200
    batch: int = Field(64, ge=2)

    @field_validator("latents")
    @classmethod
    def _not_one(cls, latents: int) -> int:
        if latents == 1:
            raise ValueError(
                "one image alone meets other kernels than a batch does; use 2 or more, or 0 for "
                "no report"
            )
        return latents

    @property
    def batches(self) -> tuple[tuple[int, int], ...]:
        """(first, count) of each call's latents, never one alone: it joins the batch before."""
        cuts = [*range(0, self.latents, self.batch), self.latents]
        if len(cuts) > 2 and cuts[-1] - cuts[-2] == 1:
            del cuts[-2]
        return tuple((first, after - first) for first, after in pairwise(cuts))


class AmedExperiment(Spec):
    """One predictor: the network it is for, how it is trained, and where it all goes.

    Attributes:
        name: the run's name: its folder under `storage` and its name in the tracker.
        storage: folder of all runs; every worker must reach it.
        run: run folder of the network (its last snapshot is taken), or a snapshot folder.
        track: the EMA track that is trained for, and must be sampled.
        training: student, teacher, levels, batch.
        checkpoint_every: images between checkpoints, or a share of the budget.
        published: the published numbers that this experiment stands for.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    storage: PathText = "runs"
    run: PathText
    track: str = Field("ema", min_length=1)
    training: AmedTrainingSpec
    evaluation: AmedEvaluationSpec = AmedEvaluationSpec()
    checkpoint_every: Span = "10%"
    cluster: ClusterSpec = ClusterSpec()
    tracking: TrackingSpec = TrackingSpec()
    published: tuple[PublishedSpec, ...] = ()

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.storage) / self.name

    @property
    def images(self) -> int:
        """Latents of the whole training: the last loop is a whole one."""
        return self.training.loops * self.training.batch

    @property
    def checkpoint_loops(self) -> int:
        """Loops between checkpoints, at least one."""
        images = span_images(self.checkpoint_every, self.training.images)
        return max(1, images // self.training.batch)

    def absolute(self) -> AmedExperiment:
        """The same wherever it is read: workers run in other folders."""
        places = {key: str(Path(getattr(self, key)).absolute()) for key in ("storage", "run")}
        return self.model_copy(update=places)

    def identity(self, snapshot: str) -> str:
        """Digest of what a resumed run must share with its checkpoint.

        Args:
            snapshot: digest of the network's weights and of what turns them into a denoiser.
        """
        training = self.training.model_dump(mode="json", exclude={"images"})
        return _digest({"snapshot": snapshot, "track": self.track, "training": training})

    def execution(self) -> str:
        """Digest of the whole configuration but for the published numbers."""
        return _digest(self.model_dump(mode="json", exclude={"published"}))


def _digest(tree: Any) -> str:
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def check_batch(parts: Mapping[str, Any]) -> list[str]:
    """The batch over the workers: equal shares, of two latents at least (one image alone meets
    other kernels than a batch does).
    """
    if not {"training", "cluster"} <= parts.keys():
        return []
    batch, workers = parts["training"].batch, parts["cluster"].workers
    if batch % workers == 0 and batch >= 2 * workers:
        return []
    shares = sorted({max(2, batch // workers), max(2, -(-batch // workers))})
    nearest = " or ".join(str(share * workers) for share in shares)
    return [
        f"training.batch: {batch} latents cannot be shared by {workers} worker(s), equally and at "
        f"least two to each; nearest that works: {nearest}"
    ]


def check_teacher(parts: Mapping[str, Any]) -> list[str]:
    """A teacher must be finer than its student, or there is nothing to learn."""
    if "training" not in parts:
        return []
    training: AmedTrainingSpec = parts["training"]
    teacher, between = training.chosen_teacher, training.chosen_intermediate
    calls = (between + 1) * teacher.evals_per_step
    if calls > 2:
        return []
    return [
        f"training.intermediate: the teacher {teacher.label} with {between} level(s) between two "
        f"of the student's makes {calls} calls where the student makes 2, and cannot teach it; "
        f"use intermediate: {between + 1} or more, or a teacher of two calls a step"
    ]


def check_network(parts: Mapping[str, Any]) -> list[str]:
    """The network that is named, as far as its snapshot tells without torch. One that is not
    there is left to `check_presence`.
    """
    if "run" not in parts:
        return []
    if parts["run"].startswith("exact:"):
        return [
            f"run: {parts['run']} is an exact denoiser, which has no bottleneck features for a "
            "predictor to read; name a run folder or a snapshot folder"
        ]
    facts = _snapshot_facts(Path(parts["run"]))
    if facts is None:
        return []
    problems = []
    track, tracks = parts.get("track"), facts.get("tracks", {})
    if track is not None and track not in tracks:
        problems.append(f"track: {parts['run']} has no EMA track {track!r}; use {_any_of(tracks)}")
    if "training" in parts:
        # Older snapshots do not name their classes: the driver asks their dataset.
        classes = facts.get("classes")
        problems += check_guidance(
            parts["training"], 1 if classes is None else classes, parts["run"]
        )
        problems += _check_range(facts)
    return problems


def check_presence(parts: Mapping[str, Any]) -> list[str]:
    """Whether the network is there at all."""
    if "run" not in parts or parts["run"].startswith("exact:"):
        return []
    if _snapshot_facts(Path(parts["run"])) is not None:
        return []
    return [
        f"run: {parts['run']} is neither a run folder with snapshots nor a snapshot; "
        f"{how_to_make(parts['run'])}"
    ]


def how_to_make(run: str) -> str:
    """How a network that is not there is made."""
    return (
        "train it, or make it of released weights, e.g. `fleetstep import edm NETWORK.pkl --out "
        f"{run}`"
    )


def check_guidance(training: AmedTrainingSpec, classes: int, run: str) -> list[str]:
    """Guidance against the network's classes; 0 of them is an unconditional network."""
    if training.guidance is None or classes:
        return []
    return [
        f"training.guidance: scale {training.guidance.scale:g} needs class labels, and the "
        f"network of {run} is unconditional; use guidance: null"
    ]


def _check_range(facts: Mapping[str, Any]) -> list[str]:
    try:
        process: ProcessSpec = TypeAdapter(ProcessSpec).validate_python(
            facts["config"].get("process", {"kind": "edm"})
        )
    except (KeyError, ValidationError, AttributeError):
        return []  # said with the snapshot's name when it is loaded
    return [f"run: {line}" for line in check_range(process, SIGMA_MIN, SIGMA_MAX)]


def _snapshot_facts(run: Path) -> dict[str, Any] | None:
    """Facts of the snapshot that a run or snapshot folder stands for; None if there is none."""
    newest = sorted(run.glob(f"snapshots/images-*/{_SNAPSHOT_FACTS}"))[-1:]
    for file in (run / _SNAPSHOT_FACTS, *newest):
        try:
            facts = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return facts if isinstance(facts, dict) else None
    return None


def _any_of(names: Mapping[str, Any]) -> str:
    return " or ".join(repr(name) for name in names) or "another snapshot"
