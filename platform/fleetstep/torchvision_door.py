"""Importing torchvision, which other libraries do, whatever torch it was built for."""

from __future__ import annotations

import torch

# Declarations live as long as this object.
_operators: torch.library.Library | None = None


def import_torchvision() -> str:
    """Import torchvision, which parts of clean-fid and diffusers need.

    PyPI's torchvision is linked against CUDA: beside a CPU build of torch its operators do not
    load, and the import stops at the first one that is missing. Declared beforehand, they exist;
    they cannot run, and nothing here runs them.

    Returns:
        "" where torch and torchvision match, else what does not.

    Raises:
        ImportError: torchvision is not installed.
    """
    global _operators
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        _operators = _declared_operators()
        import torchvision  # noqa: F401
    if _operators is None:
        return ""
    return (
        f"torchvision was built for another torch than {torch.__version__}; "
        "its operators are declared, not loaded"
    )


def _declared_operators() -> torch.library.Library:
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        schema = f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        library.define(schema)  # type: ignore[no-untyped-call]
    return library
