"""Reading samples from shards in any order: the shard's index and a memory map.

Legend: B batch, C channels, H W pixels.
"""

from __future__ import annotations

import hashlib
import io
import mmap
import struct
import threading
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from fleetstep.data import npy
from fleetstep.data.manifest import Manifest, ShardEntry
from fleetstep.data.tar_index import BLOCK_BYTES, UNLABELLED, TarIndex, key_at
from fleetstep.errors import DataError

UInt8 = npt.NDArray[np.uint8]
Int64 = npt.NDArray[np.int64]

_REMEDY = "run `fleetstep data verify` to list all damage, then pack or copy the dataset again"
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_MODES = {1: "L", 3: "RGB"}


def encode(image_HWC: UInt8, encoding: str) -> bytes:
    """An image as the bytes of an `.npy` or a `.png` file."""
    if encoding == "npy":
        return npy.write(image_HWC)
    file = io.BytesIO()
    Image.fromarray(image_HWC[:, :, 0] if image_HWC.shape[2] == 1 else image_HWC).save(file, "PNG")
    return file.getvalue()


def decode(data: bytes, encoding: str, shape_HWC: tuple[int, int, int]) -> UInt8:
    """The image [H, W, C] in the bytes of an `.npy` or a `.png` file.

    Raises:
        ValueError: if the bytes do not decode, or give another shape or type; never an image of
            the wrong size.
    """
    if encoding == "png":
        return _decode_png(data, shape_HWC)
    image = npy.read(data, "|u1").astype(np.uint8, copy=False)
    if image.shape != shape_HWC:
        raise ValueError(f"it must be of shape {shape_HWC}, got {image.shape}")
    return image


def _decode_png(data: bytes, shape_HWC: tuple[int, int, int]) -> UInt8:
    height, width, channels = shape_HWC
    # Read before Pillow does: a few bytes may claim an image of gigabytes.
    if data[:8] != _PNG_SIGNATURE or len(data) < 24:
        raise ValueError("it is not a PNG image")
    seen = struct.unpack(">II", data[16:24])
    if seen != (width, height):
        raise ValueError(f"it must be {width}x{height} pixels, got {seen[0]}x{seen[1]}")
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            mode, pixels = image.mode, np.asarray(image)
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        struct.error,
        zlib.error,
        IndexError,
        KeyError,
    ) as error:
        raise ValueError(f"it is not a readable PNG image ({error})") from None
    if mode != _PNG_MODES[channels]:
        raise ValueError(f"it must be a PNG of mode {_PNG_MODES[channels]}, got {mode}")
    return pixels.reshape(height, width, -1)


class _OpenShard:
    """A mapped tar and its index, checked for size when opened."""

    def __init__(self, folder: Path, entry: ShardEntry) -> None:
        self.entry = entry
        index = _index_of(folder, entry)
        self.rows: list[list[int]] = index.rows.tolist()
        self.labels: Int64 = index.rows[:, 2]
        path = folder / entry.file
        try:
            with path.open("rb") as file:
                found = file.seek(0, io.SEEK_END)
                if found != entry.bytes:
                    raise DataError(
                        f"shard {entry.file} must be {entry.bytes:,} bytes as its manifest says, "
                        f"got {found:,} (in {folder})",
                        _REMEDY,
                    )
                self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise DataError(
                f"shard {path} cannot be read: {error.strerror or error}", _REMEDY
            ) from None

    def close(self) -> None:
        self.map.close()


def _index_of(folder: Path, entry: ShardEntry) -> TarIndex:
    """The shard's index, whose hash and bounds are right.

    Raises:
        DataError: if it is missing, changed, or does not fit the shard.
    """
    path = folder / entry.index_file
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"the index {path} cannot be read: {error.strerror or error}", _REMEDY
        ) from None
    if hashlib.sha256(data).hexdigest() != entry.index_sha256:
        raise DataError(f"the index {path} does not have the sha256 in the manifest", _REMEDY)
    index = TarIndex.from_bytes(data, entry.file)
    offset, size = index.rows[:, 0], index.rows[:, 1]
    if (
        len(index) != entry.samples
        or (offset < BLOCK_BYTES).any()
        or (size < 0).any()
        or (offset + size > entry.bytes).any()
    ):
        raise DataError(
            f"the index {path} does not fit its shard of {entry.samples} samples",
            _REMEDY,
        )
    return index


class ShardReader:
    """Samples of one split by dataset id, from memory-mapped shards.

    Shards are opened at their first sample and at most `max_open` are kept open, the last ones
    used. Calls from several threads are served one after the other.

    Args:
        folder: dataset folder.
        manifest: its manifest.
        split: which split's ids.
        max_open: shards mapped at a time. A window of the order that spans more shards than this
            is still read, but opens shards again and again (about 0.2 ms each).
    """

    def __init__(self, folder: Path, manifest: Manifest, split: str, max_open: int = 64) -> None:
        self._folder = folder
        self._entries: Sequence[ShardEntry] = manifest.splits[split]
        self._classes = manifest.classes
        self._encoding = manifest.encoding
        channels, height, width = manifest.shape
        self._shape_HWC = (height, width, channels)
        self._header = npy.header_of("|u1", self._shape_HWC)
        self._ends = np.cumsum([entry.samples for entry in self._entries], dtype=np.int64)
        self._max_open = max_open
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, ids_B: Int64) -> tuple[UInt8, Int64]:
        """Images uint8 [B, C, H, W] and labels int64 [B] (-1 if unlabelled) of dataset ids [B].

        Raises:
            IndexError: if an id is not in the split.
            DataError: naming shard and key, if a shard or sample is damaged.
        """
        if ids_B.size and not 0 <= ids_B.min() <= ids_B.max() < len(self):
            raise IndexError(
                f"ids must be in [0, {len(self)}), got {ids_B.min()} .. {ids_B.max()}"
            )
        shard_B = np.searchsorted(self._ends, ids_B, side="right")
        samples: list[bytes] = [b""] * len(ids_B)
        labels_B = np.empty(len(ids_B), np.int64)
        with self._lock:
            for s in np.unique(shard_B).tolist():
                shard = self._shard(s)
                where = np.flatnonzero(shard_B == s)
                rows = ids_B[where] - (self._ends[s] - shard.entry.samples)
                labels_B[where] = shard.labels[rows]
                for place, row in zip(where.tolist(), rows.tolist(), strict=True):
                    offset, size, _ = shard.rows[row]
                    samples[place] = shard.map[offset : offset + size]
            self._check_labels(labels_B, ids_B)
            images_BHWC = self._decode(samples, ids_B)
        return np.ascontiguousarray(images_BHWC.transpose(0, 3, 1, 2)), labels_B

    def close(self) -> None:
        """Unmap every shard; a later read maps them again."""
        with self._lock:
            while self._open:
                self._open.popitem()[1].close()

    def _shard(self, s: int) -> _OpenShard:
        shard = self._open.get(s)
        if shard is None:
            shard = self._open[s] = _OpenShard(self._folder, self._entries[s])
            if len(self._open) > self._max_open:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(s)
        return shard

    def _decode(self, samples: list[bytes], ids_B: Int64) -> UInt8:
        if self._encoding == "npy" and (images := self._same_header(samples)) is not None:
            return images
        images_BHWC = np.empty((len(samples), *self._shape_HWC), np.uint8)
        for place, data in enumerate(samples):
            try:
                images_BHWC[place] = decode(data, self._encoding, self._shape_HWC)
            except ValueError as error:
                raise self._bad(int(ids_B[place]), f"cannot be decoded: {error}") from None
        return images_BHWC

    def _same_header(self, samples: list[bytes]) -> UInt8 | None:
        """The whole batch at once if all samples have the header numpy writes, else None.

        Comparing bytes is what makes this fast and safe: nothing is parsed, nothing is trusted.
        """
        height, width, channels = self._shape_HWC
        length = len(self._header) + height * width * channels
        if set(map(len, samples)) != {length}:
            return None
        raw = np.frombuffer(b"".join(samples), np.uint8).reshape(len(samples), length)
        if (raw[:, : len(self._header)] != np.frombuffer(self._header, np.uint8)).any():
            return None
        return raw[:, len(self._header) :].reshape(-1, *self._shape_HWC)

    def _check_labels(self, labels_B: Int64, ids_B: Int64) -> None:
        wrong = (
            (labels_B != UNLABELLED)
            if self._classes == 0
            else (labels_B < 0) | (labels_B >= self._classes)
        )
        if wrong.any():
            place = int(np.argmax(wrong))
            rule = (
                f"must have a label below {self._classes}"
                if self._classes
                else "must have no label"
            )
            raise self._bad(int(ids_B[place]), f"{rule}, got {labels_B[place]}")

    def _bad(self, sample_id: int, what: str) -> DataError:
        s = int(np.searchsorted(self._ends, sample_id, side="right"))
        shard = self._shard(s)
        row = sample_id - int(self._ends[s] - shard.entry.samples)
        key = key_at(memoryview(shard.map), shard.rows[row][0])
        return DataError(f"shard {shard.entry.file}, sample {key} {what}", _REMEDY)
