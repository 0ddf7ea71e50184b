"""Network pickles as EDM's training code writes them, of small random SongUNets, and what such a
network computes: written from its published description, apart from our networks.

Nothing of EDM's code is needed: only the names that its pickles refer to.
"""

from __future__ import annotations

import contextlib
import math
import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

VARIANTS: dict[str, dict[str, Any]] = {
    "ddpmpp": {
        "embedding_type": "positional",
        "encoder_type": "standard",
        "decoder_type": "standard",
        "channel_mult_noise": 1,
        "resample_filter": [1, 1],
    },
    "ncsnpp": {
        "embedding_type": "fourier",
        "encoder_type": "residual",
        "decoder_type": "standard",
        "channel_mult_noise": 2,
        "resample_filter": [1, 3, 3, 1],
    },
}


@dataclass(frozen=True)
class SongUNet:
    """A small SongUNet: its constructor's arguments, its weights by their names, its order."""

    arguments: dict[str, Any]
    weights: dict[str, Tensor]
    encoder: list[str]
    decoder: list[str]


def song_unet(variant: str, *, classes: int = 3, augment: int = 9, seed: int = 0) -> SongUNet:
    """For images of 2 channels and side 8, two levels, attention at side 4."""
    side, channels, width, embedding = 8, 2, 8, 16
    arguments = {
        "img_resolution": side,
        "in_channels": channels,
        "out_channels": channels,
        "label_dim": classes,
        "augment_dim": augment,
        "model_channels": width,
        "channel_mult": [1, 2],
        "channel_mult_emb": embedding // width,
        "num_blocks": 1,
        "attn_resolutions": [4],
        "dropout": 0.1,
        **VARIANTS[variant],
    }
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, *weight: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = weight
        if bias:
            shapes[f"{name}.bias"] = weight[:1]

    noise = width * arguments["channel_mult_noise"]
    if variant == "ncsnpp":
        shapes["map_noise.freqs"] = (noise // 2,)
    if classes:
        layer("map_label", noise, classes)
    if augment:
        layer("map_augment", noise, augment, bias=False)
    layer("map_layer0", embedding, noise)
    layer("map_layer1", embedding, embedding)

    def block(name: str, c_in: int, c_out: int, attention: bool = False) -> None:
        layer(f"{name}.norm0", c_in)
        layer(f"{name}.conv0", c_out, c_in, 3, 3)
        layer(f"{name}.affine", c_out, embedding)
        layer(f"{name}.norm1", c_out)
        layer(f"{name}.conv1", c_out, c_out, 3, 3)
        if c_in != c_out or name.endswith(("_up", "_down")):
            layer(f"{name}.skip", c_out, c_in, 1, 1)
        if attention:
            layer(f"{name}.norm2", c_out)
            layer(f"{name}.qkv", 3 * c_out, c_out, 1, 1)
            layer(f"{name}.proj", c_out, c_out, 1, 1)

    layer("enc.8x8_conv", width, channels, 3, 3)
    block("enc.8x8_block0", width, width)
    block("enc.4x4_down", width, width)
    if variant == "ncsnpp":
        layer("enc.4x4_aux_residual", width, channels, 3, 3)
    block("enc.4x4_block0", width, 2 * width, attention=True)
    block("dec.4x4_in0", 2 * width, 2 * width, attention=True)
    block("dec.4x4_in1", 2 * width, 2 * width)
    # skip connections, last first: 4x4_block0, 4x4_down, 8x8_block0, 8x8_conv
    block("dec.4x4_block0", 4 * width, 2 * width)
    block("dec.4x4_block1", 3 * width, 2 * width, attention=True)
    block("dec.8x8_up", 2 * width, 2 * width)
    block("dec.8x8_block0", 3 * width, width)
    block("dec.8x8_block1", 2 * width, width)
    layer("dec.8x8_aux_norm", width)
    layer("dec.8x8_aux_conv", channels, width, 3, 3)

    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]) or 1)
        for name, shape in shapes.items()
    }
    order = list(dict.fromkeys(name.rsplit(".", 1)[0] for name in shapes))
    coder = {
        side_: list(
            dict.fromkeys(".".join(n.split(".")[:2]) for n in order if n.startswith(side_))
        )
        for side_ in ("enc", "dec")
    }
    return SongUNet(arguments, weights, coder["enc"], coder["dec"])


# --- what it computes ----------------------------------------------------------------------------


def run(net: SongUNet, x: Tensor, c_noise: Tensor, labels: Tensor) -> Tensor:
    """F of scaled images, in float64. `labels` holds class ids."""
    w = {name: tensor.double() for name, tensor in net.weights.items()}
    taps = torch.tensor(net.arguments["resample_filter"], dtype=torch.float64)
    kernel = torch.outer(taps, taps) / taps.sum() ** 2
    e = _embedding(net, w, c_noise, labels)

    h, pyramid = x, x
    skips: list[Tensor] = []
    for name in net.encoder:
        if name.endswith("_conv"):
            h = F.conv2d(h, w[f"{name}.weight"], w[f"{name}.bias"], padding=1)
        elif name.endswith("_aux_residual"):
            wide = F.conv2d(pyramid, w[f"{name}.weight"], padding=len(taps) // 2)
            halved = _depthwise(wide, kernel, padding=0) + w[f"{name}.bias"][:, None, None]
            h = pyramid = (h + halved) / math.sqrt(2)
            skips.pop()
        else:
            h = _block(w, name, h, e, kernel)
        skips.append(h)
    for name in net.decoder:
        if name.endswith("_aux_norm"):
            h = F.silu(_norm(w, name, h))
        elif name.endswith("_aux_conv"):
            h = F.conv2d(h, w[f"{name}.weight"], w[f"{name}.bias"], padding=1)
        else:
            if h.shape[1] != w[f"{name}.conv0.weight"].shape[1]:
                h = torch.cat([h, skips.pop()], dim=1)
            h = _block(w, name, h, e, kernel)
    return h


def _embedding(net: SongUNet, w: dict[str, Tensor], c_noise: Tensor, labels: Tensor) -> Tensor:
    if net.arguments["embedding_type"] == "fourier":
        angle = 2 * math.pi * c_noise.double()[:, None] * w["map_noise.freqs"]
    else:
        half = net.arguments["model_channels"] // 2
        k = torch.arange(half, dtype=torch.float64)
        angle = c_noise.double()[:, None] / 10_000 ** (k / (half - 1))
    e = torch.cat([angle.sin(), angle.cos()], dim=1)
    if classes := net.arguments["label_dim"]:
        one_hot = F.one_hot(labels, classes).double()
        e = e + F.linear(one_hot * math.sqrt(classes), w["map_label.weight"], w["map_label.bias"])
    for name in ("map_layer0", "map_layer1"):
        e = F.silu(F.linear(e, w[f"{name}.weight"], w[f"{name}.bias"]))
    return e


def _norm(w: dict[str, Tensor], name: str, h: Tensor) -> Tensor:
    groups = min(32, h.shape[1] // 4)
    return F.group_norm(h, groups, w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-6)


def _depthwise(h: Tensor, kernel: Tensor, padding: int) -> Tensor:
    each = kernel.expand(h.shape[1], 1, *kernel.shape)
    return F.conv2d(h, each, stride=2, padding=padding, groups=h.shape[1])


def _resampled(h: Tensor, name: str, kernel: Tensor) -> Tensor:
    padding = (len(kernel) - 1) // 2
    if name.endswith("_down"):
        return _depthwise(h, kernel, padding)
    if name.endswith("_up"):
        each = (4 * kernel).expand(h.shape[1], 1, *kernel.shape)
        return F.conv_transpose2d(h, each, stride=2, padding=padding, groups=h.shape[1])
    return h


def _block(w: dict[str, Tensor], name: str, x: Tensor, e: Tensor, kernel: Tensor) -> Tensor:
    def conv(part: str, h: Tensor, padding: int) -> Tensor:
        weight, bias = w[f"{name}.{part}.weight"], w[f"{name}.{part}.bias"]
        return F.conv2d(h, weight, bias, padding=padding)

    h = conv("conv0", _resampled(F.silu(_norm(w, f"{name}.norm0", x)), name, kernel), 1)
    h = h + F.linear(e, w[f"{name}.affine.weight"], w[f"{name}.affine.bias"])[:, :, None, None]
    h = conv("conv1", F.silu(_norm(w, f"{name}.norm1", h)), 1)
    skip = x
    if f"{name}.skip.weight" in w:
        skip = conv("skip", _resampled(x, name, kernel), 0)
    h = (h + skip) * math.sqrt(0.5)
    if f"{name}.qkv.weight" not in w:
        return h
    # Output channel 3 c + j of the projection is channel c of query, key or value.
    batch, channels, height, width = h.shape
    split = conv("qkv", _norm(w, f"{name}.norm2", h), 0).reshape(batch, channels, 3, -1)
    q, k, v = split.unbind(2)
    attention = torch.einsum("bcq,bck->bqk", q, k / math.sqrt(channels)).softmax(dim=2)
    a = torch.einsum("bqk,bck->bcq", attention, v).reshape(batch, channels, height, width)
    return (h + conv("proj", a, 0)) * math.sqrt(0.5)


# --- how it is written ---------------------------------------------------------------------------


class _Persistent:
    """An object whose pickle is that of a class under EDM's persistence decorator."""

    def __init__(self, kind: str, state: dict[str, Any]) -> None:
        self.kind, self.state = kind, state

    def __reduce__(self) -> tuple[Any, ...]:
        meta = {
            "type": "class",
            "version": 6,
            "module_src": "raise SystemExit('the source text was run')",
            "class_name": self.kind,
            "state": self.state,
        }
        function = sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj  # type: ignore[attr-defined]
        return function, (meta,)


@contextlib.contextmanager
def edm_modules() -> Iterator[Any]:
    """Stand-ins for the modules that EDM's pickles name, while one is written; gives EasyDict."""

    def _reconstruct_persistent_obj(meta: object) -> None:
        raise AssertionError("a persistent object was called")

    class EasyDict(dict):  # type: ignore[type-arg]
        pass

    EasyDict.__module__, EasyDict.__qualname__ = "dnnlib.util", "EasyDict"
    function = _reconstruct_persistent_obj
    function.__module__, function.__qualname__ = "torch_utils.persistence", function.__name__
    names = ("torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util")
    made = {name: types.ModuleType(name) for name in names}
    made["torch_utils.persistence"]._reconstruct_persistent_obj = function  # type: ignore[attr-defined]
    made["dnnlib.util"].EasyDict = EasyDict  # type: ignore[attr-defined]
    sys.modules.update(made)
    try:
        yield EasyDict
    finally:
        for name in made:
            del sys.modules[name]


def module_state(**more: Any) -> dict[str, Any]:
    """The `__dict__` of a torch module without parameters."""
    empty = ("_parameters", "_buffers", "_backward_hooks", "_forward_hooks", "_modules")
    return {
        "training": False,
        "_non_persistent_buffers_set": set(),
        **{name: OrderedDict() for name in empty},
        **more,
    }


def _tree(net: SongUNet, weights: dict[str, Tensor], init: dict[str, Any]) -> _Persistent:
    root = module_state(_init_args=(), _init_kwargs=init, label_dropout=0)
    for coder in ("enc", "dec"):
        container = torch.nn.ModuleDict()
        container.__dict__.update(module_state())
        root["_modules"][coder] = container
    for name, tensor in weights.items():
        state = root
        *path, leaf = name.split(".")
        for part in path:
            modules = state["_modules"]
            # np.sqrt makes NumPy scalars of some settings.
            modules.setdefault(
                part, _Persistent("Part", module_state(skip_scale=np.sqrt(0.5), skip=None))
            )
            child = modules[part]
            state = child.state if isinstance(child, _Persistent) else child.__dict__
        if leaf in ("freqs", "resample_filter"):
            state["_buffers"][leaf] = tensor
        else:
            state["_parameters"][leaf] = torch.nn.Parameter(tensor, requires_grad=False)
    return _Persistent("SongUNet", root)


def with_filters(net: SongUNet) -> dict[str, Tensor]:
    """Its tensors and the resampling filters that its layers keep as buffers."""
    taps = torch.tensor(net.arguments["resample_filter"], dtype=torch.float32)
    kernel = (torch.outer(taps, taps) / taps.sum() ** 2)[None, None]
    names = [
        f"{name.rsplit('.', 1)[0]}.resample_filter"
        for name in net.weights
        if name.endswith(
            (
                "_down.conv0.weight",
                "_down.skip.weight",
                "_up.conv0.weight",
                "_up.skip.weight",
                "_aux_residual.weight",
            )
        )
    ]
    return net.weights | dict.fromkeys(names, kernel)


PRECONDS: dict[str, dict[str, Any]] = {
    "EDMPrecond": {"sigma_min": 0, "sigma_max": float("inf"), "sigma_data": 0.5},
    "VPPrecond": {
        "beta_d": 19.9,
        "beta_min": 0.1,
        "M": 1000,
        "epsilon_t": 1e-5,
        "sigma_min": 9.766e-4,
        "sigma_max": 152.167,
    },
    "VEPrecond": {"sigma_min": 0.02, "sigma_max": 100},
}
FDM = {"fdm_beta_d": 19.9, "fdm_beta_min": 0.1, "fdm_multiplier": 2.0}


def write_edm(
    path: Path,
    net: SongUNet,
    precond: str = "EDMPrecond",
    *,
    weights: dict[str, Tensor] | None = None,
    **attributes: Any,
) -> Path:
    """The pickle of a network under a preconditioning, some of whose attributes are changed.

    Args:
        path: the file.
        net: the network.
        precond: class name of the preconditioning.
        weights: tensors written in place of the network's own.
        attributes: of the preconditioning; "arguments" are merged into the network's own.
    """
    arguments = net.arguments | attributes.pop("arguments", {})
    facts = PRECONDS.get(precond.removeprefix("FDM_"), {})
    if precond == "FDM_EDMPrecond":
        facts = facts | {"sigma_min": 0.002, "sigma_max": 80.0}
    with edm_modules() as easy:
        unet = _tree(net, with_filters(net) if weights is None else weights, easy(arguments))
        state = module_state(
            img_resolution=8,
            img_channels=2,
            label_dim=net.arguments["label_dim"],
            use_fp16=False,
            **facts,
            **(FDM if precond.startswith("FDM_") else {}),
        )
        state |= attributes
        state["_modules"]["model"] = unet
        loss = _Persistent("EDMLoss", {"P_mean": -1.2, "P_std": 1.2, "sigma_data": 0.5})
        content = {
            "ema": _Persistent(precond, state),
            "loss_fn": loss,
            "augment_pipe": None,
            "dataset_kwargs": dict(easy(class_name="training.dataset", path="x.zip")),
        }
        path.write_bytes(pickle.dumps(content))
    return path
