"""Execution switches change how a network is computed, and what it needs, but not its numbers."""

import warnings

import pytest
import torch
from torch import nn

from fleetstep.errors import ConfigError
from fleetstep.networks.execution import prepare
from fleetstep.networks.layers import Block
from small_networks import SMALL, awake, small_inputs, small_network

# As prepare's docstring promises, relative to the largest magnitude.
TOLERANCE = 1e-4


def in_training(kind, dropout=0.3, **changes):
    if kind != "dit":
        changes |= {"dropout": dropout}
    return awake(small_network(SMALL[kind].model_copy(update=changes))).train()


def step(network):
    """Output and gradients of one step, with the same dropped activations every time."""
    x, c_noise, labels = small_inputs()
    x.requires_grad_()
    torch.manual_seed(7)
    f = network(x, c_noise, labels)
    f.square().sum().backward()
    gradients = {name: p.grad for name, p in network.named_parameters()}
    return {"output": f.detach(), "input": x.grad} | gradients


@pytest.mark.parametrize("kind", SMALL)
def test_recomputed_activations_leave_every_bit(kind):
    plain, recomputed = in_training(kind), in_training(kind)
    calls = []
    for block in (m for m in recomputed.modules() if isinstance(m, Block)):
        block.register_forward_pre_hook(lambda module, args: calls.append(module))
    prepare(recomputed, activation_checkpointing=True, compile="off")
    expected = step(plain)
    for name, value in step(recomputed).items():
        assert torch.equal(value, expected[name]), name
    # every block started twice, so its activations were not kept
    assert calls
    assert all(calls.count(block) == 2 for block in calls)
    calls.clear()
    with torch.no_grad():
        recomputed(*small_inputs())
    assert all(calls.count(block) == 1 for block in calls)


@pytest.mark.parametrize("kind", SMALL)
def test_fewer_activations_are_kept(kind):
    kept = []
    for recompute in (False, True):
        network = in_training(kind)
        prepare(network, activation_checkpointing=recompute, compile="off")
        parameters = {p.data_ptr() for p in network.parameters()}
        saved = {}

        def pack(tensor, saved=saved, parameters=parameters):
            if tensor.data_ptr() not in parameters:
                saved[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            network(*small_inputs()).sum()
        kept.append(sum(saved.values()))
    assert kept[1] < 0.5 * kept[0]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("kind", SMALL)
def test_compiled_code_agrees(kind, recompute):
    _assert_agrees(kind, "aot_eager", recompute)


def test_generated_code_agrees():
    _assert_agrees("dit", "inductor", recompute=False, depth=1)


@pytest.mark.soak
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("kind", SMALL)
def test_generated_code_agrees_for_every_kind(kind, recompute):
    _assert_agrees(kind, "inductor", recompute)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """A run that was killed while it compiled leaves half a library in the shared cache."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))


def _assert_agrees(kind, backend, recompute, **changes):
    plain, compiled = (in_training(kind, dropout=0, **changes) for _ in range(2))
    names = list(compiled.state_dict())
    expected = step(plain)
    torch._dynamo.reset()
    with warnings.catch_warnings():
        # the compiler's own imports warn of their deprecations
        warnings.simplefilter("ignore", DeprecationWarning)
        prepare(compiled, activation_checkpointing=recompute, compile=backend)
        actual = step(compiled)
    assert list(compiled.state_dict()) == names
    for name, value in actual.items():
        scale = expected[name].abs().max()
        assert (value - expected[name]).abs().max() <= TOLERANCE * scale, name


def test_a_network_without_blocks_cannot_recompute():
    with pytest.raises(ConfigError, match="a Linear has no blocks that can be recomputed: set"):
        prepare(nn.Linear(2, 2), activation_checkpointing=True, compile="off")
