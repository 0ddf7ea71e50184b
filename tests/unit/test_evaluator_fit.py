"""`fit` around an evaluation: training is recorded as it ended, whatever becomes of the scores."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fleetstep.config import EvaluateSpec, Experiment
from fleetstep.errors import DataError, ExtractorError, PoolError, TrainingError
from fleetstep.orchestration import fit as fitting
from fleetstep.orchestration.evaluated import Evaluated
from fleetstep.orchestration.fit import fit
from fleetstep.orchestration.history import History
from fleetstep.orchestration.tracking_store import default_uri
from tiny_experiment import tiny

SCORED = Evaluated(scored=(640, 1280), skipped={}, missing=(), error=None)
FAILED = Evaluated(
    scored=(640,), skipped={}, missing=(1280,), error=PoolError("no actor is left", "look")
)


class Beside:
    """An evaluator that only notes what becomes of it."""

    def __init__(self, ended: Evaluated | BaseException) -> None:
        self.ended = ended
        self.notes: list[str] = []

    def __enter__(self) -> Beside:
        self.notes.append("begun")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.notes.append("ended" if kind is None else f"ended by {kind.__name__}")

    def finish(self) -> Evaluated:
        self.notes.append("waited for")
        if isinstance(self.ended, BaseException):
            raise self.ended
        return self.ended


Run = Callable[..., tuple[str, Beside, BaseException | None]]


@pytest.fixture
def run(tmp_path: Path, digits_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `fit` without Ray: (the tracker's status, the evaluator, what was raised)."""

    def call(ended: Any, outcome: Any) -> tuple[str, Beside, BaseException | None]:
        beside = Beside(ended)

        def workers(*_: object) -> Any:
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        monkeypatch.setattr(fitting, "connect", lambda address: contextlib.nullcontext())
        monkeypatch.setattr(fitting, "check_workers", lambda cluster: None)
        monkeypatch.setattr(fitting, "check_pool", lambda pool: None)
        monkeypatch.setattr(fitting, "evaluator_of", lambda *_: beside)
        monkeypatch.setattr(fitting, "run_workers", workers)
        raised: BaseException | None = None
        try:
            fit(tiny(tmp_path, digits_path, "evaluate={every: 50%}"))
        except BaseException as error:
            raised = error
        (found,) = History(default_uri(tmp_path), "fleetstep").runs(["digits-edm"])
        return found.status, beside, raised

    return call


FINISHED = {"finished": True, "images_seen": 1280}
STOPPED = {"finished": False, "images_seen": 640}


def test_a_finished_training_waits_for_its_scores(run: Run):
    status, beside, raised = run(SCORED, FINISHED)
    assert (status, raised) == ("FINISHED", None)
    assert beside.notes == ["begun", "waited for", "ended"]


def test_scores_that_fail_cost_the_command_its_success_and_training_nothing(run: Run):
    status, _, raised = run(FAILED, FINISHED)
    assert status == "FINISHED"
    assert isinstance(raised, PoolError)
    assert raised.exit_code == 1
    assert "training is finished and kept" in raised.message
    assert "1,280 images: no actor is left" in raised.message
    assert "run the same command again" in raised.remedy


def test_ctrl_c_while_scores_are_waited_for_leaves_a_finished_run(run: Run):
    status, beside, raised = run(KeyboardInterrupt(), FINISHED)
    assert status == "FINISHED"
    assert isinstance(raised, KeyboardInterrupt)
    assert beside.notes[-1] == "ended by KeyboardInterrupt"


@pytest.mark.parametrize(
    ("outcome", "recorded", "kind"),
    [
        (TrainingError("worker 0 failed"), "FAILED", TrainingError),
        (STOPPED, "KILLED", KeyboardInterrupt),
        (KeyboardInterrupt(), "KILLED", KeyboardInterrupt),
    ],
)
def test_a_training_that_did_not_finish_waits_for_no_score(
    outcome: Any, recorded: str, kind: type[BaseException], run: Run
):
    status, beside, raised = run(SCORED, outcome)
    assert status == recorded
    assert type(raised) is kind
    assert beside.notes == ["begun", f"ended by {kind.__name__}"]


class TestRefusedBeforeAnythingStarts:
    @pytest.fixture(autouse=True)
    def _nothing_may_start(self, monkeypatch: pytest.MonkeyPatch) -> None:
        @contextlib.contextmanager
        def never(address: object) -> Iterator[None]:
            raise AssertionError("something was started")
            yield

        monkeypatch.setattr(fitting, "connect", never)

    @pytest.fixture
    def experiment(
        self, tmp_path: Path, digits_path: Path
    ) -> Callable[[EvaluateSpec], Experiment]:
        tiny_one = tiny(tmp_path, digits_path)
        return lambda evaluate: tiny_one.model_copy(update={"evaluate": evaluate})

    def test_a_file_of_statistics_that_is_not_there(
        self, experiment: Callable[[EvaluateSpec], Experiment], tmp_path: Path
    ):
        missing = str(tmp_path / "statistics.npz")
        with pytest.raises(DataError, match=r"statistics\.npz"):
            fit(experiment(EvaluateSpec(reference=missing, metrics=("fd",))))
        assert not (tmp_path / "digits-edm").exists()

    def test_weights_that_are_not_there(
        self, experiment: Callable[[EvaluateSpec], Experiment], tmp_path: Path
    ):
        missing = {"kind": "inception", "path": str(tmp_path / "inception.pt")}
        with pytest.raises(ExtractorError, match=r"inception\.pt"):
            fit(experiment(EvaluateSpec(extractors=(missing,), metrics=("fd",))))
        assert not (tmp_path / "digits-edm").exists()
