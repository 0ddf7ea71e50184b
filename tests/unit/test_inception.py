"""Inception by path and digest, in both of clean-fid's modes.

The real weights cannot be had everywhere, so the path is tested with a small TorchScript file of
the same inputs and outputs, in parity with clean-fid's own code on the same file.
"""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from fleetstep import rng
from fleetstep.errors import ExtractorError
from fleetstep.evaluation import inception as inception_module
from fleetstep.evaluation.features import load_extractor
from fleetstep.evaluation.inception import inception_status, resize_cleanly
from fleetstep.evaluation.network_extractor import UInt8
from fleetstep.evaluation.spec import (
    INCEPTION_FILE,
    INCEPTION_SHA256,
    InceptionSpec,
    ResizeMode,
    metric_name,
)
from fleetstep.torchvision_door import import_torchvision
from inception_files import CLASSES, write_inception

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/evaluation.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / INCEPTION_FILE
    write_inception(path)
    return path


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a feature extractor must not use the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def spec_of(path: Path, resize: ResizeMode = "clean") -> InceptionSpec:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return InceptionSpec(path=str(path), sha256=digest, resize=resize)


def pictures(count: int, channels: int = 3, side: int = 16) -> UInt8:
    return (rng.uniform(0, "pictures", 0, count, (channels, side, side)) * 256).astype(np.uint8)


def folder_features(
    images: UInt8, folder: Path, script: Path, mode: ResizeMode
) -> npt.NDArray[np.float32]:
    """clean-fid's own, of PNG files, through its own wrapper of the file."""
    for index, image in enumerate(images.transpose(0, 2, 3, 1)):
        Image.fromarray(image).save(folder / f"{index:04d}.png")
    import_torchvision()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from cleanfid.fid import get_folder_features
        from cleanfid.inception_torchscript import InceptionV3W

        inside = mode == "legacy_tensorflow"
        wrapper = InceptionV3W(str(script.parent), download=False, resize_inside=inside)
        found: npt.NDArray[np.float32] = get_folder_features(
            str(folder),
            wrapper,
            num_workers=0,
            batch_size=4,
            device=torch.device("cpu"),
            mode=mode,
            verbose=False,
        )
    return found


class TestParity:
    @pytest.mark.parametrize("mode", ["clean", "legacy_tensorflow"])
    @pytest.mark.parametrize("side", [32, 320])
    def test_it_equals_clean_fids_folder_features(
        self, mode: Literal["clean", "legacy_tensorflow"], side: int, script: Path, tmp_path: Path
    ):
        """Images that grow and images that shrink; the last batch is padded by us, short there."""
        images = pictures(6, side=side)
        expected = folder_features(images, tmp_path, script, mode)
        assert expected.shape == (6, 2048)
        assert expected.std(0).max() > 1e-3, "the stand-in must tell images apart"
        extracted = load_extractor(spec_of(script, mode))(images)
        np.testing.assert_allclose(extracted.features, expected, rtol=1e-5, atol=1e-6)
        assert extracted.probabilities is None

    def test_the_modes_differ(self, script: Path):
        images = pictures(3, side=32)
        clean, inside = (
            load_extractor(spec_of(script, mode))(images).features
            for mode in ("clean", "legacy_tensorflow")
        )
        assert np.abs(clean - inside).max() > 1e-3

    def test_golden_resize(self):
        """clean-fid's: float bicubic, clipped, and not rounded to whole grey levels."""
        golden = GOLDEN["resize"]
        image = np.array(golden["image4"]["pixels"], np.uint8).transpose(2, 0, 1)[None]
        resized = resize_cleanly(image)[0].numpy().transpose(1, 2, 0)
        expected = golden["image4_to_299_clean"]
        assert list(resized.shape) == expected["shape"]
        assert resized.mean(dtype=np.float64) == pytest.approx(expected["mean"], abs=1e-3)
        for place, value in expected["at"].items():
            row, column = map(int, place.split(","))
            assert resized[row, column] == pytest.approx(value, abs=1e-3)
        assert (resized % 1 > 0).any()


class TestProbabilities:
    def test_they_are_the_files_own_without_the_bias(self, script: Path):
        images = pictures(4, side=32)
        spec = spec_of(script, "legacy_tensorflow")
        extractor = load_extractor(spec, with_probabilities=True)
        extracted = extractor(images)
        assert extracted.probabilities is not None
        assert extracted.probabilities.shape == (4, CLASSES)
        np.testing.assert_allclose(extracted.probabilities.sum(1), 1, rtol=1e-5)
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
            network = torch.jit.load(script).eval()
            logits = extracted.features @ network.output.weight.numpy().T
            biased = network(torch.from_numpy(images)).numpy()
        expected = torch.from_numpy(logits).double().softmax(1).numpy()
        np.testing.assert_allclose(extracted.probabilities, expected, rtol=1e-3, atol=1e-7)
        assert np.abs(biased - expected).max() > 0.01

    def test_asking_for_them_changes_no_feature(self, script: Path):
        images = pictures(3, side=32)
        spec = spec_of(script, "legacy_tensorflow")
        plain, classified = load_extractor(spec), load_extractor(spec, with_probabilities=True)
        assert plain(images).probabilities is None
        assert np.array_equal(plain(images).features, classified(images).features)

    def test_cleanly_resized_images_have_none(self, script: Path):
        with pytest.raises(ExtractorError, match=r"legacy_tensorflow alone, got 'clean'"):
            load_extractor(spec_of(script), with_probabilities=True)


class TestFile:
    @pytest.mark.parametrize("mode", ["clean", "legacy_tensorflow"])
    def test_an_image_has_its_own_features(
        self, mode: Literal["clean", "legacy_tensorflow"], script: Path
    ):
        extractor = load_extractor(spec_of(script, mode))
        images = pictures(extractor.batch + 3)
        extracted = extractor(images).features
        assert np.array_equal(extractor(images[-4:]).features, extracted[-4:])

    @pytest.mark.parametrize("mode", ["clean", "legacy_tensorflow"])
    def test_grey_images_count_as_rgb(
        self, mode: Literal["clean", "legacy_tensorflow"], script: Path
    ):
        extractor = load_extractor(spec_of(script, mode))
        grey = pictures(2, channels=1)
        in_colour = extractor(grey.repeat(3, 1)).features
        assert np.array_equal(extractor(grey).features, in_colour)

    def test_the_resizing_is_part_of_the_protocol(self, script: Path):
        clean, inside = (
            load_extractor(spec_of(script, mode)) for mode in ("clean", "legacy_tensorflow")
        )
        assert (clean.name, inside.name) == ("inception.clean", "inception.tf")
        assert clean.digest == inside.digest
        assert clean.preprocess != inside.preprocess

    def test_other_weights_are_never_called_fid(self, script: Path):
        extractor = load_extractor(spec_of(script))
        name = metric_name("fd", extractor.name, extractor.digest, 50_000)
        assert name == f"fd50k.inception.clean@{extractor.digest[:8]}"

    def test_a_missing_file(self, tmp_path: Path):
        with pytest.raises(ExtractorError, match=r"not at .*nowhere\.pt\n.*nothing is downloaded"):
            load_extractor(InceptionSpec(path=str(tmp_path / "nowhere.pt")))

    def test_nothing_cached(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(
            inception_module, "cached_inception", lambda: tmp_path / INCEPTION_FILE
        )
        with pytest.raises(ExtractorError, match="nothing is downloaded"):
            load_extractor(InceptionSpec())
        assert list(tmp_path.iterdir()) == []

    def test_the_cached_file_is_found(self, script: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(inception_module, "cached_inception", lambda: script)
        sha256 = spec_of(script).sha256
        assert load_extractor(InceptionSpec(sha256=sha256)).digest == sha256

    def test_another_file_is_not_even_loaded(self, script: Path, monkeypatch: pytest.MonkeyPatch):
        def load(*_: object, **__: object) -> None:
            raise AssertionError("TorchScript of an unknown digest was executed")

        monkeypatch.setattr(torch.jit, "load", load)
        with pytest.raises(ExtractorError, match=f"must have sha256 {INCEPTION_SHA256}, got "):
            load_extractor(InceptionSpec(path=str(script)))

    def test_a_file_of_the_right_digest_that_is_no_torchscript(self, tmp_path: Path):
        path = tmp_path / "page.pt"
        path.write_bytes(b"<html>404</html>")
        with pytest.raises(ExtractorError, match=r"page\.pt must be a TorchScript archive"):
            load_extractor(spec_of(path))

    def test_networks_of_another_form_are_refused(self, tmp_path: Path):
        """Their own digest is given: they pass for Inception in nothing else."""
        wide = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        headless = torch.nn.Module()
        headless.layers = wide
        for name, network in (("body.pt", headless), ("none.pt", wide)):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
                torch.jit.save(torch.jit.script(network), tmp_path / name)
        with pytest.raises(ExtractorError, match=r"must hold Inception's body as `layers`"):
            load_extractor(spec_of(tmp_path / "none.pt"))
        with pytest.raises(
            ExtractorError, match=r"shapes \(\(25, 2048\), None\), got \(\(25, 3\)"
        ):
            load_extractor(spec_of(tmp_path / "body.pt"))(pictures(1))

    @pytest.mark.parametrize("mode", ["clean", "legacy_tensorflow"])
    def test_later_calls_give_the_first_ones_bits(
        self, mode: Literal["clean", "legacy_tensorflow"], script: Path
    ):
        extractor = load_extractor(spec_of(script, mode))
        images = pictures(2)
        first, *later = (extractor(images).features for _ in range(4))
        assert all(np.array_equal(features, first) for features in later)

    def test_status(self, script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        present, seen = inception_status(tmp_path / "nowhere.pt")
        assert (present, seen) == (False, f"no file {tmp_path / 'nowhere.pt'}")
        present, seen = inception_status(script)
        assert not present
        assert "not f58cb9b6ec32" in seen
        monkeypatch.setattr(inception_module, "INCEPTION_SHA256", spec_of(script).sha256)
        assert inception_status(script)[0]


def test_torchvision_is_not_needed_and_can_be_imported_whatever_torch_it_was_built_for():
    """In a fresh process: a broken torchvision cannot stop a sweep, nor clean-fid's networks."""
    program = (
        "import sys\n"
        "import numpy as np\n"
        "from fleetstep.evaluation import features, inception\n"
        "from fleetstep.torchvision_door import import_torchvision\n"
        "inception.resize_cleanly(np.zeros((1, 3, 4, 4), np.uint8))\n"
        "assert 'torchvision' not in sys.modules\n"
        "first = import_torchvision()\n"
        "import torchvision.models, cleanfid.features\n"
        "assert import_torchvision() == first\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
