"""What a run's folder remembers: why it gave up, and whose it is."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from fleetstep import errors
from fleetstep.errors import ConfigError, DataError, FleetstepError, ResumeError
from fleetstep.orchestration.fit_worker import Assignment
from fleetstep.orchestration.run_folder import RunCard, RunFolder
from fleetstep.orchestration.tracked_run import check_metrics
from fleetstep.training.checkpoint import no_event
from fleetstep.training.checkpoint_format import RunFacts

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, FleetstepError)
]


def made(kind: type[FleetstepError]) -> FleetstepError:
    if issubclass(kind, ConfigError):
        return kind(["a: wrong", "b: wrong"])
    return kind("the rule, the value", "the remedy")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_survives_the_note_of_giving_up(kind: type[FleetstepError], tmp_path: Path):
    folder, error = RunFolder(tmp_path), made(kind)
    folder.give_up(error)
    for again in (folder.reason_to_give_up(), pickle.loads(pickle.dumps(error))):
        assert type(again) is kind
        assert str(again) == str(error)
        assert again.args == error.args or isinstance(again, ConfigError)


def test_the_first_error_stays_and_a_note_that_cannot_be_written_hides_nothing(tmp_path: Path):
    folder = RunFolder(tmp_path)
    folder.give_up(DataError("first"))
    folder.give_up(DataError("second"))
    assert str(folder.reason_to_give_up()) == "first"
    gone = RunFolder(tmp_path / "gone")
    gone.give_up(DataError("lost"))
    assert gone.reason_to_give_up() is None


def test_a_card_is_read_back_and_half_a_card_is_none(tmp_path: Path):
    card = RunCard("id", "experiment", "identity")
    card.write(tmp_path / "run.json")
    assert RunCard.read(tmp_path / "run.json") == card
    (tmp_path / "run.json").write_text('{"run_id": "id"}')
    assert RunCard.read(tmp_path / "run.json") is None


def test_metrics_of_another_experiment_are_not_added_to(tmp_path: Path):
    folder, facts = RunFolder(tmp_path), RunFacts("mine", "data", "execution", {})
    check_metrics(folder, facts)
    folder.spool.parent.mkdir()
    folder.spool.write_text("a line")
    with pytest.raises(ResumeError, match="unknown"):
        check_metrics(folder, facts)
    RunCard("id", "experiment", "mine").write(folder.card)
    check_metrics(folder, facts)
    with pytest.raises(ResumeError, match=r"metrics of another experiment.*mine, this run has x"):
        check_metrics(folder, replace(facts, identity="x"))


def test_an_assignment_does_not_print_the_trackers_address(tmp_path: Path):
    job = Assignment("{}", "id", "http://u:hunter2@host", str(tmp_path), no_event)
    assert "hunter2" not in repr(job)
