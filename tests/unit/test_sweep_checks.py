"""What is asked of a sweep, or of evaluation while training, is checked before torch is there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fleetstep.config import Experiment, SweepSpec, load
from fleetstep.errors import ConfigError
from tiny_experiment import PRESETS


def sweep(*overrides: str) -> SweepSpec:
    return load(SweepSpec, None, ["runs=[x]", *overrides])


def refused(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        sweep(*overrides)
    return "\n".join(caught.value.problems)


class TestSweep:
    def test_guidance_decides_what_can_be_reached(self):
        assert sweep("nfe=[5]", "guidance=[{scale: 1}]").nfe == (5,)
        found = refused("nfe=[5, 9]", "guidance=[{scale: 1.5}]")
        assert found.startswith("nfe: no solver reaches any of [5, 9]; ")
        assert "2 times for guidance" in found
        # One point is enough: the others are skipped with their reasons.
        assert sweep("nfe=[5, 10]", "guidance=[{scale: 1.5}]").nfe == (5, 10)

    @pytest.mark.parametrize(
        ("override", "says"),
        [
            ("nfe=[5, 9, 5]", "nfe: 5 is listed twice"),
            ("ema=[ema, ema]", "ema: ema is listed twice"),
            ("guidance=[{scale: 2}, {scale: 2.0}]", "guidance: {.*2.0.*} is listed twice"),
            ("guidance=[null, null]", "guidance: None is listed twice"),
            ("schedules=[{kind: logsnr}, {kind: logsnr}]", "schedules: .* is listed twice"),
            ("runs=[a, a]", "runs: a is listed twice"),
            ("extractors=[{kind: fs-rn20}, {kind: fs-rn20}]", "extractors: .* is listed twice"),
            ("screen={teacher_nfe: 80}", r"screen\.teacher_nfe: heun cannot make exactly 80"),
            ("screen={teacher: {kind: rk45}}", "teacher: must be deterministic"),
            ("metrics=[fd, fd]", "metrics: each once"),
            ("metrics=[clip_score]", "metrics: clip_score needs the extractor clip"),
            ("pool={min: 3, max: 2}", "min: must not exceed max, got 3 and 2"),
            ("samples=1500", "samples = 1500: input should be a multiple of 1000"),
        ],
    )
    def test_what_makes_no_sense_is_refused_with_its_place(self, override: str, says: str):
        with pytest.raises(ConfigError, match=says):
            sweep(override)

    def test_a_teacher_makes_no_fewer_calls_than_what_it_judges(self):
        grid = ("solvers=[{kind: euler}, {kind: heun}]", "nfe=[35, 79, 100]")
        found = refused(*grid, "screen.latents=64")
        assert found == (
            "screen.teacher_nfe: must be no fewer calls than the 100 of euler, which it judges, "
            "got 79; use 101 or more"
        )
        assert sweep(*grid, "screen.teacher_nfe=101").screen is not None
        # Heun cannot make 100 calls, so 79 are the most there are to judge.
        assert sweep("solvers=[{kind: heun}]", grid[1], "screen.latents=64").screen is not None

    def test_guidance_is_counted_alike_for_the_teacher(self):
        grid = ("solvers=[{kind: euler}]", "nfe=[100]")
        assert "the 100 of euler" in refused(*grid, "screen.teacher_nfe=79")
        guided = "guidance=[{scale: 1.5}]"
        assert sweep(*grid, guided, "screen.teacher_nfe=79").screen is not None
        assert "use 51 or more" in refused(*grid, guided, "screen.teacher_nfe=49")

    def test_what_is_not_judged_may_make_more_calls(self):
        free = "solvers=[{kind: dpmpp_sde}, {kind: rk45}, {kind: heun, s_churn: 10}]"
        assert sweep(free, "nfe=[101]", "screen.latents=64").screen is not None

    def test_levels_that_are_written_down_are_calls_too(self):
        levels = ", ".join(str(81 - index) for index in range(81))
        kind = f"{{kind: euler, schedule: {{kind: levels, sigmas: [{levels}]}}}}"
        assert "the 80 of euler" in refused(f"solvers=[{kind}]", "screen.latents=64")
        assert "cannot make exactly 79" in refused(f"screen={{teacher: {kind}}}")

    def test_five_mistakes_are_reported_together(self, tmp_path: Path):
        overrides = [
            "nfe=[5, 5]",
            "samples=1500",
            f"solvers=[{{kind: amed, predictor: {tmp_path}/none}}, {{kind: euler}}]",
            "storage=s3://bucket",
            "quantisatoin=round",
        ]
        found = refused(*overrides)
        assert len(found.splitlines()) == 5
        code = (
            "import sys\nfrom fleetstep.config import SweepSpec, load\n"
            "from fleetstep.errors import ConfigError\n"
            f"try: load(SweepSpec, None, {['runs=[x]', *overrides]!r})\n"
            "except ConfigError as e: print(len(e.problems))\n"
            "assert 'torch' not in sys.modules and 'ray' not in sys.modules"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert int(done.stdout) == 5


def experiment(digits_path: Path, *overrides: str) -> Experiment:
    where = [f"data.path={digits_path}", *overrides]
    return load(Experiment, PRESETS / "digits-edm.yaml", where)


class TestEvaluation:
    def test_the_defaults_are_sound(self, digits_path: Path):
        found = experiment(digits_path, "evaluate={every: 25%}").evaluate
        assert found is not None
        assert found.pool.cpus_per_actor == 0

    @pytest.mark.parametrize(
        ("section", "says"),
        [
            ({"solvers": [{"kind": "heun"}], "nfe": [4]}, r"evaluate\.nfe: heun cannot make"),
            ({"nfe": [5], "guidance": {"scale": 2}}, r"evaluate\.nfe: .*2 times for guidance"),
            ({"solvers": [{"kind": "rk45"}]}, r"evaluate\.solvers\.0: kind rk45 chooses its own"),
            (
                {"solvers": [{"kind": "amed", "predictor": "p"}]},
                r"evaluate\.solvers\.0: a predictor serves the snapshot",
            ),
            (
                {"solvers": [{"kind": "dpmpp"}, {"kind": "dpmpp_2m"}]},
                r"evaluate\.solvers: .* is listed twice",
            ),
            ({"nfe": [6, 6]}, r"evaluate\.nfe: 6 is listed twice"),
            ({"every": "0%"}, r"evaluate\.every: 0% is 0 images, and must lie in 1 \.\."),
            ({"every": 10**9}, r"evaluate\.every: 1000000000 is 1,000,000,000 images"),
            ({"ema": ["slow"]}, r"evaluate\.ema: 'slow' is not an EMA track; .* has ema"),
            ({"reference_split": "test"}, r"evaluate\.reference_split: 'test' is not a split of"),
            ({"samples": 500}, r"evaluate\.samples = 500: .*multiple of 1000"),
        ],
    )
    def test_what_cannot_work_is_refused(
        self, digits_path: Path, section: dict[str, Any], says: str
    ):
        with pytest.raises(ConfigError, match=says):
            experiment(digits_path, f"evaluate={json.dumps(section)}")

    @pytest.mark.parametrize(
        ("expects", "section", "says"),
        [
            (
                {"classes": 0},
                {"nfe": [6], "guidance": {"scale": 2}},
                r"evaluate\.guidance: scale 2",
            ),
            ({"channels": 4}, {}, r"evaluate: the 4 channels of the data are latents"),
        ],
    )
    def test_a_dataset_that_is_not_there_is_judged_by_what_is_expected_of_it(
        self, expects: dict[str, int], section: dict[str, Any], says: str
    ):
        facts = {"resolution": 8, "channels": 1, "classes": 10} | expects
        overrides = [
            "data.path=none",
            f"data.expects={json.dumps(facts)}",
            f"evaluate={json.dumps(section)}",
        ]
        with pytest.raises(ConfigError, match=says):
            load(Experiment, PRESETS / "digits-edm.yaml", overrides, data_required=False)

    def test_it_decides_nothing_about_the_training(self, digits_path: Path):
        plain = experiment(digits_path)
        scored = experiment(digits_path, "evaluate={every: 25%}")
        assert plain.identity("data") == scored.identity("data")
        assert plain.execution() != scored.execution()
