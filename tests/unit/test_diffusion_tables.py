"""Tables of constants: one copy per device, and nothing of it in what is compared or sent."""

import copy
import pickle

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fleetstep.diffusion.objective import build_objective
from fleetstep.diffusion.spec import DdpmSpec, SpeedSpec
from fleetstep.diffusion.tables import Table

CPU, META = torch.device("cpu"), torch.device("meta")
VALUES = (0.1, 1 / 3, 1e-300, 12345.678)


class Moved(TorchDispatchMode):
    """Names of the operations that take a tensor of the CPU and give one of `meta`."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        before, after = (
            {leaf.device for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)}
            for tree in ((args, kwargs), result)
        )
        if CPU in before and META in after:
            self.names.append(str(operation))
        return result


def moved(work):
    with Moved() as mode:
        work()
    return mode.names


def learned_variance_with_speed():
    return build_objective(
        DdpmSpec(learned_variance=True), [SpeedSpec()], budget_images=1, global_batch=2
    )


def test_a_table_is_its_values_to_the_last_bit_on_every_device():
    table = Table(VALUES)
    assert table.on(CPU).tolist() == list(VALUES)
    assert Table.of(table.on(CPU)) == table
    for device in (CPU, META):
        assert (table.on(device).device, table.on(device).dtype) == (device, torch.float64)


def test_each_device_is_sent_the_values_once():
    table = Table(VALUES)
    assert moved(lambda: table.on(META))
    assert moved(lambda: table.on(META)) == []
    assert table.on(META) is table.on(META)


def test_copies_are_neither_compared_nor_shown_nor_sent():
    used, fresh = Table(VALUES), Table(VALUES)
    used.on(CPU), used.on(META)
    assert (used, hash(used), repr(used)) == (fresh, hash(fresh), repr(fresh))
    assert used != Table(VALUES[:3])
    assert pickle.dumps(used) == pickle.dumps(fresh)
    for again in (pickle.loads(pickle.dumps(used)), copy.deepcopy(used)):
        assert again == used
        assert again.on(CPU) is not used.on(CPU)
        assert torch.equal(again.on(CPU), used.on(CPU))


def test_a_table_first_read_in_inference_mode_can_be_trained_with():
    table = Table(VALUES)
    with torch.inference_mode():
        table.on(CPU)
    factor = torch.ones(4, dtype=torch.float64, requires_grad=True)
    (factor * table.on(CPU)).sum().backward()
    assert factor.grad.tolist() == list(VALUES)


@pytest.mark.parametrize("part", ["time", "level", "derivative", "weight", "bound"])
def test_a_training_step_sends_its_device_no_table_twice(part):
    built = learned_variance_with_speed()
    sigma = torch.ones(2, dtype=torch.float64, device=META)
    image = torch.ones(2, 1, 3, 3, device=META)
    parts = {
        "time": lambda: built.process.t_of_sigma(sigma),
        "level": lambda: built.process.sigma(sigma),
        "derivative": lambda: built.process.dscale_dt(sigma),
        "weight": lambda: built.weight(sigma, 0),
        "bound": lambda: built.variance(image, image, image, sigma),
    }
    assert moved(parts[part])
    assert moved(parts[part]) == []


def test_an_objective_in_use_is_pickled_without_its_tensors():
    used, fresh = learned_variance_with_speed(), learned_variance_with_speed()
    sigma = used.process.table[:2]
    image = torch.ones(2, 1, 3, 3)
    bound = used.variance(image, 0 * image, image, sigma)
    weight = used.weight(sigma, 0)
    assert b"torch" not in pickle.dumps(used.process)
    assert b"torch" not in pickle.dumps(used.variance)
    again = pickle.loads(pickle.dumps(used))
    assert again == used == fresh
    assert torch.equal(again.variance(image, 0 * image, image, sigma), bound)
    assert torch.equal(again.weight(sigma, 0), weight)
