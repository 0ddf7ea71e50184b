"""A sweep that could not keep its results, or would mix them with another's, does not start."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from fleetstep.config import SweepSpec
from fleetstep.durable import write_json
from fleetstep.errors import UsageError
from fleetstep.orchestration import sweep_job
from fleetstep.orchestration.sweep_file import SweepFiles, write_scores, write_standings
from fleetstep.orchestration.sweep_start import check_start, replaced
from pixel_sweep import Sweep, run


def spec_of(storage: Path) -> SweepSpec:
    return SweepSpec(runs=("x",), storage=str(storage))


def status(spec: SweepSpec, **changes: Any) -> Path:
    path = SweepFiles.of(spec).status
    path.parent.mkdir(parents=True, exist_ok=True)
    known = {"state": "running", "pid": 1, "host": socket.gethostname(), "time": time.time()}
    write_json(path, known | changes)
    return path


class TestStorage:
    def test_a_folder_that_can_be_written_is_left_as_it_was(self, tmp_path: Path):
        spec = spec_of(tmp_path / "deep" / "runs")
        check_start(spec)
        assert list(SweepFiles.of(spec).folder.iterdir()) == []

    @pytest.mark.parametrize("start", [check_start, sweep_job.run_sweep])
    def test_one_that_cannot_is_refused_before_anything_else(self, tmp_path: Path, start: Any):
        file = tmp_path / "file"
        file.write_text("not a folder")
        with pytest.raises(
            UsageError, match=r"storage: .*file/runs must be .*can be written"
        ) as e:
            start(spec_of(file / "runs"))
        assert "storage=FOLDER" in e.value.remedy


class TestDriver:
    @pytest.mark.parametrize(
        ("changes", "refused"),
        [
            ({}, True),
            ({"time": 0.0}, True),  # it may be at a unit that takes long: it lives
            ({"state": "finished"}, False),
            ({"state": "interrupted"}, False),
            ({"pid": os.getpid()}, False),
            ({"pid": 2**22 + 1}, False),  # greater than any process's
            ({"host": "elsewhere"}, True),
            ({"host": "elsewhere", "time": time.time() - 3600}, False),
            ({"pid": None}, False),
        ],
    )
    def test_one_at_a_time(self, tmp_path: Path, changes: dict[str, Any], refused: bool):
        spec = spec_of(tmp_path)
        path = status(spec, **changes)
        before = path.read_bytes()
        if refused:
            with pytest.raises(UsageError, match="'sweep' is running already") as caught:
                check_start(spec)
            assert "another name" in caught.value.remedy
            assert str(path) in caught.value.remedy
        else:
            check_start(spec)
        assert path.read_bytes() == before

    def test_a_sweep_of_another_name_is_no_hindrance(self, tmp_path: Path):
        status(spec_of(tmp_path))
        check_start(spec_of(tmp_path).model_copy(update={"name": "other"}))

    def test_a_damaged_status_is_no_hindrance(self, tmp_path: Path):
        path = status(spec_of(tmp_path))
        for content in ("", "[]", "{"):
            path.write_text(content)
            check_start(spec_of(tmp_path))


class TestReplaced:
    def test_results_of_another_grid_are_named_and_a_grid_that_grows_replaces_nothing(
        self, tmp_path: Path
    ):
        spec, sweep = spec_of(tmp_path), Sweep(tmp_path)
        scores = SweepFiles.of(spec).scores
        assert replaced(spec, sweep.plan) == ""
        run(sweep.plan.units, sweep.worker())
        write_scores(scores, spec, sweep.plan, sweep.scores())
        larger = Sweep(tmp_path, nfe=(3, 4), samples=2000).plan
        assert replaced(spec, sweep.plan) == replaced(spec, larger) == ""
        found = replaced(spec, Sweep(tmp_path, nfe=(4,)).plan)
        assert found.startswith("sweep 'sweep': replaces the results of another grid")
        assert "(4 cells of near, far)" in found

    def test_what_screening_left_out_is_of_the_same_grid(self, tmp_path: Path):
        spec, plan = spec_of(tmp_path), Sweep(tmp_path).plan
        write_standings(SweepFiles.of(spec).scores, spec, plan.without({plan.cells[0]}), [])
        assert replaced(spec, plan) == ""

    @pytest.mark.parametrize("content", ["", "[]", '{"cells": 3}', '{"cells": [{}]}'])
    def test_a_file_that_says_nothing_replaces_nothing(self, tmp_path: Path, content: str):
        spec = spec_of(tmp_path)
        SweepFiles.of(spec).folder.mkdir(parents=True)
        SweepFiles.of(spec).scores.write_text(content)
        assert replaced(spec, Sweep(tmp_path).plan) == ""
