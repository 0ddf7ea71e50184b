from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from fleetstep.data.manifest import FILE_NAME, load_manifest, save_manifest
from fleetstep.data.spec import DataSpec
from fleetstep.errors import DataError


@pytest.fixture
def raw(digits_path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((digits_path / FILE_NAME).read_text())
    return loaded


@pytest.fixture
def load(tmp_path: Path) -> Callable[[Any], Any]:
    def load(content: Any) -> Any:
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / FILE_NAME).write_text(text)
        return load_manifest(tmp_path)

    return load


def test_saved_and_loaded_it_is_the_same(digits_path: Path, tmp_path: Path):
    manifest = load_manifest(digits_path)
    save_manifest(manifest, tmp_path)
    assert load_manifest(tmp_path) == manifest
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


def test_a_missing_manifest_names_the_remedy(tmp_path: Path):
    with pytest.raises(DataError, match="not a packed dataset") as caught:
        load_manifest(tmp_path / "nowhere")
    assert "fleetstep data pack" in caught.value.remedy
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "\x00", "[" * 100_000])
def test_text_that_is_not_json_is_refused(load: Callable[[Any], Any], text: str):
    with pytest.raises(DataError, match="is not JSON"):
        load(text)


@pytest.mark.parametrize("content", [[], 3, {}, {"format": 2}])
def test_another_format_is_refused(load: Callable[[Any], Any], content: Any):
    with pytest.raises(DataError, match="must have manifest format 1"):
        load(content)


def edited(raw: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    place: Any = raw
    *parents, last = path.split("/")
    for part in parents:
        place = place[int(part) if part.isdigit() else part]
    place[last] = value
    return raw


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("order_format", 2, "order_format: Input should be 1"),
        ("splits/train/0/file", "../secret.tar", "own folder, got '../secret.tar'"),
        ("splits/train/0/file", "/etc/passwd", "own folder"),
        ("splits/train/0/index_file", "..", "own folder"),
        ("splits/train/0/file", "train-000001.tar", "listed more than once: train-000001.tar"),
        ("splits/train/0/samples", 0, "greater than 0"),
        ("splits/train/0/samples", 99, "must count its 1499 samples"),
        ("splits/train/0/sha256", "0" * 63, "sha256: String should match"),
        ("splits/train/0/content_sha256", "0" * 64, "fingerprint is .* edited by hand"),
        ("flip_allowed", True, "fingerprint is .* edited by hand"),
        ("fingerprint", "0" * 64, "fingerprint is 000000000000"),
        ("channels", 2, "channels: Input should be 1 or 3"),
        ("classes", 9, "10 class names"),
        ("class_histogram", {}, "same splits"),
        ("class_histogram/train", [150] * 9 + [151], "got 1501 in 10"),
        ("splits", {}, "at least 1 item"),
        ("surprise", 1, "surprise: Extra inputs are not permitted"),
    ],
)
def test_contradictions_are_refused(
    raw: dict[str, Any], load: Callable[[Any], Any], path: str, value: Any, message: str
):
    with pytest.raises(DataError, match=message):
        load(edited(raw, path, value))


@pytest.mark.parametrize(
    ("path", "value"), [("name", "other"), ("licence", "MIT"), ("splits/train/0/sha256", "0" * 64)]
)
def test_the_fingerprint_is_of_content_not_of_names(
    raw: dict[str, Any], load: Callable[[Any], Any], path: str, value: Any
):
    before = raw["fingerprint"]
    assert load(edited(raw, path, value)).fingerprint == before


def test_the_fingerprint_is_pinned(digits_path: Path):
    """Golden: it stands in checkpoints, so that another value would refuse every resume."""
    golden = json.loads(
        (Path(__file__).parents[1] / "golden" / "digits_manifest.json").read_text()
    )
    manifest = load_manifest(digits_path)
    assert manifest.fingerprint == golden["fingerprint"]
    assert list(manifest.class_histogram["heldout"]) == golden["heldout_histogram"]
    assert manifest.splits["train"][0].content_sha256 == golden["first_content_sha256"]


@pytest.mark.parametrize("field", ["window", "prefetch"])
def test_a_spec_is_checked(field: str):
    with pytest.raises(ValidationError, match=field):
        DataSpec.model_validate({"path": "x", field: 0})


def test_spec_and_manifest_load_without_heavy_libraries():
    code = (
        "import sys, fleetstep.data.spec, fleetstep.data.manifest;"
        "heavy = {'torch', 'numpy', 'ray', 'mlflow', 'webdataset', 'sklearn', 'PIL'};"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
