"""The lowest of several FIDs, under a name of its own. Plain Python."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from fleetstep.errors import DataError


@dataclass(frozen=True)
class Minimum:
    """Plain FIDs of several blocks of seeds, of which the lowest is reported (Karras et al. 2022).

    The lowest of three lies 0.85 standard deviations of such a value below their mean, so it must
    not be compared with a single value or a mean: the number of blocks is part of the name.

    Args:
        metric: for example "fid50k.tf.min3".
        values: the plain distance of each seed block, without the jackknife's correction.
    """

    metric: str
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.values) < 2 or not self.metric.endswith(f".min{len(self.values)}"):
            raise DataError(
                f"the minimum of two or more values is named by their number, but {self.metric!r} "
                f"holds {len(self.values)}",
                "give one value for every seed block and end the name in .min and their number",
            )
        if not all(math.isfinite(value) for value in self.values):
            raise DataError(f"a score is finite, but {self.metric} holds {self.values}")

    @property
    def minimum(self) -> float:
        """What is reported."""
        return min(self.values)

    def as_dict(self) -> dict[str, Any]:
        """JSON values: the name, every seed block's value, and the lowest."""
        return {"metric": self.metric, "values": list(self.values), "minimum": self.minimum}
