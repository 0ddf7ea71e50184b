"""`fleetstep import`: foreign weights as a snapshot that sampling and sweeps take like others."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fleetstep.data.manifest import load_manifest
from fleetstep.diffusion.spec import ProcessSpec, StrategySpec, check_strategies
from fleetstep.durable import sha256_of
from fleetstep.errors import DataError, ForeignWeightsError
from fleetstep.networks.foreign.fitting import Imported
from fleetstep.networks.foreign.refusals import shown
from fleetstep.training.snapshot import write_imported


@dataclass(frozen=True)
class ImportResult:
    """What was imported, for people and programs.

    Attributes:
        snapshot: the folder that was made.
        format: "edm", "dit" or "diffusers".
        process, strategies, network: their kinds.
        shape: (C, H, W) of an image.
        classes: number of classes; 0 for an unconditional network.
        numbers: how many the weights are, buffers included.
        notes: what was assumed or left out.
    """

    snapshot: str
    format: str
    process: str
    strategies: tuple[str, ...]
    network: str
    shape: tuple[int, int, int]
    classes: int
    numbers: int
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)

    def text(self) -> str:
        """For people."""
        made = " + ".join((self.process, *self.strategies))
        images = " x ".join(map(str, self.shape))
        lines = [
            f"imported {self.network} ({self.numbers:,} numbers) as {made}, images {images}, "
            f"{self.classes or 'no'} classes: {self.snapshot}",
            *(f"  note: {note}" for note in self.notes),
        ]
        return "\n".join(lines)


def write_import(
    imported: Imported, source: Path, out: Path, *, data: Path | None = None
) -> ImportResult:
    """Write a foreign network as a snapshot, whole or not at all.

    Args:
        imported: the network.
        source: the file or folder it was read from; its files are named relative to it.
        out: the snapshot's folder; must not exist.
        data: a packed dataset that sweeps compare its samples with.

    Raises:
        ForeignWeightsError: process or strategies are not possible here.
        DataError: the dataset is missing or has images of another shape.
        CheckpointError: the folder exists already, or cannot be written.
    """
    process, strategies = _validated(imported)
    config: dict[str, Any] = {
        "name": _name(out),
        "process": process.model_dump(mode="json"),
        "strategies": [strategy.model_dump(mode="json") for strategy in strategies],
        "network": imported.network.model_dump(mode="json"),
    }
    dataset = ""
    if data is not None:
        dataset = _fitting_dataset(data, imported.shape)
        config["data"] = {"path": str(data.absolute())}
    files = {_file_name(file, source): sha256_of(file) for file in imported.files}
    digest = _digest(files)
    write_imported(
        out,
        imported.weights,
        {
            "step": 0,
            "images_seen": 0,
            "identity": digest,
            "dataset": dataset,
            "shape": list(imported.shape),
            "classes": imported.classes,
            "imported_from": {
                "file": next(iter(files)),
                "sha256": digest,
                "files": files,
                "format": imported.format,
                "notes": list(imported.notes),
            },
            "config": config,
        },
    )
    return ImportResult(
        snapshot=str(out),
        format=imported.format,
        process=process.kind,
        strategies=tuple(strategy.kind for strategy in strategies),
        network=imported.network.kind,
        shape=imported.shape,
        classes=imported.classes,
        numbers=sum(math.prod(tensor.shape) for tensor in imported.weights.values()),
        notes=imported.notes,
    )


def _validated(imported: Imported) -> tuple[ProcessSpec, tuple[StrategySpec, ...]]:
    try:
        process: ProcessSpec = TypeAdapter(ProcessSpec).validate_python(imported.process)
        strategies: tuple[StrategySpec, ...] = TypeAdapter(
            tuple[StrategySpec, ...]
        ).validate_python(imported.strategies)
        problems = check_strategies(process, strategies)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, item['loc']))} = {shown(item.get('input'))}: {item['msg']}"
            for item in error.errors(include_url=False)
        ]
    if problems:
        raise ForeignWeightsError(
            f"the file's process is not possible here: {'; '.join(problems)}",
            "the file is damaged, or its network was made for another process",
        )
    return process, strategies


def _fitting_dataset(data: Path, shape: tuple[int, int, int]) -> str:
    manifest = load_manifest(data)
    if manifest.shape != shape:
        raise DataError(
            f"{data} has images of shape {manifest.shape}, the network makes {shape}",
            "name a dataset that was packed at the network's size",
        )
    return manifest.fingerprint


def _file_name(file: Path, source: Path) -> str:
    return file.name if file == source else file.relative_to(source).as_posix()


def _digest(files: Mapping[str, str]) -> str:
    """Of one file its own; of several that of what `sha256sum` says of them, in this order.

    A folder's configs count: the same weights under another schedule are another network.
    """
    if len(files) == 1:
        return next(iter(files.values()))
    lines = "".join(f"{digest}  {name}\n" for name, digest in files.items())
    return hashlib.sha256(lines.encode()).hexdigest()


def _name(out: Path) -> str:
    """The folder's name, as far as it can name a run."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", out.absolute().name).lstrip("._-") or "imported"
