"""docs/solvers.md names tests, kinds, presets and images that are there, and prints configs that
load."""

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import TypeAdapter

from documents import (
    links,
    missing_links,
    missing_presets,
    missing_tests,
    named_presets,
    named_tests,
)
from fleetstep.config.solver_text import parse_solver
from fleetstep.sampling.spec import ALIASES, ScheduleSpec, SolverSpec, StudentSpec

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "solvers.md").read_text()
SECTIONS: dict[str, Any] = {"solver": SolverSpec, "schedule": ScheduleSpec}
CONFIGS = re.findall(rf"^    ((?:{'|'.join(SECTIONS)}): .*)$", TEXT, re.MULTILINE)
ON_COMMAND_LINES = re.findall(r"--solver '?(\{.*?\}(?=')|\w+(?= --nfe))", TEXT)
DIFFERENCES = [
    *(f"D{i}" for i in range(1, 24)),
    *(f"L{i}" for i in range(1, 11)),
    *(f"A{i}" for i in range(1, 16)),
]


def kinds(union: Any) -> list[str]:
    return [spec.model_fields["kind"].default for spec in get_args(get_args(union)[0])]


def test_every_named_test_is_there():
    assert len(named_tests(TEXT)) > 100
    assert missing_tests(TEXT) == []


@pytest.mark.parametrize("union", [SolverSpec, ScheduleSpec, StudentSpec])
def test_every_kind_has_a_row_of_its_own(union: Any):
    rows = [row for row in TEXT.splitlines() if row.startswith("| `")]
    firsts = [re.findall(r"`(\w+)`", row.split("|")[1]) for row in rows]
    named = {kind for first in firsts for kind in first}
    assert [kind for kind in kinds(union) if kind not in named] == []


@pytest.mark.parametrize("kind", kinds(SolverSpec))
def test_every_solver_has_a_section(kind: str):
    titles = "\n".join(re.findall(r"^## (.*)$", TEXT, re.MULTILINE))
    assert re.search(rf"\b{kind}\b", titles, re.IGNORECASE)


@pytest.mark.parametrize("alias", ALIASES)
def test_other_names_stand_beside_their_kind(alias: str):
    (row,) = (row for row in TEXT.splitlines() if re.match(rf"\| `.*`{alias}`.*\|", row))
    assert row.startswith(f"| `{ALIASES[alias]['kind']}` (")


@pytest.mark.parametrize("number", DIFFERENCES)
def test_every_difference_has_one_row_with_what_we_do_and_its_test(number: str):
    (row,) = (row for row in TEXT.splitlines() if row.startswith(f"| {number} |"))
    *_, differs, ours, held, _ = row.split("|")
    assert differs.strip()
    assert ours.strip()
    assert "::" in held or (held.strip() == "not built" and "left out" in ours)


def test_differences_are_numbered_without_a_gap():
    assert re.findall(r"^\| ([DLA]\d+) \|", TEXT, re.MULTILINE) == DIFFERENCES


def test_every_named_preset_is_there():
    assert len(named_presets(TEXT)) > 5
    assert missing_presets(TEXT) == []


def test_every_image_and_link_is_there():
    assert sum(link.endswith(".png") for link in links(TEXT)) == 4
    assert missing_links(TEXT) == []


@pytest.mark.parametrize("line", CONFIGS)
def test_every_printed_config_loads(line: str):
    ((section, value),) = yaml.safe_load(line).items()
    TypeAdapter(SECTIONS[section]).validate_python(value)


@pytest.mark.parametrize("text", ON_COMMAND_LINES)
def test_every_solver_on_a_command_line_loads(text: str):
    parse_solver(text)


def test_configs_are_found():
    assert len(CONFIGS) > 15
    assert len(ON_COMMAND_LINES) > 1
