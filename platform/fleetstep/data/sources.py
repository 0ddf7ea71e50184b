"""Datasets in memory, as `data pack` takes them: digits, npz files, the MNIST family.

Legend: N images, C channels, H W pixels, K classes.
"""

from __future__ import annotations

import gzip
import hashlib
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from fleetstep.data import catalogue
from fleetstep.data.tar_index import UNLABELLED
from fleetstep.errors import DataError

UInt8 = npt.NDArray[np.uint8]
Int64 = npt.NDArray[np.int64]

_IDX_IMAGES, _IDX_LABELS = 0x00000803, 0x00000801


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSource:
    """Images to pack.

    Attributes:
        resolution: height and width in pixels.
        class_names: K names in label order; empty if unlabelled.
        labels: int64 [N], -1 if unlabelled.
        digests: hash of each image's content, which decides order and split.
        image: uint8 [H, W, C] of the i-th image.
    """

    resolution: int
    channels: Literal[1, 3]
    class_names: tuple[str, ...]
    labels: Int64
    digests: Sequence[bytes]
    image: Callable[[int], UInt8]

    def __len__(self) -> int:
        return len(self.labels)


def digest(content: bytes) -> bytes:
    """Hash of an image's content: blake2b, 16 bytes."""
    return hashlib.blake2b(content, digest_size=16).digest()


def from_arrays(
    images: npt.NDArray[np.generic],
    labels: npt.NDArray[np.generic] | None,
    where: str,
    class_names: tuple[str, ...] | None = None,
) -> ImageSource:
    """A source from arrays.

    Args:
        images: uint8 [N, H, H], [N, H, H, 1] or [N, H, H, 3].
        labels: integers [N] or [N, 1]; None if unlabelled.
        where: the file they came from, for messages.
        class_names: K names; without, classes are named "0" to the highest label.

    Raises:
        DataError: if shapes, types or labels are anything else.
    """
    images_NHWC = images[..., None] if images.ndim == 3 else images
    seen = f"got {images.dtype} of shape {images.shape}"
    if (
        images_NHWC.ndim == 4
        and images_NHWC.shape[1] in (1, 3)
        and images_NHWC.shape[3] not in (1, 3)
    ):
        raise DataError(
            f"{where}: channels must come last, {seen}", "transpose the images to [N, H, W, C]"
        )
    if (
        images_NHWC.ndim != 4
        or images_NHWC.shape[3] not in (1, 3)
        or images_NHWC.dtype != np.uint8
    ):
        raise DataError(
            f"{where}: images must be uint8 [N, H, W] or [N, H, W, 1 or 3], {seen}", "convert them"
        )
    count, height, width, channels = images_NHWC.shape
    if count == 0 or height == 0 or height != width:
        raise DataError(
            f"{where}: there must be square images, {seen}", "crop or pad them to squares"
        )
    labels_N = _checked_labels(labels, count, where)
    classes = int(labels_N.max()) + 1
    if class_names is None:
        class_names = tuple(str(label) for label in range(classes))
    elif classes > len(class_names):
        raise DataError(
            f"{where}: label {classes - 1} has no name among {len(class_names)} classes", "name it"
        )
    pixels = images_NHWC.astype(np.uint8, copy=False)
    return ImageSource(
        resolution=height,
        channels=channels,
        class_names=class_names,
        labels=labels_N,
        digests=[digest(image.tobytes()) for image in pixels],
        image=lambda i: pixels[i],
    )


def _checked_labels(labels: npt.NDArray[np.generic] | None, count: int, where: str) -> Int64:
    if labels is None:
        return np.full(count, UNLABELLED, np.int64)
    flat = labels.reshape(-1) if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if flat.shape != (count,) or not np.issubdtype(flat.dtype, np.integer):
        raise DataError(
            f"{where}: labels must be {count} integers, one an image, "
            f"got {labels.dtype} of shape {labels.shape}",
            "give class numbers, not one-hot rows",
        )
    labels_N = flat.astype(np.int64)
    if labels_N.min() < 0 or labels_N.max() > 99_999:
        raise DataError(
            f"{where}: labels must be class numbers from 0 on, "
            f"got {labels_N.min()} to {labels_N.max()}",
            "number the classes from 0",
        )
    return labels_N


def digits() -> ImageSource:
    """scikit-learn's 1,797 digits, 8x8 grey: values 0..16 become round(v * 255 / 16)."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    return from_arrays(images, bunch.target, "scikit-learn's digits", catalogue.DIGITS.class_names)


def npz(path: Path) -> ImageSource:
    """Arrays `images` and `labels`, or `x` and `y`, of an npz file; the labels may be absent.

    Raises:
        DataError: if the file cannot be read without pickle, or holds anything else.
    """
    try:
        # Opened here: numpy leaks the file that it opens itself if it is not a zip.
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise DataError(
                    f"{path} is a single array", "save it with np.savez(images=..., labels=...)"
                )
            names = ("images", "labels") if "images" in file else ("x", "y")
            if names[0] not in file:
                raise DataError(
                    f"{path} must hold `images` and `labels`, or `x` and `y`, "
                    f"got {', '.join(file.files) or 'nothing'}",
                    "save it with np.savez(images=..., labels=...)",
                )
            images, labels = file[names[0]], file[names[1]] if names[1] in file else None
    except (
        OSError,
        ValueError,
        EOFError,
        MemoryError,
        SyntaxError,
        RuntimeError,
        tokenize.TokenError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise DataError(
            f"{path} is not a readable npz file: {error}", "pickled (object) arrays are refused"
        ) from None
    return from_arrays(images, labels, str(path))


def idx(images: Path, labels: Path | None) -> ImageSource:
    """Images and labels in the IDX format of MNIST (LeCun et al. 1998), gzipped or not.

    Raises:
        DataError: if a file is not IDX of unsigned bytes, is truncated, or goes on after its end.
    """
    return from_arrays(
        _read_idx(images, _IDX_IMAGES, 3),
        None if labels is None else _read_idx(labels, _IDX_LABELS, 1),
        str(images),
    )


def _read_idx(path: Path, magic: int, dimensions: int) -> UInt8:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(4 + 4 * dimensions)
            if len(header) < 4 + 4 * dimensions or struct.unpack(">I", header[:4])[0] != magic:
                raise DataError(
                    f"{path} must be an IDX file of {dimensions} dimension(s), "
                    f"starting with {magic:08x}, "
                    f"got {header[:4].hex()}",
                    "give the images file first, then the labels file",
                )
            shape: tuple[int, ...] = struct.unpack(f">{dimensions}I", header[4:])
            # One byte more than there should be, so that a longer file is noticed.
            body = file.read(int(np.prod(shape, dtype=object)) + 1)
    except (OSError, EOFError, zlib.error, OverflowError, MemoryError) as error:
        raise DataError(f"{path} cannot be read: {error}", "download it again") from None
    if len(body) != np.prod(shape, dtype=object):
        raise DataError(
            f"{path} must hold {shape} bytes as its header says, got {len(body):,}",
            "download it again",
        )
    return np.frombuffer(body, np.uint8).reshape(shape)
