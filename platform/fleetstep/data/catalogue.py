"""The datasets Fleetstep knows by name: what may be done to them, where to get them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class KnownDataset:
    """Facts about a dataset that its files do not hold.

    Attributes:
        name: the name in the manifest.
        title: one line for people.
        licence: SPDX identifier of the images' licence.
        class_names: one a label, in label order; empty if unlabelled.
        flip: whether the mirror image of a sample is as likely as the sample.
        how: the command or place that gives the data.
    """

    name: str
    title: str
    licence: str
    class_names: tuple[str, ...]
    flip: bool
    how: str


DIGITS = KnownDataset(
    name="digits",
    title="1,797 hand-written digits, 8x8 grey (Alpaydin & Kaynak 1998; test part)",
    licence="CC-BY-4.0",
    class_names=tuple("0123456789"),
    flip=False,
    how="fleetstep data pack digits --out DIR",
)

KNOWN: dict[str, KnownDataset] = {dataset.name: dataset for dataset in (DIGITS,)}


def flip_allowed(name: str, asked: bool | None) -> bool:
    """The answer given, else the catalogue's, else no: a wrong flip teaches mirrored digits."""
    if asked is not None:
        return asked
    return name in KNOWN and KNOWN[name].flip
