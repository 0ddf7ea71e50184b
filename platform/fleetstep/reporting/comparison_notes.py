"""What a careful reader of a comparison must know, in sentences."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from fleetstep.reporting.records import HELD_OUT_LOSS, RunRecord, Score
from fleetstep.reporting.wording import images_text

DATASET = "dataset.fingerprint"
"""Tag (or param) that identifies the dataset's content."""

# The batch size of the measurement is not among them: it changes nothing but speed.
_HELD_OUT = ("data.heldout", "training.heldout.bins", "training.heldout.images")
# What the network predicts changes neither the levels nor the weight of the measurement.
_NOT_MEASURED = ("process.prediction", "process.learned_variance")


def held_out_notes(
    runs: Sequence[RunRecord], config: Sequence[tuple[str, tuple[str | None, ...]]]
) -> tuple[str, ...]:
    """Why held-out losses may not be compared: other images, or other noise levels."""
    notes = []
    if len({run.tags.get(DATASET) or run.params.get(DATASET) for run in runs}) > 1:
        notes.append("The runs saw different datasets: their held-out losses are not compared.")
    measure = [
        key
        for key, _ in config
        if key in _HELD_OUT or (key.startswith("process.") and key not in _NOT_MEASURED)
    ]
    if measure:
        notes.append(
            f"The held-out measurement differs between the runs ({', '.join(measure)}): their "
            "held-out losses are not compared."
        )
    return tuple(notes)


def run_notes(
    runs: Sequence[RunRecord], config: Sequence[tuple[str, tuple[str | None, ...]]]
) -> tuple[str, ...]:
    """What each run lacks, and whether they differ in their seed alone."""
    notes = [
        f"{run.name} is {run.status}, not FINISHED." for run in runs if run.status != "FINISHED"
    ]
    notes += [
        f"{run.name} has no held-out loss." for run in runs if HELD_OUT_LOSS not in run.curves
    ]
    differing = {key.rpartition(".")[2] for key, _ in config}
    if len(runs) > 1 and "seed" in differing and differing <= {"seed", "name"}:
        notes.append(
            "The runs differ in their seed alone: what differs here is noise between training "
            "seeds."
        )
    return tuple(notes)


def sweep_notes(scores: Sequence[Score]) -> tuple[str, ...]:
    """What differs between the scores of the headline sweep besides what they measure."""
    if not scores:
        return ("No checkpoint was scored: there is no verdict on sample quality.",)
    notes = []
    places = {score.run: score.images_seen for score in scores}
    if len(set(places.values())) > 1:
        listed = ", ".join(f"{run} after {images_text(seen)}" for run, seen in places.items())
        notes.append(f"The scored checkpoints saw different numbers of images: {listed}.")
    for title, facts in (("software", "versions"), ("hardware", "hardware")):
        if len({tuple(sorted(getattr(score, facts).items())) for score in scores}) > 1:
            notes.append(
                f"The scores were made on more than one kind of {title} (see Environment)."
            )
    return tuple(notes)


def checkpoint_notes(
    runs: Sequence[RunRecord], shown_of: Mapping[str, Collection[int]]
) -> tuple[str, ...]:
    """Which scores of a run stand behind the ones that are shown.

    Args:
        shown_of: of each run's name, the images seen of the checkpoints that are shown.
    """
    notes = []
    for run in runs:
        shown = shown_of[run.name]
        hidden = len({score.images_seen for score in run.scores} - set(shown))
        if hidden:
            notes.append(
                f"{hidden} earlier checkpoint{'s' if hidden > 1 else ''} of {run.name} "
                f"{'were' if hidden > 1 else 'was'} scored and "
                f"{'are' if hidden > 1 else 'is'} not shown here."
            )
        weights: dict[tuple[str, int], set[str]] = {}
        for score in run.scores:
            if score.images_seen in shown:
                weights.setdefault((score.ema, score.images_seen), set()).add(score.checkpoint)
        notes += [
            f"Scores of {len(digests)} different checkpoints of {run.name} after "
            f"{images_text(images)} (EMA {ema}) were given: of each cell the last one given is "
            "shown."
            for (ema, images), digests in weights.items()
            if len(digests) > 1
        ]
    return tuple(notes)
