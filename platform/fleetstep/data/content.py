"""Hashes of what images are, as opposed to how they are stored."""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import numpy.typing as npt


class ContentHash:
    """sha256 over samples in order.

    Of each: pixels uint8 [H, W, C] row-major, then the label as little-endian int64.
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, image_HWC: npt.NDArray[np.uint8], label: int) -> None:
        """Count one more sample."""
        self._hash.update(image_HWC.tobytes())
        self._hash.update(struct.pack("<q", label))

    def hexdigest(self) -> str:
        """The hash of the samples so far."""
        return self._hash.hexdigest()
