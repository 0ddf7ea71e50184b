"""docs/tracking.md names tests, options and addresses that are there, and its programs run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import typer.main
import yaml

from documents import missing_links, missing_presets, missing_tests, named_presets, named_tests
from fleetstep.addresses import SCHEMES, is_tracker
from fleetstep.cli import app
from fleetstep.config.specs import TrackingSpec
from fleetstep.durable import write_json
from fleetstep.orchestration import logged_models, model_flavor
from fleetstep.orchestration.metric_logger import _LONGEST_WAIT_S, FLUSH_S
from fleetstep.orchestration.run_folder import RunCard, RunFolder
from fleetstep.orchestration.snapshots import find_snapshots
from fleetstep.orchestration.system_metrics import EVERY_S
from fleetstep.orchestration.tracking import _DIGEST, RESUME_TAG, Tracker
from fleetstep.training.snapshot import FACTS
from small_run import small_experiment, write_small_run
from synthetic_records import as_json, score

TEXT = (Path(__file__).parents[2] / "docs" / "tracking.md").read_text()
WORDS = " ".join(TEXT.split())
COMMANDS = re.findall(r"^    (fleetstep .*)$", TEXT, re.MULTILINE)
PROGRAMS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_what_it_names_is_there():
    assert len(named_tests(TEXT)) > 20
    assert missing_tests(TEXT) == []
    assert len(named_presets(TEXT)) >= 1
    assert missing_presets(TEXT) == []
    assert missing_links(TEXT) == []


def test_numbers_and_names_are_those_of_the_code():
    assert f"every {FLUSH_S:g} s" in WORDS
    assert f"up to {_LONGEST_WAIT_S:g} s" in WORDS
    assert f"about every {EVERY_S:g} s" in WORDS
    assert f"first {_DIGEST} characters of its fingerprint" in WORDS
    assert f"the tag `{RESUME_TAG}.1`" in WORDS
    for name in model_flavor.PARAMETERS:
        assert f"`{name}`" in WORDS
    for name in logged_models._tags_of(score("a")):
        assert f"`{name}`" in WORDS


def test_every_address_of_the_table_is_one():
    rows = re.findall(r"^\| ((?:`[^`]*`,? ?)+) \| [^|]* \|$", TEXT, re.MULTILINE)
    named = [uri for row in rows for uri in re.findall(r"`([^`]*)`", row)]
    addresses = [text for text in named if "://" in text or text == "databricks"]
    assert len(addresses) == 7
    assert all(is_tracker(address) for address in addresses)
    assert {address.partition(":")[0] for address in addresses} == set(SCHEMES)


def test_the_printed_configuration_loads():
    (line,) = re.findall(r"^    (tracking: .*)$", TEXT, re.MULTILINE)
    assert TrackingSpec.model_validate(yaml.safe_load(line)["tracking"]).experiment == "digits"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_its_options(command: str):
    node = typer.main.get_command(app)
    words = re.sub(r" # .*", "", command).split()[1:]
    while hasattr(node, "commands"):
        node = node.commands[words.pop(0)]
    known = {name for parameter in node.params for name in parameter.opts}
    assert [word for word in words if word.startswith("--") and word not in known] == []


def test_programs_and_commands_are_found():
    assert (len(COMMANDS), len(PROGRAMS)) == (4, 4)


@pytest.mark.cluster
def test_its_programs_run_one_after_the_other(digits_path: Path, tmp_path: Path):
    """On a run with a snapshot, a curve and a score."""
    storage = tmp_path / "runs"
    folder = RunFolder(write_small_run(storage, digits_path, name="digits-edm"))
    (path,) = folder.snapshots.iterdir()
    facts = json.loads((path / FACTS).read_text())
    write_json(path / FACTS, facts | {"shape": [1, 8, 8], "classes": 10})
    (snapshot,) = find_snapshots([str(folder.root)], which="last", track="ema")
    tracker = Tracker(f"sqlite:///{storage}/mlflow.db", "fleetstep")
    run_id = tracker.start_run("digits-edm", {}, tags={"fleetstep.kind": "train"})
    tracker.log_metrics(run_id, 3200, {"held_out/loss": 0.5})
    tracker.log_dict(
        run_id, [as_json(replace(score("digits-edm"), checkpoint=snapshot.digest))], "scores.json"
    )
    tracker.finish(run_id, "FINISHED")
    experiment = small_experiment(storage, digits_path, "digits-edm")
    folder.prepare(json.dumps(experiment.model_dump(mode="json")))
    RunCard(run_id, "fleetstep", "i").write(folder.card)
    ran = subprocess.run(
        [sys.executable, "-c", "\n".join(PROGRAMS)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "version 1 of digits, fd2k" in ran.stdout
    assert "(4, 8, 8, 1) uint8" in ran.stdout
    assert "[(3200, 0.5)]" in ran.stdout
    assert "digits-edm FINISHED [('fd2k" in ran.stdout
