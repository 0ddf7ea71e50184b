"""docs/evaluation.md names tests, metrics, extractors, protocols, presets and commands that are
there, and prints configs that load."""

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import TypeAdapter

from documents import missing_links, missing_presets, missing_tests, named_presets, named_tests
from fleetstep.config import SweepSpec
from fleetstep.config.measure import EvaluateSpec, PoolSpec
from fleetstep.config.solver_text import parse_solver
from fleetstep.evaluation.jackknife import CONFIDENCE
from fleetstep.evaluation.manifolds import NEIGHBOURS
from fleetstep.evaluation.reference import FEATURES_KEPT
from fleetstep.evaluation.spec import (
    HIGHER_IS_BETTER,
    PROTOCOLS,
    ExtractorSpec,
    MetricKind,
)
from fleetstep.orchestration.cells import UNIT
from fleetstep.orchestration.pool_policy import LEASE_S
from fleetstep.orchestration.status import STALE_S
from fleetstep.orchestration.sweep_plan import BLOCKS, QUICK_BLOCKS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "evaluation.md").read_text()
WORDS = " ".join(TEXT.split())
SECTIONS: dict[str, Any] = {
    "metrics": tuple[MetricKind, ...],
    "extractors": tuple[ExtractorSpec, ...],
    "protocol": str,
    "pool": PoolSpec,
    "evaluate": EvaluateSpec,
}
CONFIGS = re.findall(rf"^    ((?:{'|'.join(SECTIONS)}): .*)$", TEXT, re.MULTILINE)
COMMANDS = re.findall(r"^    (fleetstep .*(?:\n {20}--.*)*)", TEXT, re.MULTILINE)
DIFFERENCES = [f"V{i}" for i in range(1, 15)]
ROWS = {
    name: [cell.strip() for cell in rest.split(" | ")]
    for name, rest in re.findall(r"^\| `([\w-]+)`(?: \([^|]*\))? \| (.*) \|$", TEXT, re.MULTILINE)
}


def test_every_named_test_is_there():
    assert len(named_tests(TEXT)) > 100
    assert missing_tests(TEXT) == []


@pytest.mark.parametrize("kind", get_args(MetricKind))
def test_every_metric_has_a_row_that_says_which_way_it_points(kind: str):
    assert ROWS[kind][0] == ("high" if kind in HIGHER_IS_BETTER else "low")


@pytest.mark.parametrize("kind", NEIGHBOURS)
def test_rows_of_manifolds_have_their_number_of_neighbours(kind: str):
    assert f"k = {NEIGHBOURS[kind]}" in ROWS[kind][1]


@pytest.mark.parametrize("spec", get_args(get_args(ExtractorSpec)[0]))
def test_every_extractor_has_a_row(spec: Any):
    assert len(ROWS[spec.model_fields["kind"].default]) == 4


@pytest.mark.parametrize("name", PROTOCOLS)
def test_rows_of_protocols_say_what_they_fix(name: str):
    resize, pixels, images, blocks, labels, _ = ROWS[name]
    said = {
        "resize": resize.strip("`"),
        "quantisation": pixels.partition(":")[0],
        "samples": images.replace(",", ""),
        "seed_blocks": blocks,
        "labels": labels,
    }
    unsaid = dict.fromkeys(said, "yours")
    assert said == unsaid | {key: str(value) for key, value in PROTOCOLS[name].items()}


@pytest.mark.parametrize("number", DIFFERENCES)
def test_every_difference_has_one_row_with_what_we_do_and_its_test(number: str):
    (row,) = (row for row in TEXT.splitlines() if row.startswith(f"| {number} |"))
    *_, differs, ours, held, _ = row.split("|")
    assert differs.strip()
    assert ours.strip()
    assert "::" in held


def test_differences_are_numbered_without_a_gap():
    assert re.findall(r"^\| (V\d+) \|", TEXT, re.MULTILINE) == DIFFERENCES


def test_numbers_are_those_of_the_code():
    screen = SweepSpec.model_fields["screen"]
    assert f"a *unit* {UNIT} consecutive images" in WORDS
    assert f"of which a score has {QUICK_BLOCKS} or {BLOCKS}" in WORDS
    assert f"a {100 * CONFIDENCE:.0f} % interval" in WORDS
    assert f"up to {FEATURES_KEPT:,} evenly spaced images" in WORDS
    assert f"leases of about {LEASE_S} s" in WORDS
    assert STALE_S == 60
    assert "no sign for a minute" in WORDS
    (spec,) = (kind for kind in get_args(screen.annotation) if kind is not type(None))
    assert f"The first {spec().latents} latents" in WORDS
    assert f"one-sided at {100 * spec().confidence:.0f} %" in WORDS


def test_every_named_preset_is_there():
    assert len(named_presets(TEXT)) > 2
    assert missing_presets(TEXT) == []


def test_every_image_and_link_is_there():
    assert missing_links(TEXT) == []


@pytest.mark.parametrize("line", CONFIGS)
def test_every_printed_config_loads(line: str):
    whole = line.replace("sha256: ...", f"sha256: {'a' * 64}")
    ((section, value),) = yaml.safe_load(whole).items()
    TypeAdapter(SECTIONS[section]).validate_python(value)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_its_options(command: str):
    import typer.main

    from fleetstep.cli import app

    verb, *words = re.sub(r" # .*", "", command).split()[1:]
    known = {
        name
        for parameter in typer.main.get_command(app).commands[verb].params  # type: ignore[attr-defined]
        for name in (*parameter.opts, *parameter.secondary_opts)
    }
    assert [word for word in words if word.startswith("--") and word not in known] == []
    for solver in re.findall(r"--solver ('\{.*?\}'|\w+)", command):
        parse_solver(solver.strip("'"))


def test_configs_and_commands_are_found():
    assert len(CONFIGS) == 8
    assert len(COMMANDS) == 9
