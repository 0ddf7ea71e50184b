"""What a run learns of its own losses: the state of an adaptive strategy, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fleetstep.diffusion.adaptive import State
from fleetstep.diffusion.objective import Objective
from fleetstep.training.group import Group


class Adaptation:
    """Weighs losses, sums them over the optimiser step and moves the state on; equal on all ranks.

    Without an adaptive strategy it does nothing and costs nothing.

    Args:
        objective: whose strategy it is.
        group: the run's workers.
        state: from a checkpoint; None starts anew.
    """

    def __init__(self, objective: Objective, group: Group, state: State | None) -> None:
        self._adaptive, self._group = objective.adaptive, group
        self.state = state
        if self._adaptive is not None and state is None:
            self.state = self._adaptive.start()
        self._sums: Tensor | None = None

    def weighted(self, loss_B: Tensor, first: int) -> Tensor:
        """The losses of stream positions first .. first+B-1 under the state, which are counted."""
        if self._adaptive is None:
            return loss_B
        assert self.state is not None
        sums_S = self._adaptive.sums(loss_B.detach(), first)
        self._sums = sums_S if self._sums is None else self._sums + sums_S
        weight_B = self._adaptive.weights(first, len(loss_B), self.state)
        return loss_B * weight_B.to(loss_B)

    def advance(self) -> None:
        """Move the state on by an optimiser step; collective if there is a strategy."""
        if self._adaptive is None:
            return
        assert self.state is not None
        assert self._sums is not None
        sums_S = self._group.sum(self._sums)
        self.state, self._sums = self._adaptive.update(self.state, sums_S), None

    def metrics(self) -> Mapping[str, float]:
        """What to log, named train/...; empty without a strategy."""
        if self._adaptive is None or self.state is None:
            return {}
        return {f"train/{k}": value for k, value in self._adaptive.metrics(self.state).items()}

    def checkpointed(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {} if self._adaptive is None else {"adaptive": dict(self.state or {})}
