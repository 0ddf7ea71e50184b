"""Networks as closed configs: their blocks and the images they fit, in plain Python (no torch)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, PositiveInt

from fleetstep.spec import Spec


class DdpmppSpec(Spec):
    """DDPM++, the U-Net of Song et al. (2021) as EDM trains it; defaults are EDM's for CIFAR-10.

    Attributes:
        channels: base width C.
        multipliers: width of each level over C; each level after the first halves the resolution.
        blocks: residual blocks per level of the encoder (one more in the decoder).
        attention_resolutions: image sides at which blocks carry self-attention.
        dropout: inside residual blocks, in training only.
        embedding: width of the noise embedding over C.
    """

    kind: Literal["ddpmpp"] = "ddpmpp"
    channels: Annotated[int, Field(ge=4)] = 128
    multipliers: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (2, 2, 2)
    blocks: PositiveInt = 4
    attention_resolutions: tuple[PositiveInt, ...] = (16,)
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.13
    embedding: PositiveInt = 4


NetworkSpec: TypeAlias = DdpmppSpec
"""Every network a config can name: a union, told apart by `kind`, as soon as there are two."""


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


def ddpmpp_plan(spec: DdpmppSpec, resolution: int) -> Plan:
    """The blocks of a DDPM++ for square images of side `resolution`."""
    widths = [spec.channels * m for m in spec.multipliers]
    attends = [resolution >> level in spec.attention_resolutions for level in range(len(widths))]

    encoder: list[BlockPlan] = []
    current = spec.channels
    skips = [current]
    for level, width in enumerate(widths):
        if level > 0:
            encoder.append(BlockPlan(current, current, resample="down"))
            skips.append(current)
        for _ in range(spec.blocks):
            encoder.append(BlockPlan(current, width, attention=attends[level]))
            skips.append(width)
            current = width
    bottleneck = (BlockPlan(current, current, attention=True), BlockPlan(current, current))

    decoder: list[BlockPlan] = []
    for level in reversed(range(len(widths))):
        if level < len(widths) - 1:
            decoder.append(BlockPlan(current, current, resample="up"))
        for i in range(spec.blocks + 1):
            attention = attends[level] and i == spec.blocks
            decoder.append(BlockPlan(current + skips.pop(), widths[level], attention=attention))
            current = widths[level]
    return Plan(tuple(encoder), bottleneck, tuple(decoder))


def norm_groups(channels: int) -> int:
    """Groups of a GroupNorm: at least four channels each, at most 32 groups."""
    return min(32, channels // 4)


def check_network(spec: NetworkSpec, resolution: int) -> list[str]:
    """Every reason why the network does not fit images of side `resolution`; empty if it does."""
    return [*_check_levels(spec, resolution), *_check_widths(spec, resolution)]


def _check_levels(spec: DdpmppSpec, resolution: int) -> Iterator[str]:
    levels = len(spec.multipliers)
    factor = 2 ** (levels - 1)
    if resolution % factor:
        nearest = max(round(resolution / factor), 1) * factor
        fitting = (resolution & -resolution).bit_length()
        yield (
            f"multipliers {list(spec.multipliers)} halve the image {levels - 1} times, "
            f"and {resolution} is not divisible by {factor}: use at most {fitting} multipliers, "
            f"or images of side {nearest}"
        )
        return
    reached = [resolution >> level for level in range(levels)]
    missed = [r for r in spec.attention_resolutions if r not in reached]
    if missed:
        yield (
            f"attention_resolutions {missed} are never reached: images of side {resolution} "
            f"with {levels} levels run at {reached}; "
            "use some of these, or [] for attention in the bottleneck only"
        )


def _check_widths(spec: DdpmppSpec, resolution: int) -> Iterator[str]:
    if spec.channels % 2:
        yield (
            "channels must be even (sines and cosines embed the noise level), "
            f"got {spec.channels}: use {spec.channels + 1}"
        )
    plan = ddpmpp_plan(spec, resolution)
    blocks = (*plan.encoder, *plan.bottleneck, *plan.decoder)
    widths = sorted({width for block in blocks for width in (block.c_in, block.c_out)})
    uneven = [width for width in widths if width % norm_groups(width)]
    if uneven:
        nearest = max(round(spec.channels / 32), 1) * 32
        yield (
            f"channels={spec.channels} with multipliers {list(spec.multipliers)} gives blocks of "
            f"{uneven} channels, which group normalisation cannot split into "
            f"{[norm_groups(w) for w in uneven]} equal groups: use channels={nearest}"
        )
