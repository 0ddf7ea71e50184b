"""How the evaluation of a run's snapshots ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fleetstep.errors import FleetstepError, PoolError


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """The end of an evaluation beside a training that used up its budget.

    Attributes:
        scored: images seen of the snapshots with scores, those of earlier starts included.
        skipped: of those that can have none, and why: trying again would change nothing.
        missing: of those that could, and have none.
        error: why there are missing ones.
    """

    scored: tuple[int, ...]
    skipped: Mapping[int, str]
    missing: tuple[int, ...]
    error: FleetstepError | None

    def text(self) -> str:
        """A closing line."""
        lost = "".join(f"; {images:,}: {reason}" for images, reason in self.skipped.items())
        return f"scored {len(self.scored)} snapshot(s), at {_listed(self.scored)} images" + (
            f"; {len(self.skipped)} cannot be scored{lost}" if lost else ""
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return {
            "scored": list(self.scored),
            "skipped": {str(images): reason for images, reason in self.skipped.items()},
        }

    def check(self) -> None:
        """Refuse to pass for complete.

        Raises:
            PoolError: scores are missing. Training itself is finished and recorded so.
        """
        if not self.missing and self.error is None:
            return
        why, first = "they were not done", ""
        if self.error is not None:
            why = self.error.message
            first = f"{self.error.remedy}; then " if self.error.remedy else ""
        raise PoolError(
            f"training is finished and kept, but {len(self.missing)} snapshot(s) have no scores "
            f"yet, at {_listed(self.missing)} images: {why}",
            f"{first}run the same command again: it trains nothing anew and scores what is "
            "missing",
        )


def _listed(points: tuple[int, ...]) -> str:
    return ", ".join(f"{images_seen:,}" for images_seen in points) or "no"
