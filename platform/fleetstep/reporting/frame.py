"""What every plot of this package looks like: ink, spines and grid."""

from __future__ import annotations

from typing import Any, Literal

INK, QUIET = "#1f2328", "#59636e"
_GRID, _SPINE = "#e4e7eb", "#b6bdc6"


def frame(axes: Any, grid: Literal["x", "y", "both"]) -> None:
    """Quiet axes below and on the left, and grid lines under the data."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("bottom", "left"):
        axes.spines[side].set_color(_SPINE)
    axes.grid(axis=grid, color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
