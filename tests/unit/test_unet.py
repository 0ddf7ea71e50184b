"""The latent-style U-Net: the reference's parameter count, and its blocks in so many words."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fleetstep.errors import ConfigError
from fleetstep.networks.build import build_network
from fleetstep.networks.spec import BlockPlan, UnetSpec, check_network, feature_shape
from fleetstep.networks.starts import FanIn
from fleetstep.networks.timestep import TimestepEmbedding
from fleetstep.networks.unet import Resample, Unet, UnetAttention, UnetBlock
from small_networks import SMALL, awake, small_inputs, small_network

COUNTS = json.loads((Path(__file__).parents[1] / "golden" / "networks.json").read_text())[
    "param_counts"
]


def count(network):
    return sum(p.numel() for p in network.parameters())


def test_the_parameter_count_is_the_reference_s_to_the_unit():
    with torch.device("meta"):
        plain, classes = Unet(UnetSpec(), 32, 4, 0, 8), Unet(UnetSpec(), 32, 4, 1000, 8)
    (golden,) = (n for name, n in COUNTS.items() if name.startswith("SpeeD U-Net"))
    assert count(plain) == golden == 35_876_104
    assert count(classes) - golden == 1001 * 512
    assert check_network(UnetSpec(), 32) == []
    assert feature_shape(UnetSpec(), 32) == (128, 4, 4)


def test_attention_is_at_side_16_and_in_the_middle():
    with torch.device("meta"):
        network = Unet(UnetSpec(), 32, 4, 0)
    attending = [n for n, m in network.named_modules() if isinstance(m, UnetAttention)]
    # levels of the encoder: blocks 0-2, halving 3, blocks 4-6, halving 7, ...
    assert attending == [
        *(f"encoder.{i}.attention" for i in (4, 5, 6)),
        "bottleneck.0.attention",
        *(f"decoder.{i}.attention" for i in (10, 11, 12, 13)),
    ]


def test_a_fresh_network_says_nothing():
    assert not small_network(SMALL["unet"])(*small_inputs()).any()


def test_weights_start_uniform_by_their_inputs():
    network = build_network(
        UnetSpec(channels=64, multipliers=(1,), blocks=1, attention_resolutions=(8,)),
        resolution=8, channels=1, classes=200, seed=0,
    )  # fmt: skip
    block = network.encoder[0]
    for layer in (block.conv_0, block.affine, block.attention.qkv, network.embed_time.linear_0):
        bound = 1 / math.sqrt(layer.weight[0].numel())
        assert layer.weight.abs().max().item() == pytest.approx(bound, rel=0.02)
        assert layer.weight.abs().max().item() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
        assert not layer.bias.any()
    for layer in (block.conv_1, block.attention.project, network.conv_out):
        assert not layer.weight.any()
    assert network.embed_label.weight.std().item() == pytest.approx(1, rel=0.02)


def test_the_time_embedding_is_its_formula():
    embedding = awake(TimestepEmbedding(6, 5, FanIn()))
    angles = [3.25 * 10_000 ** (-k / 3) for k in range(3)]
    waves = torch.tensor([[*map(math.cos, angles), *map(math.sin, angles)]])
    hidden = F.silu(waves @ embedding.linear_0.weight.T + embedding.linear_0.bias)
    expected = hidden @ embedding.linear_1.weight.T + embedding.linear_1.bias
    assert torch.allclose(embedding(torch.tensor([3.25]), torch.float32), expected, atol=1e-5)


def test_blocks_receive_time_plus_class_after_silu():
    network = awake(small_network(SMALL["unet"])).eval()
    x, c_noise, _ = small_inputs()
    seen = []
    network.decoder[0].register_forward_hook(lambda module, args, out: seen.append(args[1]))
    network(x, c_noise, torch.tensor([0, 2, -1, 1]))
    rows = network.embed_label.weight[[0, 2, 3, 1]]
    expected = F.silu(network.embed_time(c_noise, torch.float32) + rows)
    assert torch.allclose(seen[0], expected, atol=1e-5)


def normalised(x, norm):
    """GroupNorm in so many words."""
    groups = x.view(len(x), norm.num_groups, -1)
    scaled = (groups - groups.mean(-1, keepdim=True)) / (
        groups.var(-1, correction=0, keepdim=True) + 1e-5
    ).sqrt()
    return scaled.view_as(x) * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)


@pytest.mark.parametrize("c_out", [8, 16])
def test_a_block_is_its_formula(c_out):
    block = awake(UnetBlock(BlockPlan(8, c_out), embedding=12, dropout=0.5)).eval()
    # so small that the normalisation's eps counts
    x, e = 1e-3 * torch.randn(2, 8, 4, 4), torch.randn(2, 12)
    h = block.conv_0(F.silu(normalised(x, block.norm_0)))
    h = h + (e @ block.affine.weight.T + block.affine.bias)[:, :, None, None]
    h = block.conv_1(F.silu(normalised(h, block.norm_1)))
    assert isinstance(block.skip, nn.Conv2d) == (c_out != 8)
    skip = block.skip(x) if c_out != 8 else x
    assert torch.allclose(block(x, e), h + skip, atol=1e-5)


def test_attention_is_softmax_over_pixels_plus_the_input():
    attention = awake(UnetAttention(8))
    x = torch.randn(2, 8, 3, 3)
    q, k, v = (
        F.conv2d(normalised(x, attention.norm), w, b).flatten(2)
        for w, b in zip(attention.qkv.weight.chunk(3), attention.qkv.bias.chunk(3), strict=True)
    )
    weights = torch.einsum("bcq,bck->bqk", q, k / math.sqrt(8)).softmax(-1)
    a = torch.einsum("bqk,bck->bcq", weights, v).view_as(x)
    assert torch.allclose(attention(x), x + attention.project(a), atol=1e-5)


def test_images_are_halved_and_doubled_by_convolutions():
    down, up = (awake(Resample(BlockPlan(4, 4, way))) for way in ("down", "up"))
    x, e = torch.randn(2, 4, 6, 6), torch.randn(2, 3)
    at_every_pixel = F.conv2d(x, down.conv.weight, down.conv.bias, padding=1)
    assert torch.allclose(down(x, e), at_every_pixel[..., ::2, ::2], atol=1e-5)
    repeated = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    expected = F.conv2d(repeated, up.conv.weight, up.conv.bias, padding=1)
    assert torch.allclose(up(x, e), expected, atol=1e-5)


def test_every_encoder_output_returns_once_in_the_decoder():
    network = awake(small_network(SMALL["unet"])).eval()
    outputs, tails = [], []
    for module in (network.conv_in, *network.encoder):
        module.register_forward_hook(lambda module, args, out: outputs.append(out))
    for block in network.decoder:
        if isinstance(block, UnetBlock):
            block.register_forward_hook(lambda module, args, out: tails.append(args[0]))
    network(*small_inputs())
    assert len(tails) == len(outputs)
    for tail, output in zip(tails, reversed(outputs), strict=True):
        assert torch.equal(tail[:, -output.shape[1] :], output)


def test_features_are_the_middle_block_s_output():
    network = awake(small_network(SMALL["unet"])).eval()
    seen = []
    network.bottleneck[1].register_forward_hook(lambda module, args, out: seen.append(out))
    _, features = network.forward_with_features(*small_inputs())
    assert torch.equal(features, seen[0])


@pytest.mark.parametrize(
    ("spec", "resolution", "words"),
    [
        (UnetSpec(), 36, "36 is not divisible by 8: use at most 3 multipliers, or images of side"),
        (UnetSpec(), 64, None),
        (UnetSpec(), 8, r"\[16\] are never reached: .* run at \[8, 4, 2, 1\]"),
        (UnetSpec(channels=33), 32, "channels must be even .* got 33"),
        (UnetSpec(channels=132), 32, "equal groups: use channels=128"),
    ],
)
def test_a_network_that_does_not_fit_is_refused_with_the_numbers(spec, resolution, words):
    if words is None:
        assert check_network(spec, resolution) == []
        return
    assert any(re.search(words, problem) for problem in check_network(spec, resolution))
    with pytest.raises(ConfigError, match=words):
        build_network(spec, resolution=resolution, channels=3, classes=0, seed=0)
