"""Constant tables that training reads on its device at every step: copied there once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Table:
    """Numbers of a schedule, one per step, with a copy on each device that asked for them.

    A copy from pageable memory makes the host wait for all that the device has to do. The copies
    are neither compared nor pickled: two tables are equal if their numbers are.

    Args:
        values: the numbers.
    """

    values: tuple[float, ...]
    _copies: dict[torch.device, Tensor] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @classmethod
    def of(cls, values_T: Tensor) -> Self:
        """The table of a float64 tensor [T], to the last bit."""
        return cls(tuple(values_T.tolist()))

    def on(self, device: torch.device) -> Tensor:
        """The values on a device, float64 [T]; the same tensor every time, not to be changed."""
        if device not in self._copies:
            # A tensor made in inference mode could not be used in training later.
            with torch.inference_mode(False):
                self._copies[device] = torch.tensor(self.values, dtype=torch.float64).to(device)
        return self._copies[device]

    def __reduce__(self) -> tuple[type[Self], tuple[tuple[float, ...]]]:
        return type(self), (self.values,)
