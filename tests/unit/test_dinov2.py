"""DINOv2: the published file's names and shapes, and the network against torch's own layers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fleetstep import rng
from fleetstep.errors import ExtractorError
from fleetstep.evaluation.dinov2 import SHAPES, DinoV2
from fleetstep.evaluation.features import load_extractor
from fleetstep.evaluation.network_extractor import NetworkExtractor, UInt8
from fleetstep.evaluation.spec import DinoV2Spec, metric_name

WIDTH, DEPTH, HEADS = 32, 3, 4


def published(width: int, depth: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of `dinov2_vit*14_pretrain.pth`, written down from the authors' network."""
    block = {
        "norm1.weight": (width,),
        "norm1.bias": (width,),
        "attn.qkv.weight": (3 * width, width),
        "attn.qkv.bias": (3 * width,),
        "attn.proj.weight": (width, width),
        "attn.proj.bias": (width,),
        "ls1.gamma": (width,),
        "norm2.weight": (width,),
        "norm2.bias": (width,),
        "mlp.fc1.weight": (4 * width, width),
        "mlp.fc1.bias": (4 * width,),
        "mlp.fc2.weight": (width, 4 * width),
        "mlp.fc2.bias": (width,),
        "ls2.gamma": (width,),
    }
    return {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1370, width),
        "mask_token": (1, width),
        "patch_embed.proj.weight": (width, 3, 14, 14),
        "patch_embed.proj.bias": (width,),
        **{f"blocks.{i}.{name}": shape for i in range(depth) for name, shape in block.items()},
        "norm.weight": (width,),
        "norm.bias": (width,),
    }


def random_tensors(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Random, and of a size that keeps activations of order one."""

    generator = torch.Generator().manual_seed(0)

    def tensor(name: str, shape: tuple[int, ...]) -> Tensor:
        values = torch.randn(shape, generator=generator) * (0.02 if len(shape) > 1 else 0.3)
        return values + 1 if "norm" in name and name.endswith("weight") else values

    return {name: tensor(name, shape) for name, shape in shapes.items()}


def tiny(native_grid: int = 37) -> DinoV2:
    network = DinoV2(WIDTH, DEPTH, HEADS, native_grid=native_grid)
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    network.load_state_dict(random_tensors(shapes))
    return network.eval().double()


def patches(count: int, side: int) -> Tensor:
    return torch.from_numpy(rng.draw(0, "patches", 0, count, (3, side, side))).double()


def pictures(count: int, channels: int = 3, side: int = 20) -> UInt8:
    return (rng.uniform(0, "pictures", 0, count, (channels, side, side)) * 256).astype(np.uint8)


def spec_of(path: Path, **changes: str) -> DinoV2Spec:
    values = {"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    return DinoV2Spec.model_validate({"size": "small", **values, **changes})


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "dinov2_vits14_pretrain.pth"
    torch.save(random_tensors(published(384, 12)), path)
    return path


@pytest.fixture(scope="module")
def extractor(weights: Path) -> NetworkExtractor:
    return replace(load_extractor(spec_of(weights)), batch=4)


class TestNetwork:
    @pytest.mark.parametrize("size", ["small", "base", "large"])
    def test_its_tensors_are_those_of_the_published_file(self, size: str):
        width, depth, heads = SHAPES[size]
        assert width // heads == 64
        with torch.device("meta"):
            network = DinoV2(width, depth, heads)
        held = {name: tuple(value.shape) for name, value in network.state_dict().items()}
        assert held == published(width, depth)

    def test_it_equals_torchs_own_encoder(self):
        """Every layer of it: a factor per channel behind a linear layer is part of its weights."""
        network = tiny(native_grid=4)
        x = patches(2, 4 * 14)
        layer = nn.TransformerEncoderLayer(
            WIDTH,
            HEADS,
            4 * WIDTH,
            dropout=0.0,
            activation="gelu",
            layer_norm_eps=1e-6,
            batch_first=True,
            norm_first=True,
        )
        encoder = nn.TransformerEncoder(layer, DEPTH, enable_nested_tensor=False).eval().double()
        for theirs, ours in zip(encoder.layers, network.blocks, strict=True):
            first, second = ours.ls1.gamma, ours.ls2.gamma
            theirs.load_state_dict(
                {
                    "self_attn.in_proj_weight": ours.attn.qkv.weight,
                    "self_attn.in_proj_bias": ours.attn.qkv.bias,
                    "self_attn.out_proj.weight": ours.attn.proj.weight * first[:, None],
                    "self_attn.out_proj.bias": ours.attn.proj.bias * first,
                    "linear1.weight": ours.mlp.fc1.weight,
                    "linear1.bias": ours.mlp.fc1.bias,
                    "linear2.weight": ours.mlp.fc2.weight * second[:, None],
                    "linear2.bias": ours.mlp.fc2.bias * second,
                    "norm1.weight": ours.norm1.weight,
                    "norm1.bias": ours.norm1.bias,
                    "norm2.weight": ours.norm2.weight,
                    "norm2.bias": ours.norm2.bias,
                }
            )
        with torch.inference_mode():
            tokens = F.unfold(x, 14, stride=14).transpose(1, 2)
            tokens = tokens @ network.patch_embed.proj.weight.flatten(1).T
            tokens = tokens + network.patch_embed.proj.bias
            tokens = torch.cat([network.cls_token.expand(2, 1, WIDTH), tokens], 1)
            encoded = encoder(tokens + network.pos_embed)[:, 0]
            expected = F.layer_norm(encoded, (WIDTH,), eps=1e-6) * network.norm.weight
            expected = expected + network.norm.bias
            found = network(x)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
        assert (found[0] - found[1]).abs().max() > 1e-3

    def test_positions_of_the_native_grid_are_the_stored_ones(self):
        network = tiny()
        assert network.positions(37) is network.pos_embed

    def test_other_grids_keep_constants_and_the_class_token(self):
        network = tiny()
        with torch.no_grad():
            network.pos_embed[:, 1:] = torch.arange(WIDTH)
            positions = network.positions(16)
        assert positions.shape == (1, 257, WIDTH)
        assert torch.equal(positions[:, :1], network.pos_embed[:, :1])
        expected = torch.arange(WIDTH).double().expand(256, WIDTH)
        torch.testing.assert_close(positions[0, 1:], expected)

    def test_other_grids_are_sampled_where_the_authors_sample_them(self):
        """Patch i at 37 / 16.1 (i + 1/2) - 1/2, not at 37 / 16, by Keys' kernel with a = -3/4:
        written out here for a ramp over the rows.
        """
        network = tiny()
        with torch.no_grad():
            rows = torch.arange(37.0, dtype=torch.float64)
            network.pos_embed[0, 1:] = rows.repeat_interleave(37)[:, None]
            positions = network.positions(16)[0, 1:].reshape(16, 16, WIDTH)
        for patch in range(1, 15):  # away from the border, where the ramp ends
            read_at = 37 / 16.1 * (patch + 0.5) - 0.5
            near = range(int(read_at) - 1, int(read_at) + 3)
            expected = sum(row * keys(abs(read_at - row), -0.75) for row in near)
            found = positions[patch]
            torch.testing.assert_close(found, torch.full_like(found, expected))


def keys(distance: float, a: float) -> float:
    """Weight of a sample in cubic convolution (Keys 1981, eq. 4, with a in place of -1/2)."""
    if distance <= 1:
        return (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    return a * distance**3 - 5 * a * distance**2 + 8 * a * distance - 4 * a


class TestExtractor:
    def test_what_it_is(self, extractor: NetworkExtractor, weights: Path):
        digest = spec_of(weights).sha256
        assert (extractor.name, extractor.dim) == ("dinov2-small", 384)
        assert metric_name("fd", extractor.name, extractor.digest, 50_000) == (
            f"fd50k.dinov2-small@{digest[:8]}"
        )

    def test_an_image_has_its_own_features(self, extractor: NetworkExtractor):
        images = pictures(extractor.batch + 2)
        extracted = extractor(images)
        assert extracted.probabilities is None
        assert extracted.features.shape == (len(images), 384)
        assert np.array_equal(extractor(images[-3:]).features, extracted.features[-3:])
        assert len(np.unique(extracted.features, axis=0)) == len(images)

    def test_its_input_is_normalised_pixels_of_224(
        self, extractor: NetworkExtractor, weights: Path
    ):
        """By hand for grey planes, which no resizing changes."""
        levels = (0, 100, 255)
        images = np.stack([np.full((3, 9, 9), level, np.uint8) for level in levels])
        network = DinoV2(*SHAPES["small"])
        network.load_state_dict(torch.load(weights, weights_only=True))
        mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
        deviation = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
        planes = [(torch.full((3, 224, 224), level / 255) - mean) / deviation for level in levels]
        with torch.inference_mode():
            expected = network.eval()(torch.stack(planes)).numpy()
        found = extractor(images).features
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
        assert np.abs(found[0] - found[2]).max() > 0.1

    def test_images_are_resized_by_a_bicubic_filter_that_widens(self, extractor: NetworkExtractor):
        """As torch does it in float, but for Pillow's rounding to grey levels: once after the
        rows, which the columns' negative weights make 1.25 * 0.5 at most, and once at the end.
        """
        for side in (32, 300):
            images = pictures(2, side=side) // 2 + 64  # nothing is clipped
            found = extractor.prepare(images)
            assert (found.dtype, tuple(found.shape)) == (torch.uint8, (2, 3, 224, 224))
            wanted = F.interpolate(
                torch.from_numpy(images).float(), (224, 224), mode="bicubic", antialias=True
            )
            assert (found - wanted).abs().max() <= 1.15

    def test_grey_images_count_as_rgb(self, extractor: NetworkExtractor):
        grey = pictures(2, channels=1)
        in_colour = extractor(grey.repeat(3, 1)).features
        assert np.array_equal(extractor(grey).features, in_colour)


class TestFile:
    def test_safetensors_are_the_same_network(self, extractor: NetworkExtractor, tmp_path: Path):
        path = tmp_path / "dinov2.safetensors"
        path.write_bytes(safetensors.torch.save(random_tensors(published(384, 12))))
        images = pictures(2)
        again = replace(load_extractor(spec_of(path)), batch=4)(images).features
        assert np.array_equal(again, extractor(images).features)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"register_tokens": (1, 4, 384)}, "none are missing and register_tokens are unknown"),
            ({"pos_embed": (1, 257, 384)}, r"pos_embed of shape \(1, 257, 384\)"),
            ({"norm.bias": None}, "norm.bias are missing and none are unknown"),
        ],
    )
    def test_another_network_is_refused(
        self, change: dict[str, tuple[int, ...] | None], message: str, tmp_path: Path
    ):
        shapes = {**published(384, 12), **change}
        path = tmp_path / "other.pth"
        torch.save({k: torch.zeros(shape) for k, shape in shapes.items() if shape}, path)
        with pytest.raises(ExtractorError, match=rf"{message}(.|\n)*without registers"):
            load_extractor(spec_of(path))

    def test_another_size_is_refused(self, weights: Path):
        with pytest.raises(ExtractorError, match=r"of shape .*\n.*dinov2_vitb14_pretrain"):
            load_extractor(spec_of(weights, size="base"))

    def test_another_file_is_not_even_loaded(self, weights: Path, monkeypatch: pytest.MonkeyPatch):
        def load(*_: object, **__: object) -> None:
            raise AssertionError("a file of an unknown digest was read")

        monkeypatch.setattr(torch, "load", load)
        with pytest.raises(ExtractorError, match="must have sha256 0000"):
            load_extractor(spec_of(weights, sha256="0" * 64))

    def test_a_missing_file(self, tmp_path: Path):
        spec = DinoV2Spec(path=str(tmp_path / "nowhere.pth"), sha256="0" * 64)
        with pytest.raises(ExtractorError, match=r"not at .*nowhere.*\n.*dinov2_vitl14_pretrain"):
            load_extractor(spec)

    def test_objects_are_never_unpickled(self, tmp_path: Path):
        marker = tmp_path / "ran"
        path = tmp_path / "evil.pth"
        torch.save({"weights": _Runs(str(marker))}, path)
        with pytest.raises(ExtractorError, match="must be a file of tensors"):
            load_extractor(spec_of(path))
        assert not marker.exists()

    @pytest.mark.parametrize(("name", "content"), [("a.pth", b"{}"), ("a.safetensors", b"no")])
    def test_a_file_of_something_else(self, name: str, content: bytes, tmp_path: Path):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ExtractorError, match="must be a file of tensors"):
            load_extractor(spec_of(tmp_path / name))

    def test_tensors_without_names(self, tmp_path: Path):
        torch.save([torch.zeros(3)], tmp_path / "list.pth")
        with pytest.raises(ExtractorError, match="must hold tensors by name"):
            load_extractor(spec_of(tmp_path / "list.pth"))


class _Runs:
    """Pickled, it opens a file for writing when it is read."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (self.path, "w"))


def test_the_spec_is_plain_json():
    spec = DinoV2Spec(path="dinov2.pth", sha256="a" * 64)
    assert DinoV2Spec.model_validate(json.loads(spec.model_dump_json())) == spec
    assert spec.size == "large"
