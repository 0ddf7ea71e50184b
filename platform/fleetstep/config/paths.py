"""Folders and files as a configuration names them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator


def expanded(path: str) -> str:
    """`path` with a leading "~" replaced: programs other than a shell do not know it, and each
    worker would have a home of its own.
    """
    return str(Path(path).expanduser()) if path.startswith("~") else path


PathText = Annotated[str, AfterValidator(expanded)]
