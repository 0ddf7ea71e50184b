"""The training script of the packaged extractor, on a few steps."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import safetensors.torch
import torch

from fleetstep import rng
from fleetstep.data.pack import pack_npz
from fleetstep.evaluation.resnet20 import ResNet20, normalise


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = Path(__file__).parents[2] / "pipelines/train_extractor.py"
    spec = importlib.util.spec_from_file_location("train_extractor", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.BATCH = 32  # type: ignore[attr-defined]
    return module


@pytest.fixture(scope="module")
def labelled() -> tuple[np.ndarray, np.ndarray]:
    """Two classes of noise: dark and bright."""
    labels = np.arange(32) % 2
    noise = rng.uniform(0, "dark-and-bright", 0, 32, (3, 32, 32)) * 100
    return (noise + 155 * labels[:, None, None, None]).astype(np.uint8), labels


def test_training_learns_and_can_be_repeated(
    script: ModuleType, labelled: tuple[np.ndarray, np.ndarray], tmp_path: Path
):
    lines: list[str] = []

    def trained(seed: int, steps: int) -> ResNet20:
        return script.train(
            *labelled, classes=2, epochs=12, seed=seed, max_steps=steps, log=lines.append
        )

    untrained, first, again = trained(0, 0), trained(0, 2), trained(0, 2)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    learnt = trained(0, 10)
    assert not learnt.training
    x_B3HW, labels = normalise(torch.from_numpy(labelled[0])), torch.from_numpy(labelled[1])
    loss, before = (
        torch.nn.functional.cross_entropy(network.train()(x_B3HW), labels).item()
        for network in (learnt, untrained)
    )
    assert loss < before / 2
    assert not torch.equal(trained(1, 0).conv1.weight, untrained.conv1.weight)

    script.write(first, {"epochs": 12}, tmp_path)
    content = (tmp_path / "fs-rn20.safetensors").read_bytes()
    record = json.loads((tmp_path / "fs-rn20.json").read_text("utf-8"))
    assert record == {"epochs": 12, "sha256": hashlib.sha256(content).hexdigest()}
    loaded = ResNet20(2)
    missing = loaded.load_state_dict(safetensors.torch.load(content), strict=False)
    assert missing.unexpected_keys == []
    assert all(key.endswith("num_batches_tracked") for key in missing.missing_keys)


def test_the_error_is_the_share_of_wrong_classes(
    script: ModuleType, labelled: tuple[np.ndarray, np.ndarray]
):
    images, labels = labelled
    network = ResNet20(2).eval()
    with torch.no_grad():
        guesses = network(normalise(torch.from_numpy(images))).argmax(1).numpy()
    assert script.error_percent(network, images, guesses) == 0
    assert script.error_percent(network, images, 1 - guesses) == 100
    wrong = guesses.copy()
    wrong[:8] = 1 - wrong[:8]
    assert script.error_percent(network, images, wrong) == 25
    assert labels.dtype == np.int64


def test_the_program_trains_on_a_packed_dataset(
    script: ModuleType,
    labelled: tuple[np.ndarray, np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    images, labels = labelled
    np.savez(tmp_path / "x.npz", images=images.transpose(0, 2, 3, 1), labels=labels)
    packed = pack_npz(tmp_path / "x.npz", tmp_path / "packed", heldout=8)
    words = ["--data", tmp_path / "packed", "--out", tmp_path / "out", "--max-steps", 2]
    monkeypatch.setattr("sys.argv", ["train_extractor.py", *map(str, words)])
    # The batch must not be larger than the 24 images that are left to train on.
    monkeypatch.setattr(script, "BATCH", 8)

    script.main()

    record = json.loads((tmp_path / "out/fs-rn20.json").read_text("utf-8"))
    content = (tmp_path / "out/fs-rn20.safetensors").read_bytes()
    assert record["sha256"] == hashlib.sha256(content).hexdigest()
    assert record["stopped_after_steps"] == 2
    assert record["dataset"] == {
        "name": "x",
        "fingerprint": packed.fingerprint,
        "training_images": 24,
        "test_images": 8,
    }


def test_an_error_is_one_message_and_an_exit_code(
    script: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    words = ["--data", tmp_path / "nowhere", "--out", tmp_path / "out"]
    monkeypatch.setattr("sys.argv", ["train_extractor.py", *map(str, words)])

    with pytest.raises(SystemExit) as end:
        script.main()

    assert end.value.code == 1
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "out").exists()
