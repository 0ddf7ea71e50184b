"""Packing images into WebDataset shards with indexes and a manifest (the door to webdataset).

Samples are ordered by a hash of their content, so that a shard is a random mixture of the dataset
whatever the order of its files, and the first ones in that order are held out. The same input
gives the same bytes: nothing in a shard depends on time, user, machine or path (PNG files on the
version of Pillow's compressor).
"""

from __future__ import annotations

import hashlib
import mmap
import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from webdataset.writer import TarWriter

from fleetstep.data import catalogue, sources
from fleetstep.data.content import ContentHash
from fleetstep.data.image_files import Crop, image_files
from fleetstep.data.manifest import Manifest, ShardEntry, make_manifest, save_manifest
from fleetstep.data.shards import encode
from fleetstep.data.sources import ImageSource
from fleetstep.data.tar_index import UNLABELLED, TarIndex
from fleetstep.durable import sync
from fleetstep.errors import DataError, UsageError

Progress = Callable[[int, int], None]
Encoding = Literal["npy", "png"]

TRAIN, HELDOUT = "train", "heldout"


@dataclass(frozen=True)
class _Request:
    """What every kind of source is asked for; the arguments of `pack_images`."""

    name: str
    flip: bool | None
    heldout: int | float
    shard_size: int
    encoding: Encoding
    progress: Progress | None

    def __post_init__(self) -> None:
        if self.shard_size < 1:
            raise UsageError(
                f"`shard_size >= 1` must hold, got {self.shard_size}", "the default is 1000"
            )


def pack_digits(
    out: Path,
    *,
    heldout: int | float = 297,
    shard_size: int = 500,
    encoding: Encoding = "npy",
    progress: Progress | None = None,
) -> Manifest:
    """Pack scikit-learn's digits: 1,500 to train on and 297 held out unless asked otherwise.

    See `pack_images` for the other arguments and errors.
    """
    request = _Request(catalogue.DIGITS.name, None, heldout, shard_size, encoding, progress)
    _check_free(out)
    return _pack({TRAIN: sources.digits()}, out, request)


def pack_images(
    source: Path,
    out: Path,
    *,
    size: int,
    crop: Crop = "center",
    channels: Literal[1, 3] = 3,
    heldout: int | float = 0.05,
    shard_size: int = 1000,
    encoding: Encoding = "npy",
    flip: bool | None = None,
    name: str | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Pack a folder or zip of image files in ImageFolder layout, as `image_files` describes.

    Args:
        source: folder or zip.
        out: dataset folder to make; must not exist.
        size: edge length of the packed squares in pixels.
        crop: "center" cuts the largest square, "stretch" changes the aspect ratio.
        channels: 3 for colour, 1 for grey.
        heldout: images held out, chosen by content hash: a share below 1 (at least one image) or a
            count.
        shard_size: most samples in a shard; they are spread evenly.
        encoding: "npy" reads about ten times faster, "png" takes less space.
        flip: whether a mirrored image is a valid sample; None asks the catalogue, which says no to
            unknown datasets.
        name: of the dataset; the source's name without its suffix if not given.
        progress: called with (samples done, samples).

    Returns:
        The manifest. `out` exists whole or, after an error, not at all.

    Raises:
        UsageError: if `out` exists or an argument cannot work.
        DataError: if the source is missing, damaged, unsafe, or laid out in another way.
    """
    if size < 1:
        raise UsageError(f"`size >= 1` must hold, got {size=}", "give the edge length in pixels")
    request = _Request(name or source.stem, flip, heldout, shard_size, encoding, progress)
    _check_free(out)
    with image_files(source, size, crop, channels) as found:
        return _pack({TRAIN: found}, out, request)


def pack_npz(
    source: Path,
    out: Path,
    *,
    heldout_source: Path | None = None,
    heldout: int | float = 0.05,
    shard_size: int = 1000,
    encoding: Encoding = "npy",
    flip: bool | None = None,
    name: str | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Pack the arrays `images` and `labels` (or `x` and `y`) of an npz file; see `sources.npz`.

    `heldout_source` is another such file that is held out whole, in place of a share of the first.
    See `pack_images` for the other arguments and errors.
    """
    request = _Request(name or source.stem, flip, heldout, shard_size, encoding, progress)
    _check_free(out)
    found = {TRAIN: sources.npz(source)}
    if heldout_source is not None:
        found[HELDOUT] = sources.npz(heldout_source)
    return _pack(found, out, request)


def pack_idx(
    images: Path,
    labels: Path | None,
    out: Path,
    *,
    heldout_images: Path | None = None,
    heldout_labels: Path | None = None,
    heldout: int | float = 0.05,
    shard_size: int = 1000,
    encoding: Encoding = "npy",
    flip: bool | None = None,
    name: str | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Pack the MNIST family's idx(.gz) files; see `sources.idx`.

    `heldout_images` and `heldout_labels` (MNIST's t10k files) are held out whole, in place of a
    share of the others. See `pack_images` for the other arguments and errors.
    """
    if heldout_labels is not None and heldout_images is None:
        raise UsageError(
            f"held-out labels belong to held-out images, got {heldout_labels} without images",
            "give the file of the held-out images too",
        )
    request = _Request(name or out.name, flip, heldout, shard_size, encoding, progress)
    _check_free(out)
    found = {TRAIN: sources.idx(images, labels)}
    if heldout_images is not None:
        found[HELDOUT] = sources.idx(heldout_images, heldout_labels)
    return _pack(found, out, request)


def _check_free(out: Path) -> None:
    if out.exists() or out.is_symlink():
        raise UsageError(
            f"{out} exists already",
            "choose another folder, or remove it first; nothing is overwritten",
        )


def _pack(found: dict[str, ImageSource], out: Path, request: _Request) -> Manifest:
    """Write the dataset beside its place and move it there when it is whole."""
    plan = _plan(found, request.heldout)
    partial = out.parent / f".{out.name}.partial-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        manifest = _write(found, plan, partial, request)
        save_manifest(manifest, partial)
        sync(partial)
        partial.rename(out)
        sync(out.parent)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            raise DataError(
                f"{out} cannot be written: {reason}", "check space and permissions"
            ) from None
        raise
    return manifest


Plan = dict[str, list[tuple[ImageSource, int]]]


def _plan(found: dict[str, ImageSource], heldout: int | float) -> Plan:
    """The images of each split, in order of their content's hash (equal ones by their place)."""
    ranked = {split: _ranked(source) for split, source in found.items()}
    train = ranked[TRAIN]
    if HELDOUT in found:
        _check_alike(found[TRAIN], found[HELDOUT])
        return ranked
    share = isinstance(heldout, float)
    count = round(heldout * len(train)) if share else int(heldout)
    if share and heldout > 0:
        count = max(1, count)
    if heldout < 0 or (share and heldout >= 1) or count >= len(train):
        raise UsageError(
            f"the held-out part must leave images to train on, got {heldout} of {len(train)}",
            "give a share below 1, such as 0.05, or a count",
        )
    return {TRAIN: train[count:], HELDOUT: train[:count]} if count else ranked


def _ranked(source: ImageSource) -> list[tuple[ImageSource, int]]:
    order = sorted(zip(source.digests, range(len(source)), strict=True))
    return [(source, i) for _, i in order]


def _check_alike(train: ImageSource, heldout: ImageSource) -> None:
    facts = [(s.resolution, s.channels, bool(s.class_names)) for s in (train, heldout)]
    if facts[0] != facts[1]:
        raise DataError(
            "both files must agree in (resolution, channels, labelled), "
            f"got {facts[0]} and {facts[1]}",
            "give files of the same dataset",
        )


def _write(found: dict[str, ImageSource], plan: Plan, folder: Path, request: _Request) -> Manifest:
    class_names = max((source.class_names for source in found.values()), key=len)
    total, done = sum(map(len, plan.values())), 0
    splits: dict[str, tuple[ShardEntry, ...]] = {}
    histogram: dict[str, tuple[int, ...]] = {}
    for split, samples in plan.items():
        entries = []
        for number, (start, stop) in enumerate(pairwise(_cuts(len(samples), request.shard_size))):
            stem = f"{split}-{number:06d}"
            entries.append(
                _write_shard(folder, stem, samples[start:stop], start, request.encoding)
            )
            done += stop - start
            if request.progress is not None:
                request.progress(done, total)
        splits[split] = tuple(entries)
        counts = Counter(int(source.labels[i]) for source, i in samples)
        histogram[split] = tuple(counts[label] for label in range(len(class_names)))
    known = catalogue.KNOWN.get(request.name)
    return make_manifest(
        name=request.name,
        licence=known.licence if known else "",
        classes=len(class_names),
        class_names=class_names,
        channels=found[TRAIN].channels,
        resolution=found[TRAIN].resolution,
        flip_allowed=catalogue.flip_allowed(request.name, request.flip),
        encoding=request.encoding,
        splits=splits,
        class_histogram=histogram,
    )


def _cuts(samples: int, shard_size: int) -> list[int]:
    """Where shards begin and end: as few as can be, with sizes that differ by one at most."""
    shards = -(-samples // shard_size)
    return [samples * k // shards for k in range(shards + 1)]


def _write_shard(
    folder: Path,
    stem: str,
    samples: Sequence[tuple[ImageSource, int]],
    first: int,
    encoding: Encoding,
) -> ShardEntry:
    """Write samples first, first+1, ... of a split as one tar; index it by reading it back."""
    content = ContentHash()
    path, index_path = folder / f"{stem}.tar", folder / f"{stem}.index.npy"
    with (
        path.open("wb") as file,
        TarWriter(file, encoder=False, mtime=0, user="", group="") as tar,
    ):
        for place, (source, i) in enumerate(samples, first):
            image, label = source.image(i), int(source.labels[i])
            sample = {"__key__": f"{place:09d}", encoding: encode(image, encoding)}
            if label != UNLABELLED:
                sample["cls"] = str(label).encode()
            tar.write(sample)
            content.add(image, label)
    sync(path)
    index, sha256, size = _read_back(path, encoding)
    index_bytes = index.to_bytes()
    index_path.write_bytes(index_bytes)
    sync(index_path)
    return ShardEntry(
        file=path.name,
        samples=len(index),
        bytes=size,
        sha256=sha256,
        content_sha256=content.hexdigest(),
        index_file=index_path.name,
        index_sha256=hashlib.sha256(index_bytes).hexdigest(),
    )


def _read_back(path: Path, encoding: Encoding) -> tuple[TarIndex, str, int]:
    """Index, sha256 and size of a tar that was just written."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as tar:
        with memoryview(tar) as view:
            index = TarIndex.scan(view, encoding, path.name)
            return index, hashlib.sha256(view).hexdigest(), len(view)
