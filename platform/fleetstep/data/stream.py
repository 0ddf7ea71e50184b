"""The stream of a dataset: batches by position, in an order that nothing but the seed decides.

The front of reading; its parts are `order` (which sample), `shards` (its bytes), `prefetch` (ahead
of time) and `verify` (beforehand). webdataset packs the shards but is not needed to read them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fleetstep.data import flips
from fleetstep.data.batch import Batch
from fleetstep.data.manifest import ShardEntry, load_manifest
from fleetstep.data.order import Order
from fleetstep.data.prefetch import Prefetched, prefetched
from fleetstep.data.shards import ShardReader
from fleetstep.data.spec import DataSpec
from fleetstep.data.verify import VerifyReport, verify
from fleetstep.errors import DataError

__all__ = [
    "Batch",
    "Order",
    "Prefetched",
    "ShardReader",
    "Stream",
    "VerifyReport",
    "prefetched",
    "verify",
]


class Stream:
    """An endless stream of training batches, and the dataset's splits as they lie.

    Any process that builds the same stream gets the same batch at the same position, so workers
    take contiguous slices of the global batch and a run resumes at any position at the cost of one
    window.

    Args:
        data: which dataset, split, window and flips.
        seed: of the run.

    Attributes:
        manifest: the dataset's.
        order: which dataset id stands at which position.
        flip: whether half of the images are mirrored.

    Raises:
        DataError: if the dataset, the split or a mirror image is not to be had.
    """

    def __init__(self, data: DataSpec, *, seed: int) -> None:
        self._folder = Path(data.path)
        self._data = data
        self._seed = seed
        self.manifest = load_manifest(self._folder)
        self._readers: dict[str, ShardReader] = {}
        sizes = [shard.samples for shard in self._entries(data.split)]
        self.order = Order(sizes, seed, data.window)
        self.flip = data.mirrors(self.manifest.flip_allowed)
        if self.flip and not self.manifest.flip_allowed:
            raise DataError(
                f"data.flip is true, but the manifest of {self.manifest.name} says that mirrored "
                "images are not valid samples",
                "use flip: null to follow the manifest, or pack the dataset with --flip",
            )

    @property
    def size(self) -> int:
        """Samples of the training split: the length of an epoch."""
        return self.order.size

    @property
    def fingerprint(self) -> str:
        """Of the dataset; a run resumes only on the same one."""
        return self.manifest.fingerprint

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of an image."""
        return self.manifest.shape

    @property
    def classes(self) -> int:
        """Number of classes, 0 if unlabelled."""
        return self.manifest.classes

    def batch(self, first: int, count: int) -> Batch:
        """The training batch at stream positions first .. first+count-1, across ends of epochs.

        Raises:
            DataError: naming shard and key, if a sample is damaged.
        """
        images, labels = self._reader(self._data.split).read(self.order.ids(first, count))
        if self.flip:
            images = flips.flipped(images, flips.flip_mask(self._seed, first, count))
        return Batch(images, labels, first)

    def heldout(self) -> Batch:
        """The whole held-out split, in manifest order, never mirrored."""
        return self.split(self._data.heldout)

    def split(self, name: str, first: int = 0, count: int | None = None) -> Batch:
        """Samples first .. first+count-1 of a split (all without `count`), in manifest order.

        Raises:
            DataError: if there is no such split, or if a sample is damaged.
        """
        reader = self._reader(name)
        stop = len(reader) if count is None else min(first + count, len(reader))
        images, labels = reader.read(np.arange(first, stop, dtype=np.int64))
        return Batch(images, labels, first)

    def close(self) -> None:
        """Unmap the shards."""
        for reader in self._readers.values():
            reader.close()

    def _entries(self, split: str) -> tuple[ShardEntry, ...]:
        if not self.manifest.splits.get(split):
            raise DataError(
                f"{self._folder} has no split {split!r}",
                f"choose one of: {', '.join(self.manifest.splits)}",
            )
        return self.manifest.splits[split]

    def _reader(self, split: str) -> ShardReader:
        reader = self._readers.get(split)
        if reader is None:
            self._entries(split)
            # setdefault: two threads may ask for the first time at once and must share one reader.
            reader = self._readers.setdefault(
                split, ShardReader(self._folder, self.manifest, split)
            )
        return reader
