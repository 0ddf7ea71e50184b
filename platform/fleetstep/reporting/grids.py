"""Pictures of samples: one grid, or the grids of several runs beside each other with captions.

Pixels are enlarged by whole factors and nearest neighbour: what is seen is what the model made.

Shapes: N images, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_GAP = 1
_PAPER = 255
_INK = 40


def tile(images_NCHW: NDArray[np.uint8], columns: int, scale: int = 1) -> Image.Image:
    """A grid of images, row by row, `columns` wide, one (scaled) pixel of white between
    neighbours.

    Args:
        images_NCHW: N >= 1 images with 1 channel (grey) or 3 (RGB), uint8.
        columns: images in a row, >= 1; the last row may be short.
        scale: whole factor of enlargement, >= 1.

    Raises:
        ValueError: the shape, the type, `columns` or `scale` is not as above.
    """
    if (
        images_NCHW.ndim != 4
        or images_NCHW.shape[1] not in (1, 3)
        or images_NCHW.dtype != np.uint8
    ):
        raise ValueError(
            f"a grid needs uint8 images [N, 1 or 3, H, W], but got {images_NCHW.dtype} "
            f"{list(images_NCHW.shape)}"
        )
    if not len(images_NCHW) or columns < 1 or scale < 1:
        raise ValueError(
            f"a grid needs at least one image, column and scale, but got {len(images_NCHW)} "
            "images, "
            f"{columns=} and {scale=}"
        )
    count, channels, height, width = images_NCHW.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    canvas = np.full(
        (rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, channels),
        _PAPER,
        dtype=np.uint8,
    )
    for i, image_CHW in enumerate(images_NCHW):
        row, column = divmod(i, columns)
        top, left = row * (height + _GAP), column * (width + _GAP)
        canvas[top : top + height, left : left + width] = image_CHW.transpose(1, 2, 0)
    picture = Image.fromarray(canvas[:, :, 0] if channels == 1 else canvas)
    return picture.resize(
        (picture.width * scale, picture.height * scale), Image.Resampling.NEAREST
    )


def write_grid(
    images_NCHW: NDArray[np.uint8], path: Path, columns: int = 8, scale: int = 1
) -> None:
    """Write `tile(images_NCHW, columns, scale)` as a PNG.

    Raises:
        ValueError: as `tile`.
        OSError: the file cannot be written.
    """
    tile(images_NCHW, columns, scale).save(path, format="PNG")


def side_by_side(
    grids: Sequence[tuple[str, NDArray[np.uint8]]], path: Path, columns: int = 8, scale: int = 1
) -> None:
    """Write the same seeds of several runs beside each other, each under its caption, as one PNG.

    Args:
        grids: (caption, images_NCHW) of each run, the same seeds in the same order.

    Raises:
        ValueError: no grids, different numbers of images (then the seeds differ), or as `tile`.
        OSError: the file cannot be written.
    """
    counts = [len(images_NCHW) for _, images_NCHW in grids]
    if len(set(counts)) != 1:
        raise ValueError(f"grids side by side must show the same seeds, but got {counts} images")
    tiles = [tile(images_NCHW, columns, scale).convert("RGB") for _, images_NCHW in grids]
    size = max(13, min(tiles[0].width // 16, 28))
    font = ImageFont.load_default(size=size)
    margin, band = size, 2 * size
    sheet = Image.new(
        "RGB",
        (
            sum(picture.width for picture in tiles) + margin * (len(tiles) + 1),
            band + tiles[0].height + margin,
        ),
        (_PAPER,) * 3,
    )
    pen = ImageDraw.Draw(sheet)
    left = margin
    for (caption, _), picture in zip(grids, tiles, strict=True):
        pen.text(
            (left, band / 2),
            shortened(caption, font, picture.width),
            (_INK,) * 3,
            font,
            anchor="lm",
        )
        sheet.paste(picture, (left, band))
        left += picture.width + margin
    sheet.save(path, format="PNG")


def shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The longest start of `text` that fits, with an ellipsis where something was cut."""
    line = " ".join(text.split())
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "…") > width:
        line = line[:-1]
    return line + "…"
