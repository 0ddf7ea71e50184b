"""NCSN++: parameter counts of the reference, and what it has that DDPM++ has not."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from fleetstep.networks.build import build_network
from fleetstep.networks.ddpmpp import SongUnet
from fleetstep.networks.ncsnpp import FourierEmbedding, PyramidStep
from fleetstep.networks.resampling import BINOMIAL
from fleetstep.networks.spec import DdpmppSpec, NcsnppSpec, check_network
from fleetstep.training.partition import persistent_buffers
from small_networks import SMALL, awake, small_inputs, small_network

COUNTS = {
    name: count
    for name, count in json.loads(
        (Path(__file__).parents[1] / "golden" / "networks.json").read_text()
    )["param_counts"].items()
    if name.startswith("ncsnpp")
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_are_the_reference_s_to_the_unit(name):
    levels, resolution, classes, augment = re.fullmatch(
        r"ncsnpp cres=\[(.*)\] img=(\d+) label_dim=(\d+) augment_dim=(\d+)", name
    ).groups()
    spec = NcsnppSpec(multipliers=tuple(int(m) for m in levels.split(",")))
    assert check_network(spec, int(resolution)) == []
    with torch.device("meta"):
        network = SongUnet(spec, int(resolution), 3, int(classes), augment_dim=int(augment))
    assert sum(p.numel() for p in network.parameters()) == COUNTS[name]
    # beside the parameters only the frequencies are state: constant filters are not
    assert [(n, b.numel()) for n, b in network.named_buffers()] == [
        ("embed_noise.frequencies", 128)
    ]


def test_the_frequencies_are_saved_and_normal():
    spec = NcsnppSpec(channels=512, multipliers=(1,), blocks=1, attention_resolutions=())
    with torch.device("meta"):
        embedding = SongUnet(spec, 8, 1, 0).embed_noise
    embedding = embedding.to_empty(device="cpu")
    embedding.start_(seed=3, name="embed_noise")
    frequencies = embedding.frequencies
    assert frequencies.shape == (512,)
    assert frequencies.std().item() == pytest.approx(16, rel=0.1)
    assert abs(frequencies.mean().item()) < 2
    network = small_network(SMALL["ncsnpp"])
    assert list(persistent_buffers(network)) == ["embed_noise.frequencies"]
    assert not any("frequencies" in name for name, _ in network.named_parameters())


def test_the_noise_embedding_is_its_formula():
    embedding = FourierEmbedding(4)
    embedding.frequencies.copy_(torch.tensor([3.0, -20.5]))
    angles = [2 * math.pi * f * 0.7 for f in (3.0, -20.5)]
    expected = [*map(math.sin, angles), *map(math.cos, angles)]
    assert embedding(torch.tensor([0.7]))[0].tolist() == pytest.approx(expected, abs=1e-4)


def test_the_filter_keeps_constants_away_from_the_border():
    ones = torch.ones(2, 3, 8, 8)
    assert torch.allclose(BINOMIAL.down(ones)[..., 1:-1, 1:-1], ones[..., 1:3, 1:3])
    assert torch.allclose(BINOMIAL.up(ones)[..., 1:-1, 1:-1], torch.ones(2, 3, 14, 14))
    # zeros beyond the border: of the taps 1, 3, 3, 1 the first misses, then 1 and 1 of 4 in turn
    assert BINOMIAL.down(ones)[0, 0, 0, 1].item() == pytest.approx(7 / 8)
    assert BINOMIAL.up(ones)[0, 0, 0, 2].item() == pytest.approx(3 / 4)


def test_the_filter_is_1_3_3_1_along_both_axes():
    impulse = torch.zeros(1, 2, 6, 6)
    impulse[0, 1, 2, 3] = 1
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    up = BINOMIAL.up(impulse)[0]
    assert not up[0].any()
    assert torch.allclose(up[1, 3:7, 5:9], torch.outer(taps, taps) / 16)
    assert up.sum().item() == pytest.approx(4)


def test_doubling_is_four_times_the_adjoint_of_halving():
    x, y = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 8, 8)
    left, right = (BINOMIAL.up(x) * y).sum(), 4 * (x * BINOMIAL.down(y)).sum()
    assert left.item() == pytest.approx(right.item(), abs=1e-3)


def test_a_pyramid_step_is_one_convolution_with_a_wider_kernel():
    step = awake(PyramidStep(2, 5))
    x = torch.randn(3, 2, 8, 8)
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    # (x * w) * f = x * (w * f), and f is its own mirror image
    kernel = F.conv2d(
        step.weight.view(10, 1, 3, 3), torch.outer(taps, taps)[None, None], padding=3
    )
    expected = F.conv2d(x, kernel.view(5, 2, 6, 6), step.bias, stride=2, padding=2)
    assert torch.allclose(step(x), expected, atol=1e-5)


def test_the_pyramid_carries_the_image_down_every_level():
    spec = SMALL["ncsnpp"].model_copy(update={"multipliers": (1, 2, 2)})
    network = awake(small_network(spec)).eval()
    x, c_noise, labels = small_inputs()
    blocks, steps, inputs = [], [], []
    for i, block in enumerate(network.encoder):
        if block.resample == "down":
            block.register_forward_hook(lambda module, args, out: blocks.append(out))
            network.encoder[i + 1].register_forward_hook(
                lambda module, args, out: inputs.append(args[0])
            )
    for step in network.pyramid:
        step.register_forward_hook(lambda module, args, out: steps.append((args[0], out)))
    network(x, c_noise, labels)
    assert len(blocks) == len(steps) == 2
    halved = x
    for block, (step_in, step_out), following in zip(blocks, steps, inputs, strict=True):
        assert torch.equal(step_in, halved)
        halved = (block + step_out) / math.sqrt(2)
        assert torch.allclose(following, halved, atol=1e-6)
        halved = following


def test_what_the_pyramid_adds_is_the_skip_connection():
    network = awake(small_network(SMALL["ncsnpp"])).eval()
    following, tails = [], []
    network.encoder[2].register_forward_hook(lambda m, args, out: following.append(args[0]))
    for block in network.decoder:
        if block.resample is None:
            block.register_forward_hook(lambda m, args, out: tails.append(args[0]))
    network(*small_inputs())
    # skips in order: the first convolution, block 0, block 1 (halves), block 2
    width = following[0].shape[1]
    assert torch.equal(tails[1][:, -width:], following[0])


def test_ddpmpp_has_no_pyramid_and_no_buffers():
    network = build_network(DdpmppSpec(), resolution=32, channels=3, classes=0, seed=0)
    assert len(network.pyramid) == 0
    assert not list(network.buffers())
