"""Where each sample lies in a shard: the index, and the walk over headers that builds it.

Python's tarfile spends about 37 µs a member on its headers, which is what makes plain WebDataset
slow; we walk them once, when the shard is packed, and afterwards read any sample by its offset.
The walk is also stricter than tarfile, which takes a damaged header in the middle of an archive
for its end and stops without a word.

Index format 1: int64 [n, 3], one row a sample: offset of the image's bytes in the tar, their
number, label (-1 without).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fleetstep.data import npy
from fleetstep.errors import DataError

BLOCK_BYTES = 512
UNLABELLED = -1

_ZEROS = bytes(BLOCK_BYTES)
_REMEDY = "run `fleetstep data verify` to list all damage, then pack or copy the dataset again"


@dataclass(frozen=True)
class TarIndex:
    """Rows int64 [n, 3] = (offset, bytes, label), in the order of the samples."""

    rows: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def to_bytes(self) -> bytes:
        """The index as the bytes of an `.npy` file."""
        return npy.write(self.rows)

    @classmethod
    def from_bytes(cls, data: bytes, shard: str) -> TarIndex:
        """Read an index back.

        Raises:
            DataError: if the bytes are not an `.npy` of int64 [n, 3].
        """
        try:
            rows = npy.read(data, "<i8")
        except ValueError as error:
            raise DataError(f"the index of {shard} is damaged: {error}", _REMEDY) from None
        if rows.ndim != 2 or rows.shape[1] != 3:
            raise DataError(
                f"the index of {shard} must be int64 [n, 3], got {rows.shape}", _REMEDY
            )
        return cls(rows.astype(np.int64, copy=False))

    @classmethod
    def scan(cls, tar: memoryview, image_suffix: str, shard: str) -> TarIndex:
        """Build the index of a whole tar in memory (or mapped) by walking its headers.

        Args:
            tar: the archive's bytes.
            image_suffix: suffix of the image members, "npy" or "png"; labels are `.cls`.
            shard: its name, for messages.

        Raises:
            DataError: if a header is damaged, the archive is truncated, a sample lacks a member or
                has one twice.
        """
        images: dict[str, tuple[int, int]] = {}
        labels: dict[str, int] = {}
        for name, offset, size in members(tar, shard):
            key, _, suffix = name.rpartition(".")
            if key in (images if suffix == image_suffix else labels):
                raise DataError(f"{shard} holds {name} twice", _REMEDY)
            if suffix == image_suffix:
                images[key] = (offset, size)
            elif suffix == "cls":
                labels[key] = _label(bytes(tar[offset : offset + size]), shard, key)
            else:
                raise DataError(
                    f"{shard}: samples are .{image_suffix} and .cls members, got {name}", _REMEDY
                )
        if labels and labels.keys() != images.keys():
            key = min(labels.keys() ^ images.keys())
            missing = "label" if key in images else "image"
            raise DataError(f"{shard}: sample {key} has no {missing}", _REMEDY)
        rows = [(*place, labels.get(key, UNLABELLED)) for key, place in images.items()]
        return cls(np.array(rows, np.int64).reshape(-1, 3))


def _label(text: bytes, shard: str, key: str) -> int:
    if not text.isdigit() or len(text) > 9:
        raise DataError(
            f"{shard}: label of sample {key} must be a decimal number, got {text[:20]!r}", _REMEDY
        )
    return int(text)


def members(tar: memoryview, shard: str) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of each member of a ustar archive.

    Raises:
        DataError: if a header is damaged, a member reaches beyond the end, or the end marker is
            missing or not the end.
    """
    offset = 0
    while True:
        header = bytes(tar[offset : offset + BLOCK_BYTES])
        if len(header) < BLOCK_BYTES:
            raise DataError(
                f"{shard} has no end-of-archive marker: it is truncated at {len(tar)} bytes",
                _REMEDY,
            )
        if header == _ZEROS:
            break
        name, size = _parse(header, shard, offset)
        start = offset + BLOCK_BYTES
        if start + size > len(tar):
            raise DataError(
                f"{shard} is truncated in {name}, at {len(tar)} of at least {start + size} bytes",
                _REMEDY,
            )
        yield name, start, size
        offset = start + (size + BLOCK_BYTES - 1) // BLOCK_BYTES * BLOCK_BYTES
    if any(tar[offset:]):
        raise DataError(
            f"{shard} goes on after its end-of-archive marker at byte {offset}: "
            "a header was overwritten",
            _REMEDY,
        )


def key_at(tar: memoryview, image_offset: int) -> str:
    """Key of the sample whose image begins at the offset, from its header; "?" if damaged."""
    start = image_offset - BLOCK_BYTES
    if start < 0 or image_offset > len(tar):
        return "?"
    name = bytes(tar[start : start + 100]).rstrip(b"\0").decode("ascii", "replace")
    return name.rpartition(".")[0] or "?"


def _parse(header: bytes, shard: str, offset: int) -> tuple[str, int]:
    """Name and size from a ustar header (POSIX.1-1988), whose checksum is verified."""
    try:
        stored = int(header[148:156].rstrip(b" \0"), 8)
        size = int(header[124:136].rstrip(b" \0"), 8)
        name = header[:100].rstrip(b"\0").decode("ascii")
    except ValueError:
        raise DataError(f"{shard} has a damaged header at byte {offset}", _REMEDY) from None
    # The checksum field itself counts as eight spaces.
    if sum(header) - sum(header[148:156]) + 8 * 32 != stored or size < 0:
        raise DataError(
            f"{shard} has a damaged header at byte {offset}: its checksum does not match", _REMEDY
        )
    if header[156:157] not in (b"0", b"\0") or any(header[345:500]):
        raise DataError(
            f"{shard}: only plain members with names up to 100 characters are read, got {name} "
            f"of type {header[156:157]!r}",
            "pack the dataset with `fleetstep data pack`",
        )
    return name, size
