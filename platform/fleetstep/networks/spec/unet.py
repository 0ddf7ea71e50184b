"""The U-Net of latent diffusion (Rombach et al. 2022), in the size of SpeeD's experiments."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from fleetstep.networks.spec.blocks import BlockPlan, Plan
from fleetstep.spec import Spec


class UnetSpec(Spec):
    """The latent-style U-Net; defaults are SpeeD's (Wang et al. 2025, table 7, as released).

    Attributes:
        channels: base width C; the time embedding is 4 C wide.
        multipliers: width of each level over C; each level after the first halves the resolution.
        blocks: residual blocks per level of the encoder (one more in the decoder).
        attention_resolutions: image sides at which blocks carry self-attention (one head).
        dropout: inside residual blocks, in training only.
    """

    kind: Literal["unet"] = "unet"
    channels: Annotated[int, Field(ge=4)] = 128
    multipliers: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 2, 2, 1)
    blocks: PositiveInt = 3
    attention_resolutions: tuple[PositiveInt, ...] = (16,)
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


def unet_plan(spec: UnetSpec, resolution: int) -> Plan:
    """The blocks for square images of side `resolution`; those that resample are one convolution.

    Unlike in DDPM++, a level resamples after its blocks, not before, and all its blocks attend.
    """
    widths = [spec.channels * m for m in spec.multipliers]
    attends = [resolution >> level in spec.attention_resolutions for level in range(len(widths))]

    encoder: list[BlockPlan] = []
    current = spec.channels
    skips = [current]
    for level, width in enumerate(widths):
        for _ in range(spec.blocks):
            encoder.append(BlockPlan(current, width, attention=attends[level]))
            skips.append(width)
            current = width
        if level < len(widths) - 1:
            encoder.append(BlockPlan(current, current, resample="down"))
            skips.append(current)
    bottleneck = (BlockPlan(current, current, attention=True), BlockPlan(current, current))

    decoder: list[BlockPlan] = []
    for level in reversed(range(len(widths))):
        for _ in range(spec.blocks + 1):
            decoder.append(
                BlockPlan(current + skips.pop(), widths[level], attention=attends[level])
            )
            current = widths[level]
        if level > 0:
            decoder.append(BlockPlan(current, current, resample="up"))
    return Plan(tuple(encoder), bottleneck, tuple(decoder))
