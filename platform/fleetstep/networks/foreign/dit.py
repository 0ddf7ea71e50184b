"""DiT's state dicts (Peebles and Xie 2023) onto our DiT."""

from __future__ import annotations

import io
import math
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from fleetstep.errors import ForeignWeightsError
from fleetstep.networks.dit import Dit, position_embedding
from fleetstep.networks.foreign.fitting import (
    Held,
    Imported,
    Piece,
    as_float32,
    check_size,
    fit_weights,
)
from fleetstep.networks.foreign.pickles import read_pickle
from fleetstep.networks.foreign.refusals import refusing
from fleetstep.networks.foreign.tensors import REBUILD_PARAMETER, REBUILD_TENSOR, STORAGES
from fleetstep.networks.spec import DitSpec, check_network

# Heads of the published sizes S, B, L and XL, by width.
_HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}
_POSITION = "pos_embed"
_PATCH, _LABEL, _OUT = "x_embedder.proj", "y_embedder.embedding_table", "final_layer.linear"
# All that a state dict refers to, by itself or beside plain settings.
_ALLOWED = {"collections.OrderedDict", REBUILD_PARAMETER, REBUILD_TENSOR, *STORAGES}
# Theirs is computed as ours, in float64, and rounded once.
_POSITION_TOLERANCE = 1e-6
_MODULES = {
    "embed_patch": _PATCH,
    "embed_time.linear_0": "t_embedder.mlp.0",
    "embed_time.linear_1": "t_embedder.mlp.2",
    "embed_label": _LABEL,
    "modulate_out": "final_layer.adaLN_modulation.1",
    # Both order a patch's outputs by row, column, channel.
    "project_out": _OUT,
}
_IN_BLOCK = {
    "modulate": "adaLN_modulation.1",
    "qkv": "attn.qkv",
    "project": "attn.proj",
    "mlp_0": "mlp.fc1",
    "mlp_1": "mlp.fc2",
}


def read_dit(path: Path, heads: int | None = None) -> Imported:
    """The network of a DiT state dict, as one of ours.

    Args:
        path: .safetensors, or what torch.save wrote: a state dict, or one under "ema".
        heads: attention heads, which no shape tells; None for those of the published width.

    Raises:
        ForeignWeightsError: the file is damaged, would run code, or is not a DiT's.
    """
    with refusing(path):
        return _read(path, heads)


def _read(path: Path, heads: int | None) -> Imported:
    offered = {name: Held(tensor) for name, tensor in _state_dict(path).items()}
    spec, (channels, resolution, _), classes, channels_out = _settings(offered, heads)
    _check_positions(offered[_POSITION].tensor, resolution // spec.patch, spec.width)
    with torch.device("meta"):
        empty = Dit(spec, channels, classes, channels_out)
    expected = {name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()}
    return Imported(
        format="dit",
        files=(path,),
        process={
            "kind": "ddpm",
            "schedule": "linear",
            "steps": 1000,
            "learned_variance": channels_out == 2 * channels,
        },
        network=spec,
        shape=(channels, resolution, resolution),
        classes=classes,
        weights=fit_weights(
            expected,
            {name: _piece(name) for name in expected},
            offered,
            file_bytes=path.stat().st_size,
            unused={_POSITION},
        ),
        notes=(
            "the process is DDPM with 1000 linear steps and noise prediction, as DiT is released; "
            "a state dict does not say so",
            *_class_notes(classes),
        ),
    )


def _class_notes(classes: int) -> list[str]:
    if not classes:
        return []
    return [
        f"the last of the {classes + 1} rows of {_LABEL} is taken as that of no class; a DiT "
        "trained with class_dropout_prob 0 has no such row, and its weights do not say so: it "
        f"would have {classes + 1} classes, and the last one is not offered here"
    ]


def _state_dict(path: Path) -> dict[str, Tensor]:
    check_size(path)
    if path.suffix != ".safetensors" and not zipfile.is_zipfile(path):
        raise ForeignWeightsError(
            f"{path.name} is neither safetensors nor of the format of torch.save since torch 1.6",
            "it is damaged, or older: where you trust it, load it and save it again",
        )
    content: Any = load_file(path) if path.suffix == ".safetensors" else _torch_file(path)
    if isinstance(content, dict) and isinstance(content.get("ema"), dict):
        content = content["ema"]
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise ForeignWeightsError(
            f"{path.name} is not a state dict, nor one under 'ema'",
            "name the file that holds the network's weights by name",
        )
    for name, tensor in content.items():
        _check_dense(name, tensor)
    return content


def _torch_file(path: Path) -> Any:
    """What torch.save wrote, tensors and plain settings alone.

    torch's own reader runs nothing either; but it inflates what is compressed, and takes numbers
    and keys of any size.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        pickles = [e.filename for e in entries if e.filename.rpartition("/")[2] == "data.pkl"]
        if (
            any(
                e.compress_type != zipfile.ZIP_STORED or e.file_size != e.compress_size
                for e in entries
            )
            or sum(e.file_size for e in entries) > path.stat().st_size
            or len(pickles) != 1
        ):
            raise ForeignWeightsError(
                f"{path.name} is not laid out as torch.save lays a file out: one data.pkl, and "
                "nothing compressed",
                "load it and save it again with torch, where you trust its source",
            )
        read_pickle(io.BytesIO(archive.read(pickles[0])), _ALLOWED, tensors=True)
    return torch.load(path, map_location="cpu", weights_only=True)


def _check_dense(name: str, tensor: Tensor) -> None:
    dense = tensor.layout == torch.strided and tensor.device.type == "cpu"
    if not dense or tensor.nbytes > tensor.untyped_storage().nbytes():
        raise ForeignWeightsError(
            f"{name} is not a tensor with a number in the file for each of its elements",
            "the file is damaged or forged, or its tensors are expanded views: save copies",
        )


def _settings(
    offered: Mapping[str, Held], heads: int | None
) -> tuple[DitSpec, tuple[int, int, int], int, int]:
    """(config, (C, H, W), classes, channels out) that the shapes tell."""

    def shape(name: str, dimensions: int) -> tuple[int, ...]:
        found = offered[name].shape if name in offered else ()
        if len(found) != dimensions or 0 in found:
            raise ForeignWeightsError(
                f"{name} should have {dimensions} dimensions and "
                f"{'is missing' if name not in offered else f'has shape {found}'}",
                "the file is not a DiT's state dict",
            )
        return found

    width, channels, patch, _ = shape(f"{_PATCH}.weight", 4)
    tokens = shape(_POSITION, 3)[1]
    hidden = shape("blocks.0.mlp.fc1.weight", 2)[0]
    outputs = shape(f"{_OUT}.weight", 2)[0]
    resolution = patch * math.isqrt(tokens)
    classes = shape(f"{_LABEL}.weight", 2)[0] - 1 if f"{_LABEL}.weight" in offered else 0
    if heads is None and width not in _HEADS:
        raise ForeignWeightsError(
            f"how many heads a DiT of width {width} has cannot be told from its weights",
            f"say it with --heads; known are {_HEADS}",
        )
    spec = DitSpec(
        depth=1
        + max(int(m[1]) for name in offered if (m := re.match(r"blocks\.(\d{1,9})\.", name))),
        width=width,
        heads=heads or _HEADS[width],
        patch=patch,
        mlp_ratio=max(hidden / width, 1),
    )
    problems = check_network(spec, resolution)
    if outputs not in (patch**2 * channels, 2 * patch**2 * channels):
        problems.append(
            f"{_OUT} gives {outputs} numbers a patch, where {channels} channels need "
            f"{patch**2 * channels}, or twice as many with a learned variance"
        )
    if spec.depth > len(offered):
        problems.append(f"it has block {spec.depth - 1} and only {len(offered)} tensors")
    if problems:
        raise ForeignWeightsError("; ".join(problems), "such a DiT cannot be represented here")
    return spec, (channels, resolution, resolution), classes, outputs // patch**2


def _check_positions(stored: Tensor, side: int, width: int) -> None:
    if stored.shape == (1, side**2, width):
        ours = position_embedding(side, side, width, torch.device("cpu"))[None]
        fits = bool(((as_float32(_POSITION, stored) - ours).abs() <= _POSITION_TOLERANCE).all())
    else:
        fits = False
    if not fits:
        raise ForeignWeightsError(
            f"{_POSITION} of shape {tuple(stored.shape)} is not DiT's fixed embedding of "
            f"{side} x {side} positions",
            "a DiT with learned or other positions cannot be represented here",
        )


def _piece(name: str) -> Piece:
    module, _, leaf = name.rpartition(".")
    if module in _MODULES:
        return Piece(f"{_MODULES[module]}.{leaf}")
    _, index, inside = module.split(".", 2)
    return Piece(f"blocks.{index}.{_IN_BLOCK[inside]}.{leaf}")
