"""Files and folders that are either there whole or not there at all, whatever dies in between."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_CHUNK = 4 * 2**20


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary neighbour, then rename it to `path` once it is on the disk.

    The neighbour's name is its writer's own: of two writers of one file, neither renames what the
    other has only begun.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        write(temporary)
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON whole or not at all."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes whole or not at all."""

    def fill(temporary: Path) -> None:
        temporary.write_bytes(content)

    write_whole(path, fill)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def entry_of(path: Path) -> dict[str, Any]:
    """What a manifest says about a file: name, bytes, sha256."""
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)}


def damage_of(folder: Path, entry: Mapping[str, Any]) -> str | None:
    """What is wrong with the file that a manifest's entry describes; None if nothing is."""
    path = folder / entry["file"]
    if not path.is_file():
        return f"{entry['file']} is missing"
    if (size := path.stat().st_size) != entry["bytes"]:
        return f"{entry['file']} has {size} bytes, its manifest says {entry['bytes']}"
    if (digest := sha256_of(path)) != entry["sha256"]:
        return (
            f"{entry['file']} has sha256 {digest[:12]}, its manifest says {entry['sha256'][:12]}"
        )
    return None


def remove_folder(folder: Path, seal: str) -> None:
    """Remove a folder, first the file `seal` that makes it count as complete."""
    (folder / seal).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
