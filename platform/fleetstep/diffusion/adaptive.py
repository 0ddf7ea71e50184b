"""Strategies that learn from the losses of a run: their state is a value, never hidden.

One optimiser step: every worker weighs and sums its losses under the same state, the sums are
added over workers, and the next state follows from them, the same on every worker. The state is
part of the checkpoint.

Shapes: B samples, S sums.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from fleetstep.diffusion.noise_levels import NoiseLevels

State = Mapping[str, Any]
"""What a strategy has learned: numbers and lists of numbers, which JSON keeps to the last bit."""


class Adaptive(Protocol):
    """What the loop asks of such a strategy; it is a frozen record and keeps nothing itself."""

    def start(self) -> State:
        """The state of a run that has seen nothing."""

    def law(self, base: NoiseLevels, state: State) -> NoiseLevels:
        """The law of noise levels under this state."""

    def weights(self, first: int, count: int, state: State) -> Tensor:
        """What multiplies the losses of stream positions first .. first+count-1: float64 [B]."""

    def sums(self, loss_B: Tensor, first: int) -> Tensor:
        """Sums over samples (float64 [S], on the CPU) of their losses before `weights`; they add
        over micro-batches and workers.
        """

    def update(self, state: State, sums_S: Tensor) -> State:
        """The state after an optimiser step, from the sums over its whole global batch."""

    def metrics(self, state: State) -> Mapping[str, float]:
        """What to log of it, by a short name."""
