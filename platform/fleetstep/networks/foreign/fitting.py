"""From named tensors of others to a state dict of ours: every name and shape accounted for."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from fleetstep.errors import ForeignWeightsError
from fleetstep.networks.foreign.refusals import listed
from fleetstep.networks.spec import NetworkSpec


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
        files: every file that decided what the network is and computes; the weights first.
        process, strategies: sections of an experiment; together they are the preconditioning.
        network: our network's config.
        shape: (C, H, W) of an image.
        classes: number of classes; 0 for an unconditional network.
        weights: our network's state dict, float32.
        notes: what was left out, or is not in the file and was taken from the released code; one
            sentence each.
    """

    format: str
    files: tuple[Path, ...]
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
    file_bytes: int,
    unused: Collection[str] = (),
) -> dict[str, Tensor]:
    """Our state dict, float32, from the file's tensors. Nothing is read before everything fits.

    Args:
        expected: shape of every tensor of our network, by name.
        pieces: where each of them comes from.
        offered: the file's tensors.
        file_bytes: size of the file, in which every number has at least a byte of its own.
        unused: names in the file that hold no weights.

    Raises:
        ForeignWeightsError: names are missing from the file or unexpected in it, shapes differ,
            or tensors hold anything but finite real numbers.
    """
    sources = {piece.source for piece in pieces.values()}
    problems = [
        *_named("missing from the file", sorted(sources - offered.keys())),
        *_named("unexpected in the file", sorted(offered.keys() - sources - set(unused))),
        *_named("without a counterpart in the file", sorted(expected.keys() - pieces.keys())),
        *_named(
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
    check_numbers(expected, file_bytes)
    weights = {}
    for name, piece in pieces.items():
        tensor = as_float32(piece.source, offered[piece.source].load())
        weights[name] = (piece.convert(tensor) if piece.convert else tensor).contiguous()
    return weights


def _named(what: str, names: list[str]) -> list[str]:
    return [f"{what}: {listed(names)}"] if names else []


def check_numbers(expected: Mapping[str, tuple[int, ...]], file_bytes: int) -> None:
    """Refuse a network of more numbers than its file has bytes: its tensors share their storage.

    Raises:
        ForeignWeightsError: it is one.
    """
    numbers = sum(map(math.prod, expected.values()))
    if numbers > file_bytes:
        raise ForeignWeightsError(
            f"the network has {numbers:,} numbers and its file {file_bytes:,} bytes",
            "the file is damaged or forged: fetch it again from a source you trust",
        )


def as_float32(name: str, tensor: Tensor) -> Tensor:
    """A tensor of weights in float32.

    Raises:
        ForeignWeightsError: it holds anything but real numbers that are finite in float32.
    """
    if not tensor.dtype.is_floating_point:
        raise ForeignWeightsError(
            f"{name} is of {tensor.dtype}, and weights are floating-point numbers",
            "the file is quantised, or holds more than a network: use the original weights",
        )
    converted = tensor.to(torch.float32)
    if not bool(converted.isfinite().all()):
        raise ForeignWeightsError(
            f"{name} holds numbers that are not finite in float32",
            "the file is damaged, or its training diverged: use another snapshot",
        )
    return converted


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
