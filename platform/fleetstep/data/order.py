"""The order of samples: a pure function of shard sizes, seed, window and stream position.

Order format 1. Position p of the infinite stream over N samples is position i of epoch e, `e, i =
divmod(p, N)`. In each epoch

1. the S shards are permuted, by `rng.permutation(seed, "shard-order", e, S)`: this gives a
   sequence of all samples;
2. it is cut into windows of W = min(window, N) samples. The first cut lies at a random place,
   `shift < W`, so that the samples shuffled together differ from epoch to epoch (no shift if W =
   N: the one window is the epoch);
3. the j-th window is permuted, by `rng.permutation(seed, f"window-order|{e}", j, its size)`.

The i-th sample of an epoch needs its own window only, so reading may start anywhere at the same
cost.

How far a sample travels: fewer than W places from where the permuted shards put it; and those move
it anywhere in the epoch, whole shard by whole shard. Samples of one shard hence stay within
`samples of the shard + 2 W` positions of each other. `data pack` stores samples in the order of a
content hash, so a shard is already a random mixture of the dataset and neighbours have nothing in
common but the shard; W = N is a full shuffle.

Legend: S shards, N samples of an epoch, W window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fleetstep import rng

Int64 = npt.NDArray[np.int64]

# Windows kept: a batch may span two, and two readers of the same stream may be some way apart.
_KEPT = 4


@dataclass(frozen=True, eq=False)
class _Epoch:
    """What the windows of an epoch share: its permuted shards, where each ends, and the shift."""

    number: int
    turn_S: Int64
    ends_S: Int64
    shift: int


class Order:
    """Which dataset id stands at which stream position.

    Args:
        shard_sizes: samples of each shard, in dataset order; ids count through the shards.
        seed: of the run.
        window: samples that are shuffled together; 1 leaves only the shards permuted.

    Attributes:
        size: N, samples of an epoch.
        windows_made: windows permuted so far: what random access really costs.

    Raises:
        ValueError: if there is no sample, or if `window` is not positive.
    """

    def __init__(self, shard_sizes: Sequence[int], seed: int, window: int) -> None:
        sizes_S = np.asarray(shard_sizes, np.int64)
        if sizes_S.size == 0 or (sizes_S <= 0).any():
            raise ValueError(
                f"there must be shards and each must hold samples, got sizes {list(shard_sizes)}"
            )
        if window < 1:
            raise ValueError(f"`window >= 1` must hold, got {window=}")
        self._sizes_S = sizes_S
        self._base_S = np.cumsum(sizes_S) - sizes_S
        self._seed = seed
        self.size = int(sizes_S.sum())
        self._window = min(window, self.size)
        self.windows_made = 0
        # Replaced whole, never changed in place: a prefetch thread may be reading it.
        self._recent_epochs: tuple[_Epoch, ...] = ()
        self._recent_windows: tuple[tuple[tuple[int, int], Int64], ...] = ()

    def ids(self, first: int, count: int) -> Int64:
        """Dataset ids at stream positions first .. first+count-1, shape [count].

        Any split of a range into calls gives the same ids, and ranges run across the ends of
        epochs.

        Raises:
            ValueError: if `first` or `count` is negative.
        """
        if first < 0 or count < 0:
            raise ValueError(
                f"positions start at 0 and counts are not negative, got {first=}, {count=}"
            )
        pieces: list[Int64] = []
        position, end = first, first + count
        while position < end:
            number, i = divmod(position, self.size)
            epoch = self._epoch_facts(number)
            # Windows end at shift, shift + W, shift + 2 W, ...: the first one is short, or empty.
            window = (i - epoch.shift) // self._window + 1
            stop = min(epoch.shift + window * self._window, self.size)
            start = max(epoch.shift + (window - 1) * self._window, 0)
            ids = self._window_ids(epoch, window, start, stop)
            piece = ids[i - start : i - start + end - position]
            pieces.append(piece)
            position += len(piece)
        return np.concatenate(pieces) if pieces else np.empty(0, np.int64)

    def _epoch_facts(self, number: int) -> _Epoch:
        recent = self._recent_epochs
        for kept in recent:
            if kept.number == number:
                return kept
        turn_S = rng.permutation(self._seed, "shard-order", number, len(self._sizes_S))
        # No shift if the one window is the epoch: a cut would make two of it.
        word = rng.bits(self._seed, "window-shift", number, 1)[0]
        shift = 0 if self._window == self.size else int(word % np.uint64(self._window))
        epoch = _Epoch(number, turn_S, np.cumsum(self._sizes_S[turn_S]), shift)
        self._recent_epochs = (epoch, *recent[:1])
        return epoch

    def _window_ids(self, epoch: _Epoch, number: int, start: int, stop: int) -> Int64:
        recent = self._recent_windows
        for key, kept in recent:
            if key == (epoch.number, number):
                return kept
        purpose = f"window-order|{epoch.number}"
        places = start + rng.permutation(self._seed, purpose, number, stop - start)
        k = np.searchsorted(epoch.ends_S, places, side="right")
        shard = epoch.turn_S[k]
        ids: Int64 = self._base_S[shard] + places - (epoch.ends_S[k] - self._sizes_S[shard])
        self.windows_made += 1
        self._recent_windows = (((epoch.number, number), ids), *recent[: _KEPT - 1])
        return ids
