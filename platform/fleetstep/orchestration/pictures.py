"""The first images of a cell, kept so that pages can show equal seeds side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fleetstep.durable import write_bytes
from fleetstep.orchestration.cells import Cell, Unit, content_hash, pictures_path

UInt8 = npt.NDArray[np.uint8]


def write_pictures(storage: Path, cell: Cell, images: UInt8) -> None:
    """Keep uint8 images [n, C, H, W] of ids 0 ... n-1, whole or not at all."""
    path = pictures_path(storage, cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = save({"images": np.ascontiguousarray(images)}, {"cell": content_hash(cell.identity)})
    write_bytes(path, content)


def lacks_pictures(storage: Path, unit: Unit, wanted: int) -> bool:
    """Whether `unit` draws images of which the first `wanted` are to be kept, and are not."""
    if not isinstance(unit.source, Cell) or unit.index > 0 or not wanted:
        return False
    kept = read_pictures(storage, unit.source)
    return kept is None or len(kept) < min(wanted, unit.count)


def read_pictures(storage: Path, cell: Cell) -> UInt8 | None:
    """What was kept; None if nothing was, or it is damaged."""
    try:
        with safe_open(pictures_path(storage, cell), framework="numpy") as file:
            images: UInt8 = file.get_tensor("images")
            sound = (file.metadata() or {}).get("cell") == cell.key and images.ndim == 4
    except (OSError, SafetensorError):
        return None
    return images if sound else None
