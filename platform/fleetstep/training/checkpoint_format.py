"""How a checkpoint lies on disk: what its manifest says, and reading any range of it.

    checkpoints/step-00000123/
        rank-00000.safetensors  a rank's named flat slices: weights, moments, EMA (rank 0: buffers)
        rank-00001.safetensors
        manifest.json           written last: what it lists, with hashes, is complete

Slices are addressed by parameter and element, so a checkpoint loads under any number of workers
and any ZeRO stage.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from fleetstep.durable import damage_of
from fleetstep.errors import CheckpointError

FORMAT = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class RunFacts:
    """What a checkpoint says about the run it belongs to.

    Attributes:
        identity: fingerprint of all that decides the numbers; a difference refuses resume.
        dataset: fingerprint of the dataset; a difference refuses resume.
        execution: fingerprint of what may change (workers, micro-batch, stage, paths, budget).
        config: the resolved configuration, JSON-able, for people and for snapshots.
        shape: (C, H, W) of the images.
        classes: number of classes; 0 if unlabelled.
    """

    identity: str
    dataset: str
    execution: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    shape: tuple[int, int, int] | None = None
    classes: int = 0


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A complete checkpoint on disk.

    Attributes:
        path: its folder.
        step: optimiser steps taken.
        images_seen: progress.
        facts: the run it belongs to.
        shapes: shape of every parameter, by name, in the network's order.
        tracks: names of its EMA tracks.
        states: what each rank's loop wants back, by rank: numbers and lists of numbers.
        parts: file, bytes and sha256 of each rank's part.
    """

    path: Path
    step: int
    images_seen: int
    facts: RunFacts
    shapes: Mapping[str, tuple[int, ...]]
    tracks: tuple[str, ...]
    states: tuple[Mapping[str, Any], ...]
    parts: tuple[Mapping[str, Any], ...]


def open_checkpoint(path: Path, *, verify: bool = False) -> Checkpoint:
    """A checkpoint by its folder.

    Raises:
        CheckpointError: it is incomplete, of another format or, if `verify`, damaged.
    """
    manifest = path / MANIFEST
    if not manifest.is_file():
        raise CheckpointError(f"{path.name} is incomplete: it has no {MANIFEST}")
    try:
        checkpoint = _from_json(path, json.loads(manifest.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path.name} is damaged: {MANIFEST} cannot be read ({error!r})"
        ) from error
    if verify:
        for part in checkpoint.parts:
            if (damage := damage_of(path, part)) is not None:
                raise CheckpointError(f"{path.name} is damaged: {damage}")
    return checkpoint


def _from_json(path: Path, content: dict[str, Any]) -> Checkpoint:
    if content["format"] != FORMAT:
        raise CheckpointError(
            f"{path.name} has format {content['format']}, this version reads {FORMAT}"
        )
    return Checkpoint(
        path=path,
        step=content["step"],
        images_seen=content["images_seen"],
        facts=_facts(content["facts"]),
        shapes={name: tuple(shape) for name, shape in content["shapes"].items()},
        tracks=tuple(content["tracks"]),
        states=tuple(content["states"]),
        parts=tuple(content["parts"]),
    )


def _facts(content: dict[str, Any]) -> RunFacts:
    shape = content.get("shape")
    return RunFacts(**content | {"shape": None if shape is None else tuple(shape)})


class CheckpointReader:
    """Reads any range of any quantity from the ranks' files; use it in a `with` block.

    Raises:
        CheckpointError: from `read`, if the range is not all there.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._files: list[Any] = [
            safe_open(checkpoint.path / part["file"], framework="pt") for part in checkpoint.parts
        ]
        self._pieces: dict[str, list[tuple[int, int, Any, str]]] = {}
        self.buffers: dict[str, Tensor] = {}
        for file in self._files:
            for key in file.keys():
                quantity, _, rest = key.partition("/")
                if quantity == "buffer":
                    self.buffers[rest] = file.get_tensor(key)
                    continue
                name, _, start = rest.rpartition("@")
                numel = file.get_slice(key).get_shape()[0]
                piece = (int(start), int(start) + numel, file, key)
                self._pieces.setdefault(f"{quantity}/{name}", []).append(piece)

    def __enter__(self) -> CheckpointReader:
        return self

    def __exit__(self, *_: object) -> None:
        # Dropping the handles unmaps the files.
        self._files.clear()
        self._pieces.clear()

    def read(self, quantity: str, name: str, start: int, numel: int) -> Tensor:
        """Elements start .. start+numel-1 of a flattened parameter, fp32 [numel].

        `quantity` is param, exp_avg, exp_avg_sq or ema.<track>.
        """
        out = torch.empty(numel, dtype=torch.float32)
        found = 0
        for low, high, file, key in self._pieces.get(f"{quantity}/{name}", ()):
            first, last = max(low, start), min(high, start + numel)
            if first < last:
                out[first - start : last - start] = file.get_slice(key)[first - low : last - low]
                found += last - first
        if found != numel:
            raise CheckpointError(
                f"{self._checkpoint.path} holds {found} of the {numel} elements of "
                f"{quantity}/{name} from {start}",
                "it belongs to another network or EMA configuration; resume with its own",
            )
        return out
