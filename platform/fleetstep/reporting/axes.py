"""Axes: ranges, scales and ticks, computed once so that the PNG and the page show the same
picture.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

_LOG_FROM = 5.0
"""A positive axis whose largest value is this many times its smallest is drawn logarithmically."""


@dataclass(frozen=True)
class Axis:
    """One axis: what it measures (with its unit), its range, its scale and its ticks (place,
    text).

    Args:
        linear_to: where not 0, the axis is linear about zero up to this size and logarithmic
            beyond it on both sides: asinh(value / linear_to).
    """

    title: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    log: bool = False
    linear_to: float = 0.0

    def place(self, value: float) -> float:
        """Where `value` lies, 0 = low end, 1 = high end; values outside (or <= 0 on a log axis) go
        to the ends.
        """
        if self.log:
            if value <= 0:
                return 0.0
            share = math.log(value / self.low) / math.log(self.high / self.low)
        elif self.linear_to:
            low, here, high = (
                math.asinh(end / self.linear_to) for end in (self.low, value, self.high)
            )
            share = (here - low) / (high - low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return min(max(share, 0.0), 1.0)


def fit(
    title: str, values: Iterable[float], *, log: bool | None = None, include: float | None = None
) -> Axis:
    """An axis that holds all finite `values` with a little air.

    Args:
        log: None = logarithmic where all values are positive and they span a factor of five.
        include: a value that must be on the axis, for example the 0 of a difference.
    """
    finite = [value for value in values if math.isfinite(value)]
    if include is not None:
        finite.append(include)
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    if log is None:
        log = low > 0 and high / low > _LOG_FROM
    if log:
        air = max(high / low, 1.1) ** 0.08
        low, high = low / air, high * air
        return Axis(title, low, high, log_ticks(low, high), log=True)
    air = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    low, high = (low - air if low != 0 else low), high + air
    return Axis(title, low, high, linear_ticks(low, high))


def through_zero(title: str, values: Iterable[float], linear_to: float) -> Axis:
    """An axis for values of many sizes of which some are negative or zero: linear up to
    `linear_to` on both sides of zero, logarithmic beyond.

    Args:
        linear_to: > 0, about the size of what noise there is around zero.
    """
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    unit = Axis(title, low, high or linear_to, (), linear_to=linear_to)
    air = 0.07 * (math.asinh(unit.high / linear_to) - math.asinh(low / linear_to)) or 1.0
    low, high = (
        linear_to * math.sinh(math.asinh(end / linear_to) + step)
        for end, step in ((low, -air), (unit.high, air))
    )
    axis = Axis(title, low, high, (), linear_to=linear_to)
    return replace(axis, ticks=_signed_ticks(axis))


def _signed_ticks(axis: Axis) -> tuple[tuple[float, str], ...]:
    """Zero, and 1, 2 and 5 times powers of ten on both sides, as far as their texts do not
    touch.
    """
    smallest = math.floor(math.log10(axis.linear_to))
    largest = math.ceil(math.log10(max(abs(axis.low), abs(axis.high), axis.linear_to)))
    sizes = [
        (digit * 10.0**power, max(0, -power))
        for digit in (1, 5, 2)
        for power in range(largest, smallest - 1, -1)
    ]
    kept: list[tuple[float, str]] = []
    for value, decimals in [(0.0, 0), *((s * v, d) for v, d in sizes for s in (1, -1))]:
        far = all(abs(axis.place(value) - axis.place(other)) > 0.09 for other, _ in kept)
        if axis.low <= value <= axis.high and far:
            kept.append((value, _tick(value, decimals)))
    return tuple(sorted(kept))


def from_zero(title: str, values: Iterable[float]) -> Axis:
    """An axis of progress: from exactly 0 to a little beyond the last value."""
    high = 1.02 * max((value for value in values if math.isfinite(value)), default=1.0) or 1.0
    return Axis(title, 0.0, high, linear_ticks(0.0, high, about=5))


def at_values(title: str, values: Iterable[float]) -> Axis:
    """A logarithmic axis with ticks at the given values, thinned where their texts would touch."""
    places = sorted(set(values))
    low, high = (places[0] / 1.12, places[-1] * 1.12) if places else (1.0, 10.0)
    axis = Axis(title, low, high, (), log=True)
    kept: list[float] = []
    for place in places:
        if not kept or axis.place(place) - axis.place(kept[-1]) > 0.075:
            kept.append(place)
    return Axis(title, low, high, tuple((place, f"{place:g}") for place in kept), log=True)


def linear_ticks(low: float, high: float, about: int = 5) -> tuple[tuple[float, str], ...]:
    """Ticks at 1, 2, 2.5 or 5 times a power of ten, `about` that many."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((m * power for m in (1, 2, 2.5, 5, 10)), key=lambda s: abs(math.log(s / rough)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9) + (1 if step / power == 2.5 else 0))
    return tuple((i * step, _tick(i * step, decimals)) for i in range(first, last + 1))


def log_ticks(low: float, high: float) -> tuple[tuple[float, str], ...]:
    """Ticks at powers of ten, with 2 and 5 (or all digits) between where the range is short."""
    decades = math.log10(high / low)
    digits = (1, 2, 3, 4, 5, 6, 8) if decades < 0.9 else (1, 2, 5) if decades < 2.5 else (1,)
    powers = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
    ticks = tuple(
        (digit * 10.0**power, _tick(digit * 10.0**power, max(0, -power)))
        for power in powers
        for digit in digits
        if low <= digit * 10.0**power <= high
    )
    return ticks if len(ticks) >= 2 else linear_ticks(low, high, about=4)


def _tick(value: float, decimals: int) -> str:
    return f"{value:,.{decimals}f}".replace("-", "−")
