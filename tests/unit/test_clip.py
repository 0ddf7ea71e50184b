"""CLIP's image tower: OpenAI's names and shapes, formulas, clean-fid's preprocessing."""

from __future__ import annotations

import hashlib
import sys
import types
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from fleetstep import rng
from fleetstep.errors import ExtractorError
from fleetstep.evaluation.clip import ImageTower, load_texts, resize_and_crop
from fleetstep.evaluation.features import load_extractor
from fleetstep.evaluation.network_extractor import NetworkExtractor, UInt8
from fleetstep.evaluation.spec import ClipSpec
from fleetstep.torchvision_door import import_torchvision


def published(width: int, depth: int, tokens: int, patch: int, dim: int) -> dict[str, Tensor]:
    """Random tensors by the names of the image tower in `ViT-B-32.pt`, some in half precision."""
    block = {
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
        "attn.out_proj.bias": (width,),
        "ln_1.weight": (width,),
        "ln_1.bias": (width,),
        "mlp.c_fc.weight": (4 * width, width),
        "mlp.c_fc.bias": (4 * width,),
        "mlp.c_proj.weight": (width, 4 * width),
        "mlp.c_proj.bias": (width,),
        "ln_2.weight": (width,),
        "ln_2.bias": (width,),
    }
    shapes = {
        "class_embedding": (width,),
        "positional_embedding": (tokens, width),
        "proj": (width, dim),
        "conv1.weight": (width, 3, patch, patch),
        "ln_pre.weight": (width,),
        "ln_pre.bias": (width,),
        **{
            f"transformer.resblocks.{i}.{name}": shape
            for i in range(depth)
            for name, shape in block.items()
        },
        "ln_post.weight": (width,),
        "ln_post.bias": (width,),
    }
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(shape, generator=generator) * (0.05 if len(shape) > 1 else 0.3)
        for name, shape in shapes.items()
    }
    for name in tensors:
        if "ln_" in name and name.endswith("weight"):
            tensors[name] += 1
    return {name: v if "ln_" in name else v.half() for name, v in tensors.items()}


def write_archive(path: Path, image_tower: Mapping[str, Tensor]) -> None:
    """A TorchScript archive with those tensors under `visual`, and some of the text tower's."""

    class Archive(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return image

    archive = Archive()
    held = {f"visual.{name}": value for name, value in image_tower.items()}
    held |= {"logit_scale": torch.ones(()), "transformer.resblocks.0.ln_1.bias": torch.ones(3)}
    for name, value in held.items():
        *parents, leaf = name.split(".")
        module: nn.Module = archive
        for parent in parents:
            if not hasattr(module, parent):
                module.add_module(parent, nn.Module())
            module = getattr(module, parent)
        module.register_parameter(leaf, nn.Parameter(value, requires_grad=False))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
        torch.jit.save(torch.jit.script(archive.eval()), path)


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return published(width=768, depth=12, tokens=50, patch=32, dim=512)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, Tensor]) -> Path:
    path = tmp_path_factory.mktemp("weights") / "ViT-B-32.pt"
    write_archive(path, tensors)
    return path


@pytest.fixture(scope="module")
def extractor(weights: Path) -> NetworkExtractor:
    return replace(load_extractor(spec_of(weights)), batch=4)


def spec_of(path: Path, texts: Path | None = None) -> ClipSpec:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return ClipSpec(path=str(path), sha256=digest, texts=None if texts is None else str(texts))


def pictures(count: int, channels: int = 3, shape: tuple[int, int] = (40, 40)) -> UInt8:
    return (rng.uniform(0, "pictures", 0, count, (channels, *shape)) * 256).astype(np.uint8)


def by_formula(tensors: Mapping[str, Tensor], x_B3HW: Tensor, heads: int, depth: int) -> Tensor:
    """The tower in float64, attention written out."""
    held = {name: value.double() for name, value in tensors.items()}

    def norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
        return centred * scale * held[f"{name}.weight"] + held[f"{name}.bias"]

    def linear(name: str, x: Tensor, weight: str = ".weight", bias: str = ".bias") -> Tensor:
        return x @ held[name + weight].T + held[name + bias]

    patches = nn.functional.unfold(x_B3HW, 32, stride=32).transpose(1, 2)
    x = patches @ held["conv1.weight"].flatten(1).T
    x = torch.cat([held["class_embedding"].expand(len(x), 1, -1), x], 1)
    x = norm("ln_pre", x + held["positional_embedding"])
    for i in range(depth):
        block = f"transformer.resblocks.{i}"
        mixed = linear(
            f"{block}.attn", norm(f"{block}.ln_1", x), ".in_proj_weight", ".in_proj_bias"
        )
        q, k, v = (
            part.reshape(*x.shape[:2], heads, -1).transpose(1, 2) for part in mixed.chunk(3, -1)
        )
        attention = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1) @ v
        x = x + linear(f"{block}.attn.out_proj", attention.transpose(1, 2).flatten(2))
        hidden = linear(f"{block}.mlp.c_fc", norm(f"{block}.ln_2", x))
        x = x + linear(f"{block}.mlp.c_proj", hidden / (1 + torch.exp(-1.702 * hidden)))
    return norm("ln_post", x[:, 0]) @ held["proj"]


class TestNetwork:
    def test_it_is_the_formula(self):
        tensors = published(width=32, depth=2, tokens=5, patch=32, dim=16)
        tower = ImageTower(32, 2, 4, 16, 64).eval().double()
        tower.load_state_dict({name: value.double() for name, value in tensors.items()})
        x = torch.from_numpy(rng.draw(0, "images", 0, 3, (3, 64, 64))).double()
        with torch.inference_mode():
            found = tower(x)
        torch.testing.assert_close(found, by_formula(tensors, x, heads=4, depth=2))
        assert found.std(0).min() > 1e-3

    def test_the_archives_weights_reach_it_in_full_precision(
        self, extractor: NetworkExtractor, tensors: dict[str, Tensor]
    ):
        images = pictures(2, shape=(224, 224))
        mean = torch.tensor([0.48145466, 0.4578275, 0.40821073], dtype=torch.float64)
        deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711], dtype=torch.float64)
        x = (torch.from_numpy(images).double() / 255).permute(0, 2, 3, 1)
        expected = by_formula(tensors, ((x - mean) / deviation).permute(0, 3, 1, 2), 12, 12)
        found = extractor(images)
        assert found.features.dtype == np.float32
        assert found.features.shape == (2, 512)
        assert found.probabilities is None
        error = np.abs(found.features - expected.numpy()).max() / expected.abs().max()
        assert error < 1e-5

    def test_an_image_has_its_own_features(self, extractor: NetworkExtractor):
        images = pictures(6)
        features = extractor(images).features
        assert np.array_equal(extractor(images[-3:]).features, features[-3:])
        assert len(np.unique(features, axis=0)) == len(images)


class TestPreprocessing:
    @pytest.fixture
    def clean_fids_own(self, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
        """Its module, which imports OpenAI's package `clip` but does not need it for this."""
        monkeypatch.setitem(sys.modules, "clip", types.ModuleType("clip"))
        import_torchvision()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from cleanfid import clip_features
        return clip_features

    @pytest.mark.parametrize(
        "shape", [(32, 32), (300, 300), (40, 61), (61, 40), (301, 500), (224, 227)]
    )
    def test_it_equals_clean_fids(self, shape: tuple[int, int], clean_fids_own: types.ModuleType):
        images = pictures(2, shape=shape)
        found = resize_and_crop(images).numpy()
        for image, ours in zip(images, found, strict=True):
            theirs = clean_fids_own.img_preprocess_clip(image.transpose(1, 2, 0))
            assert np.array_equal(ours, theirs.transpose(2, 0, 1))

    def test_grey_images_count_as_rgb(self):
        grey = pictures(2, channels=1)
        assert torch.equal(resize_and_crop(grey), resize_and_crop(grey.repeat(3, 1)))


class TestFile:
    def test_another_network_is_refused(self, tmp_path: Path):
        tensors = published(width=64, depth=2, tokens=50, patch=32, dim=32)
        write_archive(tmp_path / "other.pt", tensors)
        with pytest.raises(ExtractorError, match=r"resblocks\.\d+.* are missing(.|\n)*ViT-B-32"):
            load_extractor(spec_of(tmp_path / "other.pt"))

    def test_another_file_is_not_even_loaded(self, weights: Path, monkeypatch: pytest.MonkeyPatch):
        def load(*_: object, **__: object) -> None:
            raise AssertionError("TorchScript of an unknown digest was executed")

        monkeypatch.setattr(torch.jit, "load", load)
        with pytest.raises(ExtractorError, match="must have sha256 0000"):
            load_extractor(ClipSpec(path=str(weights), sha256="0" * 64))


class TestTexts:
    def test_they_are_read(self, weights: Path, tmp_path: Path):
        features = torch.from_numpy(rng.draw(0, "texts", 0, 10, (512,))).half()
        path = tmp_path / "texts.safetensors"
        path.write_bytes(safetensors.torch.save({"features": features}))
        texts = load_texts(spec_of(weights, path))
        assert texts is not None
        assert texts.dtype == np.float32
        assert np.array_equal(texts, features.float().numpy())

    def test_none_are_asked_for(self, weights: Path):
        assert load_texts(spec_of(weights)) is None

    @pytest.mark.parametrize(
        ("held", "message"),
        [
            ({"texts": torch.ones(3, 512)}, r"must hold `features`.*got {'texts': \(3, 512\)}"),
            ({"features": torch.ones(3, 768)}, r"shape \(classes, 512\)"),
            ({"features": torch.ones(512)}, r"shape \(classes, 512\)"),
            ({"features": torch.full((3, 512), torch.nan)}, "finite"),
            ({"features": torch.eye(3, 512) * torch.tensor([[1.0], [0.0], [1.0]])}, "none of"),
        ],
    )
    def test_others_are_refused(
        self, held: dict[str, Tensor], message: str, weights: Path, tmp_path: Path
    ):
        path = tmp_path / "texts.safetensors"
        path.write_bytes(safetensors.torch.save(held))
        with pytest.raises(ExtractorError, match=message):
            load_texts(spec_of(weights, path))

    def test_a_missing_file(self, weights: Path, tmp_path: Path):
        with pytest.raises(ExtractorError, match=r"no texts at .*\n.*encode_text"):
            load_texts(spec_of(weights, tmp_path / "nowhere.safetensors"))
