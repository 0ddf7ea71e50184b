"""The `data pack` verbs hand every option on to the packing."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fleetstep import cli
from fleetstep.data.manifest import load_manifest
from fleetstep.data.spec import DataSpec
from fleetstep.data.stream import Batch, Stream


@pytest.fixture
def pack(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """Run `fleetstep data pack` into `packed`; the samples of each split."""

    def run(*arguments: object) -> dict[str, int]:
        words = ["fleetstep", "data", "pack", *arguments, "--out", tmp_path / "packed", "--json"]
        monkeypatch.setattr("sys.argv", [str(word) for word in words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        assert end.value.code == 0, err
        samples: dict[str, int] = json.loads(out)["samples"]
        return samples

    return run


def split(folder: Path, name: str) -> Batch:
    return Stream(DataSpec(path=str(folder)), seed=0).split(name)


def arrays(count: int, start: int) -> tuple[np.ndarray, np.ndarray]:
    images = np.broadcast_to(np.arange(start, start + count)[:, None, None], (count, 4, 4))
    return images.astype(np.uint8), np.arange(count, dtype=np.uint8) % 2


def idx(path: Path, values: np.ndarray) -> Path:
    magic = 0x800 + values.ndim
    path.write_bytes(struct.pack(f">I{values.ndim}I", magic, *values.shape) + values.tobytes())
    return path


def test_images_are_stretched_grey_and_png(pack, tmp_path: Path):
    """A wide picture, dark at both ends: the centre square is white, the stretched one is not."""
    (tmp_path / "raw").mkdir()
    for k in range(4):
        pixels = np.zeros((8, 24, 3), np.uint8)
        pixels[:, 8:16] = 255 - k
        Image.fromarray(pixels).save(tmp_path / "raw" / f"{k}.png")
    options = ("--size", 6, "--crop", "stretch", "--channels", 1, "--encoding", "png")

    assert pack("images", tmp_path / "raw", *options) == {"train": 3, "heldout": 1}

    manifest = load_manifest(tmp_path / "packed")
    assert (manifest.encoding, manifest.shape) == ("png", (1, 6, 6))
    assert split(tmp_path / "packed", "train").images[:, 0, 3, 0].max() < 128


def test_images_are_cut_in_colour_unless_asked_otherwise(pack, tmp_path: Path):
    (tmp_path / "raw").mkdir()
    for k in range(4):
        pixels = np.zeros((8, 24, 3), np.uint8)
        pixels[:, 8:16] = 255 - k
        Image.fromarray(pixels).save(tmp_path / "raw" / f"{k}.png")

    pack("images", tmp_path / "raw", "--size", 8)

    manifest = load_manifest(tmp_path / "packed")
    assert (manifest.encoding, manifest.shape) == ("npy", (3, 8, 8))
    assert split(tmp_path / "packed", "train").images.min() > 250


def test_npz_with_a_held_out_file(pack, tmp_path: Path):
    for name, part in (("a", arrays(20, 0)), ("b", arrays(6, 100))):
        np.savez(tmp_path / f"{name}.npz", images=part[0], labels=part[1])

    samples = pack(
        "npz", tmp_path / "a.npz", "--heldout-npz", tmp_path / "b.npz", "--encoding", "png"
    )

    assert samples == {"train": 20, "heldout": 6}
    assert load_manifest(tmp_path / "packed").encoding == "png"
    assert split(tmp_path / "packed", "heldout").images.min() == 100


def test_idx_with_held_out_files(pack, tmp_path: Path):
    (images, labels), (later, later_labels) = arrays(20, 0), arrays(6, 100)

    samples = pack(
        "idx",
        idx(tmp_path / "images", images),
        idx(tmp_path / "labels", labels),
        "--heldout-images",
        idx(tmp_path / "t10k-images", later),
        "--heldout-labels",
        idx(tmp_path / "t10k-labels", later_labels),
        "--encoding",
        "png",
    )

    assert samples == {"train": 20, "heldout": 6}
    assert load_manifest(tmp_path / "packed").encoding == "png"
    assert split(tmp_path / "packed", "heldout").images.min() == 100
