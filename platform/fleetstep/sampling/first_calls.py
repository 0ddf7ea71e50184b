"""Evaluations at x_T that deterministic cells share: all begin with D(x_T; sigma_max).

Sharing changes no bit: the same tensor is read instead of being computed again. It is counted in
every cell's NFE, and once in the cost.

Legend: B batch, C channels, H W pixels.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final, NamedTuple

import torch

from fleetstep.sampling.spec import SolverSpec
from fleetstep.sampling.walk import FirstCall

FIRST_CALLS_BYTES: Final = 64 << 20
"""Most that one `FirstCalls` keeps: 26 batches of 100 CIFAR-10 images in float64."""


class FirstCallKey(NamedTuple):
    """Which evaluation: everything that differs between the calls of one owner.

    Args:
        first, batch: first seed, and how many.
        sigma: level of x_T.
        dtype: of the state.
        features: whether bottleneck features were asked for.
    """

    first: int
    batch: int
    sigma: float
    dtype: torch.dtype
    features: bool


class FirstCalls:
    """The first evaluations of one network under one guidance, namespace and rule of labels.

    Keeping one of these for each such setting is the owner's part. The oldest evaluations are
    dropped beyond the limit.

    Args:
        limit_bytes: most memory kept, on the network's device.
    """

    def __init__(self, limit_bytes: int = FIRST_CALLS_BYTES) -> None:
        self._limit, self._held = limit_bytes, 0
        self._calls: OrderedDict[FirstCallKey, FirstCall] = OrderedDict()
        self.reused = 0
        """Evaluations of a batch that were not made, because they were here."""

    def get(self, key: FirstCallKey, make: Callable[[], FirstCall]) -> FirstCall:
        """The evaluation of `key`, made by `make` if it is not here."""
        if key in self._calls:
            self.reused += 1
            self._calls.move_to_end(key)
            return self._calls[key]
        call = make()
        self._calls[key] = call
        self._held += _bytes(call)
        while self._held > self._limit:
            _, dropped = self._calls.popitem(last=False)
            self._held -= _bytes(dropped)
        return call


def shares_first_call(solver: SolverSpec) -> bool:
    """Whether `solver` begins with D(x_T), whatever its other settings."""
    return not (solver.stochastic or solver.adaptive or solver.starts_analytically)


def _bytes(call: FirstCall) -> int:
    tensors = (call.denoised_BCHW, call.features)
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)
