"""docs/tuning.md names kinds, files and commands that are there, and its search loads."""

import re
from pathlib import Path
from typing import get_args

import pytest
import typer
import yaml
from pydantic import BaseModel

from documents import ROOT, missing_links
from fleetstep.cli import app
from fleetstep.config import SearchSpec, load, trials_of
from fleetstep.config.search import SchedulerSpec, SearcherSpec
from fleetstep.config.search_dimensions import KINDS

TEXT = (ROOT / "docs" / "tuning.md").read_text()
COMMANDS = re.findall(r"^    (fleetstep .*)$", TEXT, re.MULTILINE)


def kinds(union: object) -> set[str]:
    models: tuple[type[BaseModel], ...] = get_args(get_args(union)[0])
    return {model.model_fields["kind"].default for model in models}


def test_the_printed_search_loads(tmp_path: Path, digits_path: Path):
    (text,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    tree = yaml.safe_load(text)
    tree["trial"]["base"] = str(ROOT / "pipelines" / "searches" / tree["trial"]["base"])
    file = tmp_path / "search.yaml"
    file.write_text(yaml.safe_dump(tree))
    search = load(SearchSpec, file, [f"trial.data.path={digits_path}"])
    assert len(trials_of(search) or ()) == 12
    assert "strategies/fdm/0.multiplier" in search.space.keys
    assert "`strategies/fdm/0.multiplier`" in TEXT


def test_every_kind_has_its_words():
    for kind in (*kinds(SearcherSpec), *kinds(SchedulerSpec)):
        assert f"`{kind}`" in TEXT
    for kind in KINDS:
        assert f"`{{{kind}: [" in TEXT


def test_links_are_there():
    assert missing_links(TEXT) == []
    shipped = {path.name for path in (ROOT / "pipelines" / "searches").glob("*.yaml")}
    assert shipped == set(re.findall(r"searches/([\w-]+\.yaml)\)", TEXT))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_its_options(command: str):
    node = typer.main.get_command(app)
    words = re.sub(r" # .*", "", command).split()[1:]
    while hasattr(node, "commands"):
        node = node.commands[words.pop(0)]
    known = {name for parameter in node.params for name in parameter.opts}
    assert [word for word in words if word.startswith("--") and word not in known] == []
    assert all((ROOT / word).is_file() for word in words if word.endswith(".yaml"))


def test_commands_are_found():
    assert len(COMMANDS) == 4
