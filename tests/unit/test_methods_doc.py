"""docs/methods.md names tests, kinds and presets that are there, and prints configs that load."""

import re
from pathlib import Path
from typing import get_args

import pytest
import yaml
from pydantic import TypeAdapter

from documents import missing_presets, missing_tests, named_presets, named_tests
from fleetstep.config.specs import GridSpec
from fleetstep.data.spec import DataSpec
from fleetstep.diffusion.spec import ProcessSpec, StrategySpec
from fleetstep.networks.spec import NetworkSpec
from fleetstep.training.spec import TrainingSpec

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "methods.md").read_text()
SECTIONS = {
    "process": ProcessSpec,
    "strategies": tuple[StrategySpec, ...],
    "network": NetworkSpec,
    "training": TrainingSpec,
    "grid": GridSpec,
    "data": DataSpec,
}
CONFIGS = re.findall(rf"^    ((?:{'|'.join(SECTIONS)}): .*)$", TEXT, re.MULTILINE)
DIFFERENCES = [f"F{i}" for i in range(1, 15)] + [f"S{i}" for i in range(1, 14)]


def test_every_named_test_is_there():
    assert len(named_tests(TEXT)) > 100
    assert missing_tests(TEXT) == []


@pytest.mark.parametrize("union", [ProcessSpec, StrategySpec, NetworkSpec])
def test_every_kind_is_described(union):
    kinds = [spec.model_fields["kind"].default for spec in get_args(get_args(union)[0])]
    assert [kind for kind in kinds if not re.search(rf"`{kind}`|kind: {kind}\b", TEXT)] == []


@pytest.mark.parametrize("number", DIFFERENCES)
def test_every_difference_has_one_row_that_decides_and_one_with_its_tests(number: str):
    rows = [row for row in TEXT.splitlines() if re.match(rf"\| (?:\w+, )*{number}\b", row)]
    assert ["::" in row for row in rows] == [False, True]


def test_every_named_preset_is_there():
    assert len(named_presets(TEXT)) > 20
    assert missing_presets(TEXT) == []


@pytest.mark.parametrize("line", CONFIGS)
def test_every_printed_config_loads(line: str):
    ((section, value),) = yaml.safe_load(line).items()
    needed = {"images": 1, "global_batch": 1} if section == "training" else {}
    TypeAdapter(SECTIONS[section]).validate_python({**needed, **value} if needed else value)
