"""Where a verb writes: checked before the work, so that a path that cannot be costs nothing."""

from __future__ import annotations

import os
from pathlib import Path

from fleetstep.errors import UsageError


def output_folder(option: str, folder: Path) -> None:
    """Make a folder that files will be written to.

    Args:
        option: that named it, for the message.
        folder: made with its parents; one that is there is kept.

    Raises:
        UsageError: it cannot be made, or not be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        reason = error.strerror if there.is_dir() else f"{there} is a file"
        raise UsageError(
            f"{option}: the folder {folder} cannot be made ({reason})", "name another folder"
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(
            f"{option}: the folder {folder} cannot be written to",
            "name another folder, or change its permissions",
        )


def output_file(option: str, file: Path) -> None:
    """Make the folder of a file that will be written; one that is there will be replaced.

    Raises:
        UsageError: the name is a folder's, or its folder cannot be made or written to.
    """
    if file.is_dir():
        raise UsageError(
            f"{option}: {file} is a folder, and a file is to be written",
            "name a file in it",
        )
    output_folder(option, file.parent)
