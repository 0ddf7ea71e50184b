"""A sweep from the command line is the sweep that a file would hold, and is refused like one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fleetstep.config import SweepSpec, load
from fleetstep.config.sweep_options import SweepOptions, sweep_from
from fleetstep.errors import ConfigError

PRESET = Path(__file__).parents[2] / "pipelines" / "presets" / "digits-sweep.yaml"


def test_options_without_a_preset_are_a_whole_sweep():
    spec = sweep_from(
        None,
        ["storage=elsewhere"],
        SweepOptions(
            run=["runs/a", "exact:data/digits"],
            solver=["dpmpp_2m", "{kind: heun}", "{kind: ipndm, order: 3}"],
            nfe=[5, 9],
            schedule=["own", "logsnr", "{kind: polynomial, rho: 5}"],
            guidance=["none", "1.5"],
            ema=["ema", "slow"],
            metric=["fd", "is"],
            extractor=["fs-rn20"],
            samples=2000,
            seed_blocks=3,
            screen=True,
            name="x",
        ),
    )
    written = load(
        SweepSpec,
        None,
        [
            "name=x",
            "runs=[runs/a, exact:data/digits]",
            "storage=elsewhere",
            "solvers=[{kind: dpmpp}, {kind: heun}, {kind: ipndm, order: 3}]",
            "nfe=[5, 9]",
            "schedules=[null, {kind: logsnr}, {kind: polynomial, rho: 5}]",
            "guidance=[null, {scale: 1.5}]",
            "ema=[ema, slow]",
            "metrics=[fd, is]",
            "extractors=[{kind: fs-rn20}]",
            "samples=2000",
            "seed_blocks=3",
            "screen={}",
        ],
    )
    assert spec == written


def test_no_option_leaves_a_preset_as_it_is():
    assert sweep_from(str(PRESET), [], SweepOptions()) == load(SweepSpec, PRESET)


def test_options_override_a_preset_and_overrides_override_both():
    options = SweepOptions(samples=2000, nfe=[7], name="mine")
    spec = sweep_from(str(PRESET), ["samples=3000"], options)
    whole = load(SweepSpec, PRESET)
    assert (spec.samples, spec.nfe, spec.name) == (3000, (7,), "mine")
    assert (spec.solvers, spec.runs, spec.pool) == (whole.solvers, whole.runs, whole.pool)


def test_an_override_may_stand_where_a_preset_would():
    spec = sweep_from("samples=2000", ["name=y"], SweepOptions(run=["a"]))
    assert (spec.samples, spec.name, spec.runs) == (2000, "y", ("a",))


def test_a_screen_of_a_preset_keeps_its_settings(tmp_path: Path):
    file = tmp_path / "sweep.yaml"
    file.write_text("runs: [a]\nscreen: {confidence: 0.9}\n")
    spec = sweep_from(str(file), [], SweepOptions(screen=True))
    assert spec.screen is not None
    assert (spec.screen.confidence, spec.screen.latents) == (0.9, 64)


def problems(**options: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        sweep_from(None, [], SweepOptions(**options))
    return caught.value.problems


def test_five_mistakes_of_five_kinds_are_reported_together():
    found = problems(
        run=["a"],
        solver=["{kind: heun", "eulr", "euler"],
        guidance=["much"],
        metric=["fdd"],
        samples=1500,
    )
    assert len(found) == 5
    text = "\n".join(found)
    assert "--solver '{kind: heun' is not YAML" in text
    assert "did you mean 'euler'?" in text
    assert "--guidance must be a scale such as 1.5, or none, got 'much'" in text
    assert "metrics.0 = 'fdd'" in text
    assert "samples = 1500: input should be a multiple of 1000" in text


def test_a_run_is_needed():
    assert problems() == ("runs: missing; this field is required",)


def test_a_preset_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match=r"none\.yaml does not exist"):
        sweep_from("none.yaml", [], SweepOptions())


class TestProtocols:
    @pytest.mark.parametrize(
        ("name", "resize", "quantisation", "samples", "blocks"),
        [
            ("clean", "clean", "round", 1000, 1),
            ("edm", "legacy_tensorflow", "round", 50_000, 3),
            ("adm", "legacy_tensorflow", "truncate", 50_000, 1),
        ],
    )
    def test_a_name_stands_for_all_its_settings(
        self, name: str, resize: str, quantisation: str, samples: int, blocks: int
    ):
        spec = sweep_from(None, [], SweepOptions(run=["a"], protocol=name))
        (extractor,) = spec.extractors
        assert (extractor.kind, extractor.resize) == ("inception", resize)  # type: ignore[union-attr]
        assert (spec.quantisation, spec.samples, spec.seed_blocks) == (
            quantisation,
            samples,
            blocks,
        )
        assert spec.protocol == name

    @pytest.mark.parametrize(
        ("options", "override", "says"),
        [
            ({"protocol": "edm", "samples": 10_000}, "", "samples: protocol edm fixes 50000"),
            ({"protocol": "edm", "seed_blocks": 1}, "", "seed_blocks: protocol edm fixes 3"),
            ({"protocol": "adm"}, "quantisation=round", "quantisation: protocol adm fixes trunc"),
            ({"protocol": "edm"}, "labels=balanced", "labels: protocol edm fixes random"),
            (
                {"protocol": "clean", "extractor": ["fs-rn20"]},
                "",
                "protocol: clean measures features of inception with resize clean",
            ),
            (
                {"protocol": "adm", "extractor": ["inception"]},
                "",
                "protocol: adm measures features of inception with resize legacy_tensorflow",
            ),
            ({"protocol": "edmm"}, "", "protocol = 'edmm'"),
        ],
    )
    def test_what_contradicts_it_is_refused(
        self, options: dict[str, Any], override: str, says: str
    ):
        with pytest.raises(ConfigError, match=says):
            sweep_from(None, [override] if override else [], SweepOptions(run=["a"], **options))
