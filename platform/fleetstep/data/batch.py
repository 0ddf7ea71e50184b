"""What a stream gives: images, labels and the position they stand at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class Batch:
    """Consecutive samples of a stream.

    Attributes:
        images: uint8 [B, C, H, W], C-contiguous.
        labels: int64 [B]; -1 where the dataset is unlabelled.
        first: stream position of the first one (of a split read as a whole: its dataset id).
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    first: int

    def __len__(self) -> int:
        return len(self.labels)
