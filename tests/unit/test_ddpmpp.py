"""DDPM++: parameter counts of the reference, and the behaviour that shapes cannot show."""

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
from fleetstep.networks.ddpmpp import Attention, NoiseEmbedding, ResidualBlock, SongUnet
from fleetstep.networks.layers import initialise
from fleetstep.networks.spec import BlockPlan, DdpmppSpec, check_network

COUNTS = json.loads((Path(__file__).parents[1] / "golden" / "training.json").read_text())[
    "param_counts"
]
SMALL = DdpmppSpec(channels=8, multipliers=(1, 2), blocks=1, attention_resolutions=(4,), dropout=0)


def small(seed=0, classes=3, **changes):
    return build_network(
        SMALL.model_copy(update=changes), resolution=8, channels=1, classes=classes, seed=seed
    )


def awake(network):
    """The network with every parameter of ordinary size: a fresh one is nearly the identity."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise / math.sqrt(max(parameter[0].numel(), 1)))
    return network


def inputs(batch=4):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 1, 8, 8, generator=generator)
    return x, torch.linspace(-1.5, 1, batch), torch.arange(batch) % 3


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_are_the_reference_s_to_the_unit(name):
    levels, resolution, classes, augment = re.fullmatch(
        r"ddpmpp cres=\[(.*)\] img=(\d+) label_dim=(\d+) augment_dim=(\d+)", name
    ).groups()
    spec = DdpmppSpec(multipliers=tuple(int(m) for m in levels.split(",")))
    with torch.device("meta"):
        network = SongUnet(spec, int(resolution), 3, int(classes), augment_dim=int(augment))
    assert sum(p.numel() for p in network.parameters()) == COUNTS[name]


def test_the_small_digits_network_fits():
    for multipliers in ((1, 2), (2, 2)):
        spec = DdpmppSpec(channels=32, multipliers=multipliers, attention_resolutions=(4,))
        assert check_network(spec, 8) == []
        network = build_network(spec, resolution=8, channels=1, classes=10, seed=0).eval()
        f, features = network.forward_with_features(*inputs())
        assert f.shape == (4, 1, 8, 8)
        assert features.shape == (4, 64, 4, 4)


def test_every_parameter_learns():
    network = awake(SongUnet(SMALL, 8, 1, 3, augment_dim=2))
    initialised = network(*inputs(), torch.ones(4, 2))
    initialised.square().sum().backward()
    dead = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


def test_no_two_layers_start_alike():
    network = small()
    convolutions = [m.weight for m in network.modules() if isinstance(m, nn.Conv2d)]
    starts = {tuple(w.flatten()[:3].tolist()) for w in convolutions}
    assert len(starts) == len(convolutions)


def test_weights_start_xavier_uniform_times_their_gain():
    network = build_network(
        DdpmppSpec(channels=64, multipliers=(1,), blocks=1, attention_resolutions=(8,)),
        resolution=8, channels=1, classes=0, seed=0,
    )  # fmt: skip
    block = network.encoder[0]
    for layer, gain in (
        (block.conv_0, 1),
        (block.conv_1, 1e-5),
        (block.affine, 1),
        (block.attention.qkv, math.sqrt(0.2)),
        (block.attention.project, 1e-5),
        (network.conv_out, 1e-5),
    ):
        kernel = math.prod(layer.weight.shape[2:])
        bound = gain * math.sqrt(6 / (kernel * sum(layer.weight.shape[:2])))
        assert layer.weight.abs().max().item() == pytest.approx(bound, rel=0.02)
        assert layer.weight.abs().max().item() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
        assert not layer.bias.any()
    assert torch.equal(block.norm_0.weight, torch.ones(64))
    assert not block.norm_0.bias.any()


def test_parameters_without_a_rule_are_refused():
    with pytest.raises(TypeError, match=r"no rule initialises 1 \(BatchNorm2d\)"):
        initialise(nn.Sequential(nn.GroupNorm(1, 4), nn.BatchNorm2d(4)), 0)


def test_noise_level_class_and_augmentation_reach_the_output():
    network = awake(SongUnet(SMALL, 8, 1, 3, augment_dim=2)).eval()
    x, c_noise, labels = inputs()
    base = network(x, c_noise, labels)
    for other in (
        network(x, c_noise + 0.5, labels),
        network(x, c_noise, (labels + 1) % 3),
        network(x, c_noise, labels, torch.ones(4, 2)),
    ):
        # every sample must notice: no condition reaches only part of the batch
        assert ((other - base).abs().amax((1, 2, 3)) > 1e-3).all()
    assert torch.equal(network(x, c_noise, labels, torch.zeros(4, 2)), base)


def test_features_are_the_encoder_s_last_output():
    network = awake(small()).eval()
    seen = []
    network.encoder[-1].register_forward_hook(lambda module, args, output: seen.append(output))
    f, features = network.forward_with_features(*inputs())
    assert torch.equal(features, seen[0])
    assert torch.equal(f, network(*inputs()))


def test_a_fresh_network_says_almost_nothing():
    assert small().eval()(*inputs()).abs().max().item() < 1e-3


def test_noise_embedding_frequencies():
    e = NoiseEmbedding(8)(torch.tensor([0.7]))[0]
    angles = [0.7 * 10_000 ** (-k / 3) for k in range(4)]
    expected = [*map(math.sin, angles), *map(math.cos, angles)]
    assert e.tolist() == pytest.approx(expected, abs=1e-6)


def normalised(x, norm):
    """GroupNorm in so many words."""
    groups = x.view(len(x), norm.num_groups, -1)
    scaled = (groups - groups.mean(-1, keepdim=True)) / (
        groups.var(-1, correction=0, keepdim=True) + 1e-6
    ).sqrt()
    return scaled.view_as(x) * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)


@pytest.mark.parametrize("resample", [None, "down", "up"])
@pytest.mark.parametrize("c_out", [8, 16])
def test_a_residual_block_is_its_formula(resample, c_out):
    block = awake(ResidualBlock(BlockPlan(8, c_out, resample), embedding=12, dropout=0.5)).eval()
    # so small that the normalisation's eps counts
    x, e = 1e-3 * torch.randn(2, 8, 4, 4), torch.randn(2, 12)

    def resampled(image):
        match resample:
            case "down":
                return image.view(2, 8, 2, 2, 2, 2).mean((3, 5))
            case "up":
                return image.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        return image

    h = block.conv_0(resampled(F.silu(normalised(x, block.norm_0))))
    h = h + (e @ block.affine.weight.T + block.affine.bias)[:, :, None, None]
    h = block.conv_1(F.silu(normalised(h, block.norm_1)))
    changes = resample is not None or c_out != 8
    assert isinstance(block.skip, nn.Conv2d) == changes
    skip = block.skip(resampled(x)) if changes else x
    assert torch.allclose(block(x, e), (h + skip) / math.sqrt(2), atol=1e-5)


def test_the_embedding_is_its_formula():
    """Noise, one-hot class times sqrt(K) and augmentation add up, then two layers with SiLU."""
    network = awake(SongUnet(SMALL, 8, 1, 3, augment_dim=2)).eval()
    x, c_noise, labels = inputs()
    augment = torch.randn(4, 2)
    seen = []
    network.encoder[0].register_forward_hook(lambda module, args, output: seen.append(args[1]))
    network(x, c_noise, labels, augment)
    e = network.embed_noise(c_noise) + network.embed_label(
        F.one_hot(labels, 3).float() * math.sqrt(3)
    )
    e = e + augment @ network.embed_augment.weight.T
    expected = F.silu(network.embed_1(F.silu(network.embed_0(e))))
    assert torch.allclose(seen[0], expected, atol=1e-5)


def test_every_encoder_output_returns_once_in_the_decoder():
    network = awake(small(blocks=2)).eval()
    encoder_outputs, tails = [], []
    for module in (network.conv_in, *network.encoder):
        module.register_forward_hook(lambda module, args, output: encoder_outputs.append(output))
    for block in network.decoder:
        if block.resample is None:
            block.register_forward_hook(lambda module, args, output: tails.append(args[0]))
    network(*inputs())
    assert len(tails) == len(encoder_outputs)
    for tail, output in zip(tails, reversed(encoder_outputs), strict=True):
        assert torch.equal(tail[:, -output.shape[1] :], output)


def test_attention_is_softmax_over_pixels_plus_the_input():
    attention = awake(Attention(8))
    x = torch.randn(2, 8, 3, 3)
    q, k, v = (
        F.conv2d(attention.norm(x), w, b).flatten(2)
        for w, b in zip(attention.qkv.weight.chunk(3), attention.qkv.bias.chunk(3), strict=True)
    )
    weights = torch.einsum("bcq,bck->bqk", q, k / math.sqrt(8)).softmax(-1)
    a = torch.einsum("bqk,bck->bcq", weights, v).view_as(x)
    expected = (x + attention.project(a)) / math.sqrt(2)
    assert torch.allclose(attention(x), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("spec", "resolution", "words"),
    [
        (
            DdpmppSpec(multipliers=(1, 2, 2), attention_resolutions=()),
            10,
            "10 is not divisible by 4: use at most 2 multipliers, or images of side 8",
        ),
        (DdpmppSpec(), 8, r"\[16\] are never reached: .* run at \[8, 4, 2\]"),
        (DdpmppSpec(channels=33), 32, "channels must be even .* got 33"),
        (
            DdpmppSpec(channels=132),
            32,
            r"\[132, 264, 396, 528\] channels, .* equal groups: use channels=128",
        ),
    ],
)
def test_a_network_that_does_not_fit_is_refused_with_the_numbers(spec, resolution, words):
    assert any(re.search(words, problem) for problem in check_network(spec, resolution))
    with pytest.raises(ConfigError, match=words):
        build_network(spec, resolution=resolution, channels=3, classes=0, seed=0)


@pytest.mark.parametrize("spec", [DdpmppSpec(), SMALL, DdpmppSpec(channels=32)])
def test_what_the_check_accepts_can_be_built(spec):
    assert (check_network(spec, 32) == []) == (spec != SMALL)
    with torch.device("meta"):
        SongUnet(spec, 32, 3, 10)
