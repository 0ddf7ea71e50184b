"""Image files in a folder or a zip, as `data pack images` takes them (ImageFolder layout).

The first folder under the source is the class, classes are numbered by the sorted names; images
that lie in the source itself are unlabelled. A single folder that holds only folders is taken for
a wrapper, as zips often have one.

Nothing in a zip is trusted: paths that leave the archive, encrypted members, members that unpack
to more than 256 MiB and images of more pixels than `PIL.Image.MAX_IMAGE_PIXELS` are refused. EXIF
data, orientation included, is ignored: the pixels are taken as they are stored.
"""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from fleetstep.data.sources import ImageSource, digest
from fleetstep.data.tar_index import UNLABELLED
from fleetstep.errors import DataError

Crop = Literal["center", "stretch"]

SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"}
)
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM", "TIFF", "GIF")
# 16- and 32-bit modes are left out: Pillow would clip them to white without a word.
_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"})
_MAX_MEMBER_BYTES = 256 * 2**20


@contextmanager
def image_files(
    source: Path, size: int, crop: Crop, channels: Literal[1, 3]
) -> Iterator[ImageSource]:
    """Open a folder or zip of images; they are hashed now and decoded one by one when asked for.

    Order and split follow the hash of the files' bytes.

    Raises:
        DataError: if there are no images, the layout is mixed, or the archive is unsafe or
            damaged.
    """
    if source.is_dir():
        yield _as_source(source, _in_folder(source), size, crop, channels)
    elif source.is_file():
        try:
            with zipfile.ZipFile(source) as archive:
                yield _as_source(source, _in_zip(source, archive), size, crop, channels)
        except zipfile.BadZipFile as error:
            raise DataError(
                f"{source} is not a readable zip: {error}", "give a folder or a zip of images"
            ) from None
    else:
        raise DataError(f"{source} does not exist", "give a folder or a zip of images")


Read = Callable[[], bytes]


def _in_folder(folder: Path) -> dict[PurePosixPath, Read]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {PurePosixPath(path.relative_to(folder).as_posix()): path.read_bytes for path in paths}


def _in_zip(source: Path, archive: zipfile.ZipFile) -> dict[PurePosixPath, Read]:
    files: dict[PurePosixPath, Read] = {}
    for member in archive.infolist():
        # orig_filename: zipfile itself cuts names at a NUL and turns backslashes on some systems.
        path = PurePosixPath(member.orig_filename)
        if (
            path.is_absolute()
            or ".." in path.parts
            or any(sign in member.orig_filename for sign in "\\:\0")
        ):
            raise DataError(
                f"{source}: paths must stay inside the archive, got {member.orig_filename!r}",
                "make the zip from inside its folder, or unpack it yourself and give the folder",
            )
        if member.is_dir():
            continue
        if member.flag_bits & 0x1:
            raise DataError(
                f"{source}: member {path} is encrypted", "unpack it and give the folder"
            )
        if member.file_size > _MAX_MEMBER_BYTES:
            raise DataError(
                f"{source}: member {path} unpacks to {member.file_size:,} bytes, "
                f"more than {_MAX_MEMBER_BYTES:,}",
                "an image is not that large; if it is meant, unpack the zip and give the folder",
            )
        if path in files:
            raise DataError(f"{source} holds {path} twice", "make the zip again")
        files[path] = partial(archive.read, member)
    return files


def _as_source(
    source: Path, files: dict[PurePosixPath, Read], size: int, crop: Crop, channels: Literal[1, 3]
) -> ImageSource:
    paths = sorted(path for path in files if path.suffix.lower() in SUFFIXES and not _hidden(path))
    if not paths:
        raise DataError(
            f"{source} holds no images", f"known suffixes: {', '.join(sorted(SUFFIXES))}"
        )
    class_names, labels = _classes(source, paths)

    def read(i: int) -> bytes:
        try:
            return files[paths[i]]()
        except (
            OSError,
            zlib.error,
            zipfile.BadZipFile,
            EOFError,
            NotImplementedError,
            RuntimeError,
        ) as error:
            raise DataError(
                f"{source}: {paths[i]} cannot be read: {error}", "repair or remove the file"
            ) from None

    def image(i: int) -> npt.NDArray[np.uint8]:
        try:
            return decode_image(read(i), size, crop, channels)
        except ValueError as error:
            raise DataError(
                f"{source}: image {paths[i]} {error}", "repair or remove the file"
            ) from None

    return ImageSource(
        resolution=size,
        channels=channels,
        class_names=class_names,
        labels=np.array(labels, np.int64),
        digests=[digest(read(i)) for i in range(len(paths))],
        image=image,
    )


def _hidden(path: PurePosixPath) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def _classes(source: Path, paths: list[PurePosixPath]) -> tuple[tuple[str, ...], list[int]]:
    """Class names and each path's label."""
    depth = 0
    if len({path.parts[0] for path in paths}) == 1 and all(len(path.parts) > 2 for path in paths):
        depth = 1
    folders = [path.parts[depth] if len(path.parts) > depth + 1 else None for path in paths]
    if all(folder is None for folder in folders):
        return (), [UNLABELLED] * len(paths)
    if None in folders:
        raise DataError(
            f"{source}: images must all lie in class folders or all beside each other, "
            f"got {paths[folders.index(None)]} beside the folder {next(f for f in folders if f)}",
            "move it into a class folder",
        )
    names = tuple(sorted({folder for folder in folders if folder is not None}))
    numbers = {name: label for label, name in enumerate(names)}
    return names, [numbers[folder] for folder in folders if folder is not None]


def decode_image(
    data: bytes, size: int, crop: Crop, channels: Literal[1, 3]
) -> npt.NDArray[np.uint8]:
    """Any image file as uint8 [size, size, C].

    `center` cuts the largest centred square, halves it by box averaging while it is at least twice
    too large, and then resizes with a bicubic filter (Dhariwal & Nichol 2021's preparation,
    cropped first so that a sliver of an image cannot be blown up); `stretch` resizes to the square
    with a Lanczos filter. Grey is repeated for three channels, colour becomes luma (ITU-R 601) for
    one, and an alpha channel is dropped.

    Raises:
        ValueError: if the bytes are not a known image, are damaged, have 16 or 32 bits a channel,
            or too many pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                if image.mode not in _MODES:
                    raise ValueError(f"must have 8 bits a channel, got mode {image.mode}")
                square = _to_square(image.convert("RGB" if channels == 3 else "L"), size, crop)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise ValueError(
            f"must have at most {Image.MAX_IMAGE_PIXELS:,} pixels (a decompression bomb?)"
        ) from None
    except (
        OSError,
        SyntaxError,
        EOFError,
        struct.error,
        zlib.error,
        IndexError,
        KeyError,
        TypeError,
    ) as error:
        raise ValueError(f"cannot be decoded: {error}") from None
    return np.asarray(square).reshape(size, size, channels)


def _to_square(image: Image.Image, size: int, crop: Crop) -> Image.Image:
    if crop == "stretch":
        return image.resize((size, size), Image.Resampling.LANCZOS)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    while image.width >= 2 * size:
        image = image.resize((image.width // 2, image.width // 2), Image.Resampling.BOX)
    return image if image.width == size else image.resize((size, size), Image.Resampling.BICUBIC)
