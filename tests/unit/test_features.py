"""Inception by path and digest, the way clean-fid does it; torchvision beside another torch.

The real weights cannot be had everywhere, so the path is tested with a small TorchScript file of
the same form.
"""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from fleetstep import rng
from fleetstep.errors import ExtractorError
from fleetstep.evaluation import features
from fleetstep.evaluation.features import UInt8, inception_status, load_extractor
from fleetstep.evaluation.resnet20 import ResNet20
from fleetstep.evaluation.spec import (
    INCEPTION_FILE,
    INCEPTION_SHA256,
    InceptionSpec,
    Rn20Spec,
    metric_name,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/evaluation.json").read_text("utf-8"))


class Layers(nn.Module):
    """Stands for Inception's body: (B, 3, 299, 299) to (B, 2048, 1, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2048, 1)

    def forward(self, x_B3HW: Tensor) -> Tensor:
        return torch.tanh(self.conv(nn.functional.adaptive_avg_pool2d(x_B3HW**2 + x_B3HW, 1)))


class Inception(nn.Module):
    """The file's outer form: `layers` inside, and a forward that clean-fid does not use here."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = Layers()

    def forward(self, image_B3HW: Tensor, return_features: bool = False) -> Tensor:
        return self.layers(image_B3HW)


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / INCEPTION_FILE
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
        torch.manual_seed(0)
        torch.jit.save(torch.jit.script(Inception().eval()), path)
    return path


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a feature extractor must not use the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def spec_of(path: Path) -> InceptionSpec:
    return InceptionSpec(path=str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def pictures(count: int, channels: int = 3, side: int = 16) -> UInt8:
    return (rng.uniform(0, "pictures", 0, count, (channels, side, side)) * 256).astype(np.uint8)


class TestInception:
    def test_it_equals_clean_fids_own_path(self, script: Path):
        from cleanfid.inception_torchscript import InceptionV3W
        from cleanfid.resize import build_resizer

        images = pictures(5)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
            theirs = InceptionV3W(str(script.parent), download=False)
        resize = build_resizer("clean")
        resized = np.stack([resize(image.transpose(1, 2, 0)) for image in images])
        with torch.inference_mode():
            expected = theirs(torch.from_numpy(resized.transpose(0, 3, 1, 2))).numpy()
        assert expected.std() > 0.01
        extracted = load_extractor(spec_of(script))(images)
        assert extracted.shape == (5, 2048)
        np.testing.assert_allclose(extracted, expected, rtol=1e-5, atol=1e-6)

    def test_golden_resize(self):
        """clean-fid's: float bicubic, clipped, and not rounded to whole grey levels."""
        golden = GOLDEN["resize"]
        image = np.array(golden["image4"]["pixels"], np.uint8).transpose(2, 0, 1)[None]
        resized = features._inception_input(image)[0].numpy().transpose(1, 2, 0)
        expected = golden["image4_to_299_clean"]
        assert list(resized.shape) == expected["shape"]
        assert resized.mean(dtype=np.float64) == pytest.approx(expected["mean"], abs=1e-3)
        for place, value in expected["at"].items():
            row, column = map(int, place.split(","))
            assert resized[row, column] == pytest.approx(value, abs=1e-3)
        assert (resized % 1 > 0).any()

    def test_an_image_has_its_own_features(self, script: Path):
        extractor = load_extractor(spec_of(script))
        images = pictures(extractor.batch + 3)
        extracted = extractor(images)
        assert np.array_equal(extractor(images[-4:]), extracted[-4:])
        assert np.array_equal(extractor(images[::-1]), extracted[::-1])

    def test_grey_images_count_as_rgb(self, script: Path):
        extractor = load_extractor(spec_of(script))
        grey = pictures(2, channels=1)
        assert np.array_equal(extractor(grey), extractor(grey.repeat(3, 1)))

    def test_other_weights_are_never_called_fid(self, script: Path):
        extractor = load_extractor(spec_of(script))
        name = metric_name(extractor.name, extractor.digest, 50_000)
        assert name == f"fd.inception.clean@{extractor.digest[:8]}"

    def test_a_missing_file(self, tmp_path: Path):
        with pytest.raises(ExtractorError, match=r"not at .*nowhere\.pt\n.*nothing is downloaded"):
            load_extractor(InceptionSpec(path=str(tmp_path / "nowhere.pt")))

    def test_nothing_cached(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(features, "cached_inception", lambda: tmp_path / INCEPTION_FILE)
        with pytest.raises(ExtractorError, match="nothing is downloaded"):
            load_extractor(InceptionSpec())
        assert list(tmp_path.iterdir()) == []

    def test_the_cached_file_is_found(self, script: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(features, "cached_inception", lambda: script)
        sha256 = spec_of(script).sha256
        assert load_extractor(InceptionSpec(sha256=sha256)).digest == sha256

    def test_another_file_is_not_even_loaded(self, script: Path, monkeypatch: pytest.MonkeyPatch):
        def load(*_: object, **__: object) -> None:
            raise AssertionError("TorchScript of an unknown digest was executed")

        monkeypatch.setattr(torch.jit, "load", load)
        with pytest.raises(ExtractorError, match=f"must have sha256 {INCEPTION_SHA256}, got "):
            load_extractor(InceptionSpec(path=str(script)))

    def test_status(self, script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        present, seen = inception_status(tmp_path / "nowhere.pt")
        assert (present, seen) == (False, f"no file {tmp_path / 'nowhere.pt'}")
        present, seen = inception_status(script)
        assert not present
        assert "not f58cb9b6ec32" in seen
        monkeypatch.setattr(features, "INCEPTION_SHA256", spec_of(script).sha256)
        assert inception_status(script)[0]


def test_torchvision_is_not_needed_and_can_be_imported_whatever_torch_it_was_built_for():
    """In a fresh process: a broken torchvision cannot stop a sweep, nor clean-fid's networks."""
    program = (
        "import sys\n"
        "import numpy as np\n"
        "from fleetstep.evaluation import features\n"
        "features._inception_input(np.zeros((1, 3, 4, 4), np.uint8))\n"
        "assert 'torchvision' not in sys.modules\n"
        "first = features.torchvision_status()\n"
        "assert 'cannot be imported' not in first, first\n"
        "import torchvision.models, cleanfid.features\n"
        "assert features.torchvision_status() == first\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


@pytest.mark.parametrize("renamed", ["conv1.weight", "linear.bias"])
def test_packaged_weights_of_another_network_are_refused(
    renamed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Whose digest is the expected one: a wrong pin must not leave a layer at random."""
    tensors = ResNet20().state_dict()
    tensors = {k: v for k, v in tensors.items() if not k.endswith("num_batches_tracked")}
    (tmp_path / "weights").mkdir()

    def installed(held: dict[str, Tensor]) -> None:
        content = safetensors.torch.save(held)
        (tmp_path / "weights/fs-rn20.safetensors").write_bytes(content)
        monkeypatch.setattr(features, "RN20_SHA256", hashlib.sha256(content).hexdigest())

    monkeypatch.setattr(features.resources, "files", lambda _: tmp_path)
    installed(tensors)
    assert load_extractor(Rn20Spec()).dim == 112
    installed({("other" if key == renamed else key): value for key, value in tensors.items()})
    with pytest.raises(ExtractorError, match=f"{renamed} are missing and other are unknown"):
        load_extractor(Rn20Spec())
