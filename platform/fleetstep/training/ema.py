"""Moving averages of the weights, each rank averaging only the partition it owns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fleetstep.training.partition import OwnedSlice
from fleetstep.training.spec import EmaSpec, ema_beta


class EmaTracks:
    """Any number of averages in fp32, by images seen; parameters only, as EDM does it.

    N ranks hold 1/N of each track: the slices are those of `Engine.owned()` under any ZeRO stage.

    Args:
        specs: the tracks by name.
        budget: the run's image budget, of which a half-life may be a share.
        global_batch: images per optimiser step.
        owned: the engine's partition; tracks start as a copy of its weights.
    """

    def __init__(
        self,
        specs: Mapping[str, EmaSpec],
        *,
        budget: int,
        global_batch: int,
        owned: Sequence[OwnedSlice],
    ) -> None:
        self._specs = dict(specs)
        self._budget = budget
        self._global_batch = global_batch
        self._owned = list(owned)
        self._weights = [piece.param for piece in owned]
        self._averages = {name: [w.clone() for w in self._weights] for name in specs}

    @property
    def tracks(self) -> tuple[str, ...]:
        """Names of the tracks."""
        return tuple(self._specs)

    @property
    def nbytes(self) -> int:
        """Memory of all tracks on this rank."""
        return sum(a.nbytes for averages in self._averages.values() for a in averages)

    def slices(self, track: str) -> list[tuple[OwnedSlice, Tensor]]:
        """(where it lies, its average: a live fp32 tensor [numel]) of each owned slice."""
        return list(zip(self._owned, self._averages[track], strict=True))

    @torch.no_grad()
    def update(self, images_seen: int) -> None:
        """Move every average after a step; `images_seen` counts images before its batch."""
        for name, spec in self._specs.items():
            beta = ema_beta(spec, self._budget, images_seen, self._global_batch)
            torch._foreach_lerp_(self._averages[name], self._weights, 1 - beta)
