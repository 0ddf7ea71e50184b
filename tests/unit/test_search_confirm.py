from __future__ import annotations

import functools
import math
from pathlib import Path

import pytest

from fleetstep.config import SearchSpec, load, trial_spec, trials_of
from fleetstep.orchestration.search_confirm import SEED, baseline_text, sides
from fleetstep.orchestration.search_confirm import compared as paired
from fleetstep.orchestration.search_records import Goal, Life, Report, TrialRecord
from scripted_search import ASHA, write_search

LOSS = Goal("held_out/loss")
compared = functools.partial(paired, trial="0004", against="strategies=[]")


def record(seed: int, loss: float, **changes: object) -> TrialRecord:
    lives = (Life(0, {SEED: str(seed)}),)
    return TrialRecord(f"{seed:04d}", lives, (Report(64, {LOSS.name: loss}),), **changes)  # type: ignore[arg-type]


def test_each_side_is_a_search_over_seeds_with_all_else_as_asked(
    tmp_path: Path, digits_path: Path
):
    confirm = {"seeds": [3, 5], "baseline": {"strategies": [], "training": {"log_every": 2}}}
    space = {
        "training": {"optimizer": {"lr": {"choice": [1e-2, 1e-3]}}},
        "strategies": {"choice": {"plain": [], "warmup": [{"kind": "warmup"}]}},
    }
    tree = {**ASHA, "space": space, "confirm": confirm}
    search = load(SearchSpec, write_search(tmp_path / "s.yaml", tree, tmp_path, digits_path))
    winner = {"training.optimizer.lr": "0.01", "strategies": "warmup"}
    assert baseline_text(search) == "strategies=[], training.log_every=2"
    found = sides(search, winner)
    assert found["winner"].name == "rates-confirm-winner"
    for side, one in found.items():
        assert one.scheduler.kind == "fifo"
        assert one.confirm is None
        assignments = trials_of(one)
        assert assignments is not None
        assert [dict(assignment) for assignment in assignments] == [{SEED: "3"}, {SEED: "5"}]
        trial = trial_spec(one, assignments[1], name="x", storage=str(tmp_path))
        assert trial.training.seed == 5  # type: ignore[union-attr]
        assert trial.training.images == 1280  # type: ignore[union-attr]
        kinds = [strategy.kind for strategy in trial.strategies]  # type: ignore[union-attr]
        rate, log_every = trial.training.optimizer.lr, trial.training.log_every  # type: ignore[union-attr]
        if side == "winner":
            assert (kinds, rate, log_every) == (["warmup"], 1e-2, 1)
        else:
            assert (kinds, rate, log_every) == ([], 2e-3, 2)
    # What is written of it is read back.
    assert SearchSpec.model_validate(found["winner"].model_dump(mode="json")) == found["winner"]


def test_the_ratio_is_paired_by_seed_with_a_student_interval():
    winner = [record(1, 0.9), record(2, 1.8), record(3, 2.4)]
    baseline = [record(3, 3.0), record(1, 1.0), record(2, 2.0)]
    found = compared(LOSS, winner, baseline)
    ratio = found.ratio
    assert ratio is not None
    mean, deviation = (0.9 + 0.9 + 0.8) / 3, math.sqrt(0.01 / 3)
    half = 4.302652729911275 * deviation / math.sqrt(3)  # t of 2 degrees of freedom
    assert ratio.value == pytest.approx(mean)
    assert (ratio.low, ratio.high) == (pytest.approx(mean - half), pytest.approx(mean + half))
    assert "not proved" in found.text()
    assert "(better)" in compared(LOSS, winner[:2], baseline[1:]).text()


def test_of_a_score_that_is_to_be_large_a_ratio_above_one_is_better():
    score = Goal(LOSS.name, "max")
    more, less = [record(1, 2.0), record(2, 2.02)], [record(1, 1.0), record(2, 1.0)]
    assert "(better)" in compared(score, more, less).text()
    assert "(worse)" in compared(LOSS, more, less).text()
    assert "(worse)" in compared(score, less, more).text()


def test_a_seed_without_both_values_is_named_and_left_out():
    winner = [record(1, 0.9), record(2, math.nan), record(3, 0.9, ending="failed")]
    baseline = [record(1, 1.0), record(2, 1.0), record(3, 1.0), record(4, 0.0)]
    found = compared(LOSS, winner, baseline)
    assert [pair.seed for pair in found.pairs] == [1]
    assert found.missing == (2, 3, 4)
    assert "one seed proves nothing" in found.text()
    assert "no value from seed(s) 2, 3, 4" in found.text()
    assert compared(LOSS, [], []).ratio is None
    assert "no seed" in compared(LOSS, [], []).text()
