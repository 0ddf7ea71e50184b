"""The manifest: one JSON file that says what a packed dataset holds, and proves it.

Plain Python and pydantic, so that a config is checked against its dataset without torch, numpy or
webdataset.

Format 1. A dataset folder holds `manifest.json`, and for each shard a plain WebDataset tar
(`<key>.npy` or `<key>.png`, and `<key>.cls` if labelled) beside its index, an `.npy` of int64 [n,
3] (see `fleetstep.data.shards`).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from fleetstep.durable import write_text
from fleetstep.errors import DataError
from fleetstep.spec import Spec

FORMAT: Literal[1] = 1
INDEX_FORMAT: Literal[1] = 1
ORDER_FORMAT: Literal[1] = 1
FILE_NAME = "manifest.json"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def _check_plain_name(name: str) -> str:
    """File names only: a manifest from elsewhere must not point outside its own folder."""
    if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise ValueError(f"a shard is a file name in the dataset's own folder, got {name!r}")
    return name


FileName = Annotated[str, AfterValidator(_check_plain_name)]


class ShardEntry(Spec):
    """One shard.

    Attributes:
        file: the tar.
        samples: images in it.
        bytes: size of the tar.
        sha256: of the tar.
        content_sha256: of every sample's pixels (uint8, HWC) and label (int64, little-endian), in
            order: it does not change when the same samples are stored in another encoding.
        index_file: the shard's index.
        index_sha256: of the index file.
    """

    file: FileName
    samples: PositiveInt
    bytes: PositiveInt
    sha256: Sha256
    content_sha256: Sha256
    index_file: FileName
    index_sha256: Sha256


class Manifest(Spec):
    """What a packed dataset holds.

    Attributes:
        classes: number of classes; 0 for unlabelled images (labels are then -1).
        resolution: height and width in pixels.
        flip_allowed: whether a mirrored image is a valid sample.
        encoding: how an image is stored.
        splits: shards of each split, in order; sample ids of a split count through its shards.
        class_histogram: samples of each class, by split; empty lists if unlabelled.
        fingerprint: see `fingerprint_of`.
    """

    format: Literal[1] = FORMAT
    index_format: Literal[1] = INDEX_FORMAT
    order_format: Literal[1] = ORDER_FORMAT
    name: Annotated[str, Field(min_length=1)]
    licence: str = ""
    classes: NonNegativeInt
    class_names: tuple[str, ...]
    channels: Literal[1, 3]
    resolution: PositiveInt
    flip_allowed: bool
    encoding: Literal["npy", "png"]
    splits: Annotated[dict[str, tuple[ShardEntry, ...]], Field(min_length=1)]
    class_histogram: dict[str, tuple[NonNegativeInt, ...]]
    fingerprint: Sha256

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of an image."""
        return self.channels, self.resolution, self.resolution

    def samples(self, split: str) -> int:
        """Number of samples of a split."""
        return sum(shard.samples for shard in self.splits[split])

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if len(self.class_names) != self.classes:
            raise ValueError(
                f"classes is {self.classes}, but {len(self.class_names)} class names are given"
            )
        files = [
            name
            for shards in self.splits.values()
            for s in shards
            for name in (s.file, s.index_file)
        ]
        if twice := sorted(
            {name for name in files if files.count(name) > 1}
            if len(files) != len(set(files))
            else ()
        ):
            raise ValueError(f"files are listed more than once: {', '.join(twice)}")
        if self.class_histogram.keys() != self.splits.keys():
            raise ValueError("class_histogram and splits must name the same splits")
        for split, histogram in self.class_histogram.items():
            if len(histogram) != self.classes or (
                self.classes and sum(histogram) != self.samples(split)
            ):
                raise ValueError(
                    f"class_histogram of {split} must count its {self.samples(split)} samples in "
                    f"{self.classes} classes, got {sum(histogram)} in {len(histogram)}"
                )
        if (expected := fingerprint_of(self)) != self.fingerprint:
            raise ValueError(
                f"fingerprint is {self.fingerprint[:12]}..., but the entries give "
                f"{expected[:12]}...: the manifest was edited by hand or damaged"
            )
        return self


def fingerprint_of(manifest: Manifest) -> str:
    """sha256 over every fact that decides which image and label stand at a stream position.

    These are pixels and labels in order, splits, shape, classes, whether flips are allowed, the
    order rule's version, and the shard sizes: shards are permuted whole, so a dataset packed with
    another shard size has another order and another fingerprint, and resuming a run on it is
    refused. Names, paths, time and encoding do not count.
    """
    facts = {
        "order_format": manifest.order_format,
        "shape": manifest.shape,
        "classes": manifest.classes,
        "flip_allowed": manifest.flip_allowed,
        "splits": {
            split: [(shard.samples, shard.content_sha256) for shard in shards]
            for split, shards in manifest.splits.items()
        },
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def make_manifest(**fields: Any) -> Manifest:
    """A manifest from all fields but the fingerprint, which is worked out.

    Raises:
        pydantic.ValidationError: if the fields contradict each other.
    """
    bare = Manifest.model_construct(**fields)
    return Manifest.model_validate({**fields, "fingerprint": fingerprint_of(bare)})


def load_manifest(path: Path) -> Manifest:
    """Read and check the manifest of a dataset folder (no shard is opened).

    Raises:
        DataError: if it is missing, is not JSON, has another format, or contradicts itself.
    """
    file = Path(path) / FILE_NAME
    try:
        raw = json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            f"{path} is not a packed dataset: it has no {FILE_NAME}",
            "make one, e.g. `fleetstep data pack digits --out data/digits`, or correct data.path",
        ) from None
    except OSError as error:
        raise DataError(
            f"{file} cannot be read: {error.strerror}", "check the file and its permissions"
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{file} is not JSON: {error}", "pack the dataset again, or restore the manifest"
        ) from None
    found = raw.get("format") if isinstance(raw, dict) else None
    if found != FORMAT:
        raise DataError(
            f"{file} must have manifest format {FORMAT}, got {found!r}",
            "pack the dataset again, or use the version of Fleetstep that packed it",
        )
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'manifest'}: "
            f"{e['msg'].removeprefix('Value error, ')}"
            for e in error.errors()[:5]
        )
        raise DataError(
            f"{file} is not a valid manifest: {problems}",
            "pack the dataset again, or restore the manifest",
        ) from None


def save_manifest(manifest: Manifest, folder: Path) -> None:
    """Write the manifest whole or not at all."""
    write_text(folder / FILE_NAME, manifest.model_dump_json(indent=1) + "\n")
