"""When a pool speaks of an actor that it hears nothing of: arithmetic only, no Ray, no clock."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fleetstep.orchestration.dispatch import Ledger

PATIENCE_S = 30.0
"""Seconds without news of an actor at work after which the pool says so; then after twice as long,
and so on.
"""


class Silence:
    """How long nothing has been heard, of each actor at work and, while none is, of the pool.

    Args:
        now: seconds of the pool's clock, here and below.
    """

    def __init__(self, now: float) -> None:
        self._heard = now
        self._patience_s = PATIENCE_S

    def heard(self, now: float) -> None:
        """Something happened to the pool."""
        self._heard = now

    def line(
        self, now: float, since: Mapping[int, float], ledger: Ledger[Any]
    ) -> tuple[int | None, str] | None:
        """The actor that has been silent for longest, and a line on it; None if it is too early.

        Args:
            now: seconds.
            since: when each actor was last heard of, or given work when it had none.
            ledger: says which of them are at work.
        """
        if ledger.complete:  # nothing to hear of
            self._heard = now
        at_work = [actor for actor in since if ledger.held_by(actor)]
        actor = min(at_work, key=since.__getitem__, default=None)
        silent = now - (self._heard if actor is None else since[actor])
        if silent < PATIENCE_S:
            self._patience_s = PATIENCE_S
        if silent < self._patience_s:
            return None
        self._patience_s *= 2
        if actor is None:
            return None, f"no news for {silent:.0f} s: no actor is at work yet"
        return actor, (
            f"no news from actor {actor} for {silent:.0f} s ({ledger.running(actor)}): it is "
            "long, or the cluster is busy, or the actor hangs"
        )
