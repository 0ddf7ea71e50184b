"""DiT: the reference's parameter counts, and the laws of a transformer on patches."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from fleetstep.errors import ConfigError
from fleetstep.networks import dit
from fleetstep.networks.build import build_network
from fleetstep.networks.dit import Dit, DitBlock, PatchEmbedding, position_embedding, unpatchify
from fleetstep.networks.spec import DitSpec, check_network, feature_shape
from small_networks import SMALL, awake, small_inputs, small_network

COUNTS = {
    name: count
    for name, count in json.loads(
        (Path(__file__).parents[1] / "golden" / "networks.json").read_text()
    )["param_counts"].items()
    if name.startswith("DiT")
}
SIZES = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}
CPU = torch.device("cpu")


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_are_the_reference_s_to_the_unit(name):
    size, patch, classes, fixed = re.fullmatch(
        r"DiT-(\w+)/(\d) (?:classes=(\d+)|uncond .*?) (no-)?learn_sigma", name
    ).groups()
    depth, width, heads = SIZES[size]
    spec = DitSpec(depth=depth, width=width, heads=heads, patch=int(patch))
    assert check_network(spec, 32) == []
    with torch.device("meta"):
        network = Dit(spec, 4, int(classes or 0), 4 if fixed else 8)
    assert sum(p.numel() for p in network.parameters()) == COUNTS[name]


@pytest.mark.parametrize("patch", [2, 4, 8])
def test_every_patch_size_runs(patch):
    spec = SMALL["dit"].model_copy(update={"patch": patch})
    network = awake(small_network(spec)).eval()
    f, features = network.forward_with_features(*small_inputs())
    assert f.shape == (4, 2, 8, 8)
    assert features.shape == (4, *feature_shape(spec, 8)) == (4, 16, 8 // patch, 8 // patch)


def test_a_fresh_network_says_nothing_and_its_blocks_pass_everything_on():
    network = small_network(SMALL["dit"])
    assert not network(*small_inputs()).any()
    tokens, condition = torch.randn(2, 5, 16), torch.randn(2, 16)
    assert torch.equal(network.blocks[1](tokens, condition), tokens)


def test_weights_start_as_adaln_zero_prescribes():
    network = build_network(
        DitSpec(depth=1, width=64, heads=4), resolution=8, channels=3, classes=300, seed=0
    )
    block = network.blocks[0]
    for weight in (
        block.qkv.weight,
        block.project.weight,
        block.mlp_0.weight,
        block.mlp_1.weight,
        network.embed_patch.weight.flatten(1),
    ):
        bound = math.sqrt(6 / sum(weight.shape))
        assert weight.abs().max().item() == pytest.approx(bound, rel=0.02)
        assert weight.abs().max().item() <= bound
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    for weight in (
        network.embed_time.linear_0.weight,
        network.embed_time.linear_1.weight,
        network.embed_label.weight,
    ):
        assert weight.std().item() == pytest.approx(0.02, rel=0.03)
        assert abs(weight.mean().item()) < 1e-3
    for layer in (block.modulate, network.modulate_out, network.project_out):
        assert not layer.weight.any()
    assert not any(p.any() for name, p in network.named_parameters() if name.endswith("bias"))


@pytest.mark.parametrize("patch", [2, 4])
def test_unpatchify_undoes_a_patch_embedding_that_copies_pixels(patch):
    """Token entry k is pixel (row, column, channel) k of the patch: the image comes back."""
    x = torch.randn(2, 3, 8, 12)
    embedding = PatchEmbedding(3, 3 * patch**2, patch)
    with torch.no_grad():
        embedding.bias.zero_()
        embedding.weight.copy_(
            torch.eye(3 * patch**2).view(-1, patch, patch, 3).permute(0, 3, 1, 2)
        )
    tokens = embedding(x).flatten(2).transpose(1, 2)
    assert torch.equal(unpatchify(tokens, 8 // patch, 12 // patch, patch), x)


def test_a_block_treats_all_tokens_alike():
    block = awake(DitBlock(16, 4, 64))
    tokens, condition = torch.randn(2, 9, 16), torch.randn(2, 16)
    order = torch.randperm(9)
    assert torch.allclose(
        block(tokens, condition)[:, order], block(tokens[:, order], condition), atol=1e-5
    )


def test_without_positions_shifting_the_image_shifts_the_output(monkeypatch):
    network = awake(small_network(SMALL["dit"])).eval()
    x, c_noise, labels = small_inputs()

    def shifted(image):
        return image.roll((2, 4), (2, 3))

    assert not torch.allclose(
        network(shifted(x), c_noise, labels), shifted(network(x, c_noise, labels)), atol=1e-2
    )
    monkeypatch.setattr(dit, "position_embedding", lambda rows, columns, *_: torch.zeros(1, 16))
    assert torch.allclose(
        network(shifted(x), c_noise, labels), shifted(network(x, c_noise, labels)), atol=1e-5
    )


def test_a_block_is_its_formula():
    block = awake(DitBlock(8, 2, 32))
    x, c = torch.randn(2, 5, 8), torch.randn(2, 8)
    m = [p[:, None] for p in (c @ block.modulate.weight.T + block.modulate.bias).chunk(6, -1)]

    def normalised(t):
        centred = t - t.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    h = normalised(x) * (1 + m[1]) + m[0]
    q, k, v = (h @ block.qkv.weight.T + block.qkv.bias).chunk(3, -1)
    heads = []
    for columns in (slice(0, 4), slice(4, 8)):
        scores = q[..., columns] @ k[..., columns].transpose(1, 2) / math.sqrt(4)
        heads.append(scores.softmax(-1) @ v[..., columns])
    y = x + m[2] * block.project(torch.cat(heads, -1))
    h = block.mlp_0(normalised(y) * (1 + m[4]) + m[3])
    h = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
    expected = y + m[5] * (h @ block.mlp_1.weight.T + block.mlp_1.bias)
    assert torch.allclose(block(x, c), expected, atol=1e-4)


def test_positions_are_sines_and_cosines_of_column_then_row():
    place = position_embedding(3, 4, 8, CPU)
    assert place.shape == (12, 8)
    row, column = 2, 3

    def waves(p):
        angles = [p, p * 10_000**-0.5]
        return [*map(math.sin, angles), *map(math.cos, angles)]

    expected = [*waves(column), *waves(row)]
    assert place[row * 4 + column].tolist() == pytest.approx(expected, abs=1e-6)
    assert len({tuple(p) for p in place.tolist()}) == 12


def test_the_condition_is_time_plus_class_after_silu():
    network = awake(small_network(SMALL["dit"])).eval()
    x, c_noise, _ = small_inputs()
    seen = []
    network.blocks[2].register_forward_hook(lambda module, args, out: seen.append(args[1]))
    network(x, c_noise, torch.tensor([0, 2, -1, 1]))
    rows = network.embed_label.weight[[0, 2, 3, 1]]
    expected = F.silu(network.embed_time(c_noise, torch.float32) + rows)
    assert torch.allclose(seen[0], expected, atol=1e-5)


def test_the_output_layer_is_its_formula():
    network = awake(small_network(SMALL["dit"])).eval()
    seen = {}
    network.blocks[-1].register_forward_hook(
        lambda module, args, out: seen.update(c=args[1], tokens=out)
    )
    f = network(*small_inputs())
    shift, scale = network.modulate_out(seen["c"]).chunk(2, -1)
    tokens = F.layer_norm(seen["tokens"], (16,), eps=1e-6) * (1 + scale[:, None]) + shift[:, None]
    assert torch.allclose(f, unpatchify(network.project_out(tokens), 4, 4, 2), atol=1e-5)


@pytest.mark.parametrize(("depth", "middle"), [(1, 0), (2, 0), (3, 1), (4, 1)])
def test_features_are_the_tokens_after_the_middle_block(depth, middle):
    network = awake(small_network(SMALL["dit"].model_copy(update={"depth": depth}))).eval()
    seen = []
    network.blocks[middle].register_forward_hook(lambda module, args, out: seen.append(out))
    _, features = network.forward_with_features(*small_inputs())
    assert torch.equal(features[:, :, 1, 2], seen[0][:, 1 * 4 + 2])


@pytest.mark.parametrize(
    ("spec", "resolution", "words"),
    [
        (DitSpec(patch=4), 30, "patch 4 does not divide images of side 30: use patch 3, or"),
        (DitSpec(patch=8), 30, "images of side 32"),
        (DitSpec(width=390), 32, "width must be a multiple of 4 .* got 390: use 384"),
        (
            DitSpec(width=100, heads=6),
            32,
            "width 100 cannot be split among 6 heads: use width 96, or 5 heads",
        ),
    ],
)
def test_a_network_that_does_not_fit_is_refused_with_the_numbers(spec, resolution, words):
    assert any(re.search(words, problem) for problem in check_network(spec, resolution))
    with pytest.raises(ConfigError, match=words):
        build_network(spec, resolution=resolution, channels=3, classes=0, seed=0)
