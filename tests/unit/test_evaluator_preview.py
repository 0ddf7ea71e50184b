"""What a dry run says of scores while a run trains."""

from __future__ import annotations

from pathlib import Path

import pytest

from fleetstep.config import EvaluateSpec, Experiment
from fleetstep.orchestration.preview import preview_training
from tiny_experiment import tiny


@pytest.fixture
def experiment(tmp_path: Path, digits_path: Path) -> Experiment:
    asked = EvaluateSpec(
        every="50%", solvers=({"kind": "euler"}, {"kind": "heun"}), nfe=(5, 9), samples=2000
    )
    return tiny(tmp_path, digits_path).model_copy(update={"evaluate": asked})


def test_the_cost_is_said_before_anything_starts(experiment: Experiment):
    preview = preview_training(experiment)
    # 640 and 1,280 of the snapshots at 0, 640 and 1,280.
    assert (
        "  2 snapshot(s) x 4 cell(s) scored while it trains, with 2,000 images each: 112,000 "
        "network calls by at most 1 actor(s) beside the workers"
    ) in preview.summary()
    size = {"snapshots": 2, "cells": 4, "calls": 2 * 2000 * (5 + 9 + 5 + 9)}
    assert preview.as_dict()["evaluation"] == size


def test_a_run_without_scores_says_nothing_of_them(experiment: Experiment):
    preview = preview_training(experiment.model_copy(update={"evaluate": None}))
    assert "scored" not in preview.summary()
    assert preview.as_dict()["evaluation"] is None


def test_asking_for_scores_makes_no_other_experiment(experiment: Experiment):
    """A checkpoint of a run without scores goes on with them; what was asked is kept with it."""
    without = experiment.model_copy(update={"evaluate": None})
    assert experiment.identity("data") == without.identity("data")
    assert experiment.execution() != without.execution()
