"""The diffusion transformer of Peebles and Xie (2023)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from fleetstep.spec import Spec


class DitSpec(Spec):
    """DiT; defaults are DiT-S/2 (Peebles and Xie 2023, table 1).

    The published sizes as depth, width, heads: S 12, 384, 6; B 12, 768, 12; L 24, 1024, 16;
    XL 28, 1152, 16.

    Attributes:
        depth: transformer blocks.
        width: size D of a token.
        heads: attention heads of a block.
        patch: side of the square of pixels that makes one token.
        mlp_ratio: width of a block's hidden layer over D.
    """

    kind: Literal["dit"] = "dit"
    depth: PositiveInt = 12
    width: PositiveInt = 384
    heads: PositiveInt = 6
    patch: PositiveInt = 2
    mlp_ratio: Annotated[float, Field(ge=1)] = 4.0


def check_dit(spec: DitSpec, resolution: int) -> list[str]:
    """Every reason why the transformer does not fit images of side `resolution`."""
    return [*_check_patch(spec, resolution), *_check_width(spec)]


def _check_patch(spec: DitSpec, resolution: int) -> Iterator[str]:
    if resolution % spec.patch:
        nearest = max(round(resolution / spec.patch), 1) * spec.patch
        yield (
            f"patch {spec.patch} does not divide images of side {resolution}: "
            f"use patch {_nearest_divisor(resolution, spec.patch)}, "
            f"or images of side {nearest}"
        )


def _check_width(spec: DitSpec) -> Iterator[str]:
    whole = math.lcm(4, spec.heads)
    nearest = max(round(spec.width / whole), 1) * whole
    if spec.width % 4:
        yield (
            "width must be a multiple of 4 (sines and cosines of a row and a column embed a "
            f"position), got {spec.width}: use {nearest}"
        )
    if spec.width % spec.heads:
        yield (
            f"width {spec.width} cannot be split among {spec.heads} heads: use width {nearest}, "
            f"or {_nearest_divisor(spec.width, spec.heads)} heads"
        )


def _nearest_divisor(number: int, wanted: int) -> int:
    divisors = (d for d in range(1, number + 1) if number % d == 0)
    return min(divisors, key=lambda d: abs(d - wanted))
