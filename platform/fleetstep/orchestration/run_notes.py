"""What the MLflow UI says to those who have it alone: notes on an experiment and on its runs."""

from __future__ import annotations

import contextlib
import getpass
from pathlib import Path

from fleetstep import __version__
from fleetstep.config import Experiment
from fleetstep.orchestration.spool import Point, SpoolReader

NOTE = "mlflow.note.content"
"""The tag that the UI shows as a description, in Markdown."""

HELD_OUT = "held_out/loss"

EXPERIMENT_TAGS = {
    # Its pages for training, not those for chats.
    "mlflow.experimentKind": "custom_model_development",
    NOTE: """Trained diffusion models and their scores. Every step is a number of images seen.

- `held_out/loss`: denoising error of the averaged weights on held-out images, the same for all
  training strategies; `held_out/bin0` is the lowest noise. `train/loss` depends on the strategy:
  do not compare runs by it.
- `eval/...`: scores of drawn images. A name holds the metric, the number of images, the features
  and their hash: compare equal names alone. Solver and network calls are the nested run's name.
- `system/...`: the machine of the first worker.
- Tag `fleetstep.kind`: `train` is a training run; `cell`, nested under it, one solver and number
  of network calls of a sweep; `amed` a predictor's training; `search` and `trial` a search.
- `scores.json` of a run holds each score with its interval and protocol; `fleetstep compare` reads
  all of it.
""",
}


def source_tags() -> dict[str, str]:
    """Who made a run, and with what: the columns that the UI has for it."""
    tags = {"mlflow.source.name": f"fleetstep {__version__}", "mlflow.source.type": "LOCAL"}
    with contextlib.suppress(OSError, KeyError):  # a container's user may have no name
        tags["mlflow.user"] = getpass.getuser()
    return tags


def with_sentence(note: str, sentence: str) -> str:
    """A note whose first paragraph is `sentence`, in place of an earlier one of its kind.

    Args:
        note: "" for none yet; what people wrote in it stays.
        sentence: one paragraph; its text up to the first colon says what kind of run it is.
    """
    first, _, rest = note.partition("\n\n")
    if first.partition(":")[0] != sentence.partition(":")[0]:
        rest = note
    return f"{sentence}\n\n{rest}" if rest else sentence


def training_sentence(experiment: Experiment, dataset: str, reached: Point | None = None) -> str:
    """What a training run is and, once there is one, its result.

    Args:
        experiment: what is trained.
        dataset: its name.
        reached: the last point of `held_out/loss`.
    """
    training, network = experiment.training, experiment.network
    strategies = " + ".join(strategy.kind for strategy in experiment.strategies) or "no strategy"
    text = (
        f"Training: {experiment.process.kind} process, {strategies}, {network.kind} on {dataset}, "
        f"{training.images / 1000:g} kimg in batches of {training.global_batch}, "
        f"seed {training.seed}."
    )
    if reached is None:
        return text
    return (
        f"{text} Held-out loss {reached.value:.4g} after {reached.images_seen / 1000:g} kimg, at "
        "the last snapshot."
    )


def last_point(spool: Path, key: str) -> Point | None:
    """The last point of a metric in a run's spool, None if there is none."""
    last = None
    for point in SpoolReader(spool).read():
        if point.key == key:
            last = point
    return last
