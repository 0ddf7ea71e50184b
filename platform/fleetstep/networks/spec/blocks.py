"""The blocks of a U-Net, in plain Python: what a network builds is what a check counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class BlockPlan:
    """One residual block: channels in (skip connection included) and out, and what it does."""

    c_in: int
    c_out: int
    resample: Literal["down", "up"] | None = None
    attention: bool = False


@dataclass(frozen=True)
class Plan:
    """The blocks of a U-Net in order of execution.

    Attributes:
        encoder: each block's output, and that of the first convolution, is a skip connection.
        bottleneck: two blocks at the lowest resolution.
        decoder: blocks; those without resampling first concatenate the last unused skip
            connection.
    """

    encoder: tuple[BlockPlan, ...]
    bottleneck: tuple[BlockPlan, BlockPlan]
    decoder: tuple[BlockPlan, ...]


def norm_groups(channels: int) -> int:
    """Groups of a GroupNorm: at least four channels each, at most 32 groups."""
    return min(32, channels // 4)
