"""From named tensors of others to a state dict of ours: every name and shape accounted for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from fleetstep.errors import ForeignWeightsError
from fleetstep.networks.spec import NetworkSpec

_LISTED = 8


class Offered(Protocol):
    """A tensor of the file that may not have been read yet."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    def load(self) -> Tensor:
        """The tensor."""


@dataclass(frozen=True, eq=False)
class Held:
    """A tensor that has been read already."""

    tensor: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self.tensor.shape)

    def load(self) -> Tensor:
        """The tensor itself."""
        return self.tensor


@dataclass(frozen=True)
class Piece:
    """Where one of our tensors comes from.

    Attributes:
        source: its name in the file.
        convert: brings the file's order of elements into ours; keeps the shape.
    """

    source: str
    convert: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A foreign network as an experiment would describe it.

    Attributes:
        format: whose file it was: "edm", "dit" or "diffusers".
        process, strategies: sections of an experiment; together they are the preconditioning.
        network: our network's config.
        shape: (C, H, W) of an image.
        classes: number of classes; 0 for an unconditional network.
        weights: our network's state dict, float32.
        notes: what was left out, or is not in the file and was taken from the released code; one
            sentence each.
    """

    format: str
    process: Mapping[str, Any]
    strategies: tuple[Mapping[str, Any], ...] = ()
    network: NetworkSpec
    shape: tuple[int, int, int]
    classes: int
    weights: Mapping[str, Tensor] = field(repr=False)
    notes: tuple[str, ...] = ()


def fit_weights(
    expected: Mapping[str, tuple[int, ...]],
    pieces: Mapping[str, Piece],
    offered: Mapping[str, Offered],
    *,
    unused: Collection[str] = (),
) -> dict[str, Tensor]:
    """Our state dict, float32, from the file's tensors. Nothing is read before everything fits.

    Args:
        expected: shape of every tensor of our network, by name.
        pieces: where each of them comes from.
        offered: the file's tensors.
        unused: names in the file that hold no weights.

    Raises:
        ForeignWeightsError: names are missing from the file or unexpected in it, or shapes differ;
            all are named.
    """
    sources = {piece.source for piece in pieces.values()}
    problems = [
        *_listed("missing from the file", sorted(sources - offered.keys())),
        *_listed("unexpected in the file", sorted(offered.keys() - sources - set(unused))),
        *_listed("without a counterpart in the file", sorted(expected.keys() - pieces.keys())),
        *_listed(
            "of another shape",
            [
                f"{piece.source} is {offered[piece.source].shape}, {name} needs {expected[name]}"
                for name, piece in pieces.items()
                if piece.source in offered
                and name in expected
                and offered[piece.source].shape != expected[name]
            ],
        ),
    ]
    if problems:
        raise ForeignWeightsError(
            "the file's tensors are not those of the network that its settings describe: "
            + "; ".join(problems),
            "the file belongs to other code: only what fits exactly is taken",
        )
    weights = {}
    for name, piece in pieces.items():
        tensor = offered[piece.source].load().to(torch.float32)
        weights[name] = (piece.convert(tensor) if piece.convert else tensor).contiguous()
    return weights


def _listed(what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return [f"{what}: {', '.join(names[:_LISTED])}{more}"]


def check_size(path: Path, most_bytes: int = 64 * 2**30) -> None:
    """Refuse what is no file or larger than any network.

    Raises:
        ForeignWeightsError: it is.
    """
    if not path.is_file():
        raise ForeignWeightsError(f"{path} is not a file", "name the weights file itself")
    if (size := path.stat().st_size) > most_bytes or size == 0:
        raise ForeignWeightsError(
            f"{path} has {size} bytes; a network has 1 to {most_bytes}", "name another file"
        )
