"""DDPM++ and NCSN++: the two U-Nets of Song et al. (2021) as Karras et al. (2022) train them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from fleetstep.networks.spec.blocks import BlockPlan, Plan
from fleetstep.spec import Spec


class SongUnetSpec(Spec):
    """What DDPM++ and NCSN++ have in common; defaults are EDM's for CIFAR-10.

    Attributes:
        channels: base width C.
        multipliers: width of each level over C; each level after the first halves the resolution.
        blocks: residual blocks per level of the encoder (one more in the decoder).
        attention_resolutions: image sides at which blocks carry self-attention.
        dropout: inside residual blocks, in training only.
        embedding: width of the noise embedding over C.
    """

    kind: str
    channels: Annotated[int, Field(ge=4)] = 128
    multipliers: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (2, 2, 2)
    blocks: PositiveInt = 4
    attention_resolutions: tuple[PositiveInt, ...] = (16,)
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.13
    embedding: PositiveInt = 4


class DdpmppSpec(SongUnetSpec):
    """DDPM++: sines and cosines embed the noise level, images are halved by plain averages."""

    kind: Literal["ddpmpp"] = "ddpmpp"


class NcsnppSpec(SongUnetSpec):
    """NCSN++: random Fourier features of the noise level, a [1, 3, 3, 1] filter where the image is
    halved or doubled, and the image itself, halved again and again, added at every level of the
    encoder.
    """

    kind: Literal["ncsnpp"] = "ncsnpp"


def song_unet_plan(spec: SongUnetSpec, resolution: int) -> Plan:
    """The blocks of a DDPM++ or NCSN++ for square images of side `resolution`."""
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
