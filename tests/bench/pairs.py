"""Two ways of doing the same thing, measured in turn in CPU seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PAIRS = 7


@dataclass(frozen=True)
class Ratio:
    """Two ways of doing the same thing, in CPU seconds pair by pair, and what the ratio B / A
    means.

    Args:
        claim: what is compared; it says so where the pairs are wall seconds.
        a, b: names of the two.
        pairs: seconds of both, measured in turn.
        details: what else was measured on the way, a line each.
    """

    claim: str
    a: str
    b: str
    pairs: tuple[tuple[float, float], ...]
    details: tuple[str, ...] = ()

    @property
    def ratios(self) -> list[float]:
        """B / A of each pair."""
        return [b / a for a, b in self.pairs]


def interleaved(
    claim: str, a: str, run_a: Callable[[], Any], b: str, run_b: Callable[[], Any]
) -> Ratio:
    """Warm both up, then measure them in turn."""
    run_a(), run_b()
    return Ratio(
        claim, a, b, tuple((cpu_seconds(run_a), cpu_seconds(run_b)) for _ in range(PAIRS))
    )


def cpu_seconds(run: Callable[[], Any]) -> float:
    """CPU time of this process: waiting for a core that others use does not count."""
    started = time.process_time()
    run()
    return time.process_time() - started
