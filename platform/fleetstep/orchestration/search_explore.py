"""How a population changes the settings that a trial takes over (Jaderberg et al. 2017)."""

from __future__ import annotations

from collections.abc import Collection

from fleetstep import rng
from fleetstep.config import Assignment, Choice, Dimension, Integers, Space

_FACTORS = (0.8, 1.2)
# Whether to draw anew, what to draw then, and which way to move otherwise.
_DRAWS = 3


def explored(
    space: Space,
    donor: Assignment,
    mutate: Collection[str],
    *,
    resample: float,
    seed: int,
    trial: str,
    life: int,
) -> dict[str, str | int | float | bool]:
    """The donor's assignment with the dimensions `mutate` changed: drawn anew with probability
    `resample`, else a number times 0.8 or 1.2 within its bounds, and a whole number or an option
    one place on.

    A function of (seed, trial, life, dimension): neither time nor other trials change it.
    """
    changed = dict(donor)
    for dimension in space.dimensions:
        if dimension.key in mutate and dimension.key in donor:
            purpose = f"search explore|{trial}|{dimension.key}"
            anew, where, way = rng.uniform(seed, purpose, life, 1, (_DRAWS,))[0].tolist()
            value = donor[dimension.key]
            changed[dimension.key] = (
                dimension.kind.at(where) if anew < resample else _moved(dimension, value, way)
            )
    return changed


def _moved(
    dimension: Dimension, value: str | int | float | bool, way: float
) -> str | int | float | bool:
    kind, up = dimension.kind, way >= 0.5
    if isinstance(kind, Choice):
        place = _beside(kind.labels.index(str(value)), up, 0, len(kind.labels) - 1)
        return kind.labels[place]
    if isinstance(kind, Integers):
        return _beside(int(value), up, kind.low, kind.high)
    return min(max(float(value) * _FACTORS[up], kind.low), kind.high)


def _beside(place: int, up: bool, low: int, high: int) -> int:
    """The next place up or down; at an end the only one there is."""
    if low == high:
        return place
    moved = place + (1 if up else -1)
    return moved if low <= moved <= high else 2 * place - moved
