"""Checking a dataset before a run depends on it: shards, indexes, samples against the manifest."""

from __future__ import annotations

import hashlib
import mmap
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fleetstep.data.content import ContentHash
from fleetstep.data.manifest import Manifest, ShardEntry, load_manifest
from fleetstep.data.shards import decode
from fleetstep.data.tar_index import UNLABELLED, TarIndex, key_at
from fleetstep.errors import DataError


class Problem(NamedTuple):
    """What is wrong with a sample (or, with key "", with a whole shard)."""

    shard: str
    key: str
    reason: str

    def __str__(self) -> str:
        return (
            f"{self.shard}, sample {self.key}: {self.reason}"
            if self.key
            else f"{self.shard}: {self.reason}"
        )


@dataclass(frozen=True)
class VerifyReport:
    """The outcome of `verify`.

    Attributes:
        shards: shards in the manifest.
        samples: samples that were found, decoded, and have a valid label.
        problems: all that was found wrong, in manifest order.
    """

    shards: int
    samples: int
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify(path: Path, progress: Callable[[int, int], None] | None = None) -> VerifyReport:
    """Check files, sizes, hashes, indexes, class counts, and that every sample decodes.

    Goes on after a problem and collects all of them.

    Args:
        path: dataset folder.
        progress: called with (shards done, shards) after each shard.

    Raises:
        DataError: if there is no valid manifest to check against.
    """
    folder = Path(path)
    manifest = load_manifest(folder)
    problems: list[Problem] = []
    samples = done = 0
    total = sum(map(len, manifest.splits.values()))
    for split, entries in manifest.splits.items():
        counts: Counter[int] = Counter()
        before = len(problems)
        for entry in entries:
            check = _ShardCheck(folder, manifest, entry)
            check.run()
            problems += check.problems
            samples += check.good
            counts += check.counts
            done += 1
            if progress is not None:
                progress(done, total)
        histogram = tuple(counts[label] for label in range(manifest.classes))
        if len(problems) == before and histogram != manifest.class_histogram[split]:
            stated = manifest.class_histogram[split]
            reason = f"class_histogram must be {list(histogram)}, got {list(stated)}"
            problems.append(Problem(f"manifest, split {split}", "", reason))
    return VerifyReport(total, samples, tuple(problems))


class _ShardCheck:
    """The checks of one shard; what can still be checked after a problem is."""

    def __init__(self, folder: Path, manifest: Manifest, entry: ShardEntry) -> None:
        self._folder = folder
        self._manifest = manifest
        self._entry = entry
        self.problems: list[Problem] = []
        self.counts: Counter[int] = Counter()
        self.good = 0

    def run(self) -> None:
        entry = self._entry
        path = self._folder / entry.file
        try:
            found = path.stat().st_size
        except OSError as error:
            self._add(f"cannot be read: {error.strerror}")
            return
        if found != entry.bytes:
            self._add(f"must be {entry.bytes:,} bytes, got {found:,}")
        if found == 0:
            return
        try:
            with (
                path.open("rb") as file,
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as tar,
                memoryview(tar) as view,
            ):
                if found == entry.bytes and hashlib.sha256(view).hexdigest() != entry.sha256:
                    self._add(
                        "its sha256 is not the one in the manifest: the file was changed or "
                        "damaged"
                    )
                self._check_contents(view)
        except OSError as error:
            self._add(f"cannot be read: {error.strerror}")

    def _check_contents(self, tar: memoryview) -> None:
        entry = self._entry
        stored = self._stored_index()
        try:
            index = TarIndex.scan(tar, self._manifest.encoding, "the archive")
        except DataError as error:
            self._add(error.message)
            return
        if len(index) != entry.samples:
            self._add(f"must hold {entry.samples} samples, got {len(index)}")
        if stored is not None and not np.array_equal(stored.rows, index.rows):
            self._add("its index does not match the archive")
        content = ContentHash()
        channels, height, width = self._manifest.shape
        for offset, size, label in index.rows.tolist():
            try:
                image = decode(
                    bytes(tar[offset : offset + size]),
                    self._manifest.encoding,
                    (height, width, channels),
                )
                self._check_label(label)
            except ValueError as error:
                self._add(str(error), key_at(tar, offset))
                continue
            content.add(image, label)
            self.counts[label] += 1
            self.good += 1
        if not self.problems and content.hexdigest() != entry.content_sha256:
            self._add("its pixels or labels are not those of the manifest's content_sha256")

    def _stored_index(self) -> TarIndex | None:
        entry = self._entry
        try:
            data = (self._folder / entry.index_file).read_bytes()
            if hashlib.sha256(data).hexdigest() != entry.index_sha256:
                self._add(
                    f"the sha256 of its index {entry.index_file} is not the one in the manifest"
                )
            return TarIndex.from_bytes(data, entry.file)
        except OSError as error:
            self._add(f"its index {entry.index_file} cannot be read: {error.strerror}")
        except DataError as error:
            self._add(error.message)
        return None

    def _check_label(self, label: int) -> None:
        classes = self._manifest.classes
        if classes == 0 and label != UNLABELLED:
            raise ValueError(f"it has label {label}, but the dataset is unlabelled")
        if classes and not 0 <= label < classes:
            raise ValueError(
                f"its label must be in [0, {classes}), "
                f"got {'none' if label == UNLABELLED else label}"
            )

    def _add(self, reason: str, key: str = "") -> None:
        self.problems.append(Problem(self._entry.file, key, reason))
