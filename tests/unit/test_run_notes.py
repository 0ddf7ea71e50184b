"""What the MLflow UI says of a run: one sentence with the result, beside what people wrote."""

from __future__ import annotations

from pathlib import Path

import pytest

from fleetstep.errors import UnknownRunError
from fleetstep.orchestration import tracking_store
from fleetstep.orchestration.run_notes import (
    HELD_OUT,
    NOTE,
    last_point,
    training_sentence,
    with_sentence,
)
from fleetstep.orchestration.spool import SpoolWriter
from fleetstep.orchestration.tracking import Tracker
from small_run import small_experiment


def test_a_training_run_says_what_it_is_and_what_came_out(tmp_path: Path):
    experiment = small_experiment(tmp_path, tmp_path)
    writer = SpoolWriter(tmp_path / "metrics.jsonl")
    assert last_point(tmp_path / "metrics.jsonl", HELD_OUT) is None
    writer.append(0, {HELD_OUT: 1.5})
    writer.append(64, {"train/loss": 9.0})
    writer.append(3200, {HELD_OUT: 0.42264})
    before = training_sentence(experiment, "digits")
    assert before == (
        "Training: edm process, no strategy, ddpmpp on digits, 3.2 kimg in batches of 32, seed 0."
    )
    after = training_sentence(
        experiment, "digits", last_point(tmp_path / "metrics.jsonl", HELD_OUT)
    )
    assert after == f"{before} Held-out loss 0.4226 after 3.2 kimg, at the last snapshot."


@pytest.mark.parametrize(
    ("note", "result"),
    [
        ("", "Training: b."),
        ("Training: a.", "Training: b."),
        ("Training: a.\n\nMine.\n\nToo.", "Training: b.\n\nMine.\n\nToo."),
        ("Mine: look.\n\nToo.", "Training: b.\n\nMine: look.\n\nToo."),
    ],
)
def test_what_people_wrote_stays(note: str, result: str):
    assert with_sentence(note, "Training: b.") == result
    assert with_sentence(result, "Training: b.") == result


def test_the_ui_knows_what_the_experiment_is_and_who_made_a_run(tmp_path: Path):
    tracker = Tracker(f"sqlite:///{tmp_path}/mlflow.db", "notes")
    run_id = tracker.start_run("edm", {})
    tracker.describe(run_id, "Training: a.")
    tracker.describe(run_id, "Training: b.")
    client = tracking_store.connect(tracker.uri)
    tags = client.get_run(run_id).data.tags
    assert tags[NOTE] == "Training: b."
    assert tags["mlflow.source.name"].startswith("fleetstep ")
    experiment = client.get_experiment(tracker.experiment_id)
    assert "images seen" in experiment.tags[NOTE]
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    with pytest.raises(UnknownRunError):
        tracker.describe("0" * 32, "Training: a.")
