"""Inputs of the evaluation goldens, by a 32-bit generator: no random-number library matters."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]


def lcg(count: int, seed: int) -> Float64:
    """x = (1664525 x + 1013904223) mod 2^32 from x = seed; the values are x / 2^32."""
    values = np.empty(count)
    x = seed
    for i in range(count):
        x = (1664525 * x + 1013904223) % 2**32
        values[i] = x / 2**32
    return values


def gauss4(shape: tuple[int, ...], seed: int) -> Float64:
    """Mean 0, variance 1: sqrt(3) times the centred sum of four consecutive numbers."""
    u = lcg(4 * math.prod(shape), seed).reshape(-1, 4)
    return math.sqrt(3) * (u.sum(1) - 2).reshape(shape)


def streaming_features() -> npt.NDArray[np.float32]:
    """1,000 x 16, the samples of the golden block `streaming`."""
    return (gauss4((1000, 16), 31) @ (lcg(256, 8).reshape(16, 16) - 0.5) + 0.3).astype(np.float32)


def streaming_reference() -> Float64:
    """1,500 x 16, the reference of the golden block `streaming`."""
    return gauss4((1500, 16), 32) @ (lcg(256, 9).reshape(16, 16) - 0.5) + 0.25
