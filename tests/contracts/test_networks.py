"""What every network keeps, whatever it is made of."""

import json
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from fleetstep.errors import ConfigError
from fleetstep.networks.spec import NetworkSpec, feature_shape
from small_networks import SMALL, awake, small_inputs, small_network

OUTPUTS = json.loads((Path(__file__).parents[1] / "golden" / "networks.json").read_text())[
    "outputs"
]


@pytest.fixture(params=SMALL)
def spec(request):
    return SMALL[request.param]


def test_the_features_have_the_declared_shape(spec):
    x, c_noise, labels = small_inputs()
    network = awake(small_network(spec)).eval()
    f, features = network.forward_with_features(x, c_noise, labels)
    assert f.shape == x.shape
    assert features.shape == (4, *feature_shape(spec, 8))
    assert torch.equal(f, network(x, c_noise, labels))


def test_a_learned_variance_doubles_the_channels(spec):
    network = small_network(spec, channels_out=4)
    assert network(*small_inputs()).shape == (4, 4, 8, 8)


def test_every_parameter_learns(spec):
    network = awake(small_network(spec))
    x, c_noise, labels = small_inputs()
    # one image without a class: its vector has to learn too
    network(x, c_noise, labels.index_fill(0, torch.tensor([3]), -1)).square().sum().backward()
    dead = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


def test_the_start_depends_on_the_seed_alone(spec):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = small_network(spec, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second, other = small_network(spec, seed=5), small_network(spec, seed=6)
    weights, others = second.state_dict(), other.state_dict()
    for name, value in first.state_dict().items():
        assert torch.equal(value, weights[name]), name
        random = value.std() > 0 and not (value == 1).all()
        assert torch.equal(value, others[name]) != random, name


def test_a_sample_does_not_see_its_batch(spec):
    network = awake(small_network(spec)).eval()
    x, c_noise, labels = small_inputs()
    whole = network(x, c_noise, labels)
    changed = x.clone()
    changed[1] = 100.0
    again = network(changed, c_noise, labels)
    assert torch.allclose(again[[0, 2, 3]], whole[[0, 2, 3]], atol=1e-5)
    assert not torch.allclose(again[1], whole[1], atol=1e-2)


def test_noise_level_and_class_reach_every_sample(spec):
    network = awake(small_network(spec)).eval()
    x, c_noise, labels = small_inputs()
    base = network(x, c_noise, labels)
    for other in (
        network(x, c_noise + 0.3, labels),
        network(x, c_noise, (labels + 1) % 3),
        network(x, c_noise),
    ):
        assert ((other - base).abs().amax((1, 2, 3)) > 1e-3).all()


def test_no_class_is_minus_one_or_none(spec):
    network = awake(small_network(spec)).eval()
    x, c_noise, labels = small_inputs()
    none = network(x, c_noise)
    assert torch.equal(network(x, c_noise, torch.full((4,), -1)), none)
    mixed = network(x, c_noise, torch.where(torch.arange(4) < 2, labels, -1))
    assert torch.allclose(mixed[2:], none[2:], atol=1e-5)
    assert torch.allclose(mixed[:2], network(x, c_noise, labels)[:2], atol=1e-5)


def test_an_unconditional_network_ignores_labels(spec):
    network = awake(small_network(spec, classes=0)).eval()
    x, c_noise, labels = small_inputs()
    assert torch.equal(network(x, c_noise, labels), network(x, c_noise))


@pytest.mark.parametrize("kind", ["ddpmpp", "ncsnpp", "unet"])
def test_dropout_acts_in_training_only(kind):
    network = awake(small_network(SMALL[kind].model_copy(update={"dropout": 0.5})))
    arguments = small_inputs()
    network.eval()
    assert torch.equal(network(*arguments), network(*arguments))
    network.train()
    assert not torch.equal(network(*arguments), network(*arguments))


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_a_network_that_cannot_be_told_of_augmentations_is_refused(kind):
    with pytest.raises(ConfigError, match=f"network kind {kind} cannot be told how images were"):
        small_network(SMALL[kind], augment_dim=9)


@pytest.mark.parametrize("kind", ["ddpmpp", "ncsnpp"])
def test_an_augmentation_reaches_every_sample_and_zeros_are_none(kind):
    network = awake(small_network(SMALL[kind], augment_dim=9)).eval()
    x, c_noise, labels = small_inputs()
    base = network(x, c_noise, labels)
    assert torch.equal(network(x, c_noise, labels, torch.zeros(4, 9)), base)
    other = network(x, c_noise, labels, torch.ones(4, 9))
    assert ((other - base).abs().amax((1, 2, 3)) > 1e-3).all()


def test_weights_are_rounded_but_not_the_noise_level(spec):
    """In bfloat16 a network still tells neighbouring noise levels apart."""
    network = awake(small_network(spec)).eval()
    x, _, labels = small_inputs()
    seen = []
    embedding = network.embed_noise if hasattr(network, "embed_noise") else network.embed_time
    first = embedding if hasattr(network, "embed_noise") else embedding.linear_0
    first.register_forward_hook(lambda module, args, out: seen.append((args[0], out)))
    network.bfloat16()
    level = torch.full((4,), 500.0)
    for c_noise in (level, level + 0.5):  # equal in bfloat16
        assert network(x.bfloat16(), c_noise, labels).dtype == torch.bfloat16
    (a_in, a_out), (b_in, b_out) = seen
    assert not torch.equal(a_out, b_out)
    assert a_in.shape == b_in.shape


@pytest.mark.parametrize("kind", OUTPUTS)
def test_the_numbers_are_those_of_yesterday(kind):
    network = awake(small_network(SMALL[kind])).eval()
    f, features = network.forward_with_features(*small_inputs())
    assert f[:, 0, 3, 5].tolist() == pytest.approx(OUTPUTS[kind]["f"], rel=1e-4, abs=1e-4)
    assert features[:, 5, 1, 2].tolist() == pytest.approx(
        OUTPUTS[kind]["features"], rel=1e-4, abs=1e-4
    )


def test_a_config_names_every_kind_and_nothing_else(spec):
    adapter = TypeAdapter(NetworkSpec)
    assert adapter.validate_json(spec.model_dump_json()) == spec
    with pytest.raises(ValidationError, match="'mlp'"):
        adapter.validate_python({"kind": "mlp"})
    with pytest.raises(ValidationError, match="Extra inputs"):
        adapter.validate_python({**spec.model_dump(), "widht": 3})
