"""Colours and markers of runs: told apart by both, whatever the reader's eyes or printer.

Slot 0, the baseline, is a quiet grey; the challengers take the Okabe-Ito colours (Okabe and Ito
2008, "Color Universal Design"). Their lighter twins for dark paper are in `assets/page.css`.
"""

from __future__ import annotations

LIGHT = ("#59636e", "#0072b2", "#d55e00", "#008a64", "#b0548a", "#8a6d00", "#2f8fc4")
SHADES = ("#08306b", "#08519c", "#2171b5", "#4b97c9", "#7fb2d8", "#aecbe3", "#cdd8e4")
"""Of ranks, the best one strongest; on dark paper the best one lightest."""

MARKERS = ("circle", "square", "triangle", "diamond", "cross", "plus", "down")


def colour_of(slot: int) -> int:
    """The place of a slot's colour; the baseline's grey is never given to another."""
    return slot if slot < len(LIGHT) else 1 + (slot - 1) % (len(LIGHT) - 1)


def marker_of(slot: int) -> str:
    """A slot's marker: when the colours start again the markers move on, so no two look alike."""
    others = len(MARKERS) - 1
    return MARKERS[0] if slot == 0 else MARKERS[1 + (slot - 1 + (slot - 1) // others) % others]
