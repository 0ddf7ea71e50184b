"""SongUNet, the U-Net class of EDM's code, onto our DDPM++ and NCSN++.

Its modules are named by resolution: enc.32x32_conv, enc.16x16_down, enc.16x16_block0, ...,
dec.8x8_in0, dec.16x16_up, ..., dec.32x32_aux_norm. Ours are numbered in order of execution.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt, ValidationError
from torch import Tensor

from fleetstep.errors import ForeignWeightsError
from fleetstep.networks.ddpmpp import SongUnet
from fleetstep.networks.foreign.fitting import Piece
from fleetstep.networks.foreign.modules import ForeignModule
from fleetstep.networks.foreign.refusals import listed, shown
from fleetstep.networks.foreign.tensors import StoredTensor
from fleetstep.networks.spec import DdpmppSpec, NcsnppSpec, check_network
from fleetstep.spec import Spec

_Width = Annotated[int, Field(ge=1, le=16_384)]
_Count = Annotated[int, Field(ge=1, le=64)]


class _Arguments(Spec):
    """SongUNet's constructor, with its own defaults; bounds are generous for any network."""

    img_resolution: Annotated[int, Field(ge=1, le=16_384)]
    in_channels: _Count
    out_channels: _Count
    label_dim: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    augment_dim: Annotated[int, Field(ge=0, le=1024)] = 0
    model_channels: _Width = 128
    channel_mult: Annotated[tuple[_Count, ...], Field(min_length=1, max_length=12)] = (1, 2, 2, 2)
    channel_mult_emb: _Count = 4
    num_blocks: _Count = 4
    attn_resolutions: tuple[PositiveInt, ...] = (16,)
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    label_dropout: float = 0
    embedding_type: Literal["positional", "fourier"] = "positional"
    channel_mult_noise: int = 1
    encoder_type: Literal["standard", "skip", "residual"] = "standard"
    decoder_type: Literal["standard", "skip"] = "standard"
    resample_filter: tuple[float, ...] = (1, 1)

    @property
    def variant(self) -> tuple[object, ...]:
        """The settings that make it one architecture or another."""
        return (
            self.embedding_type,
            self.channel_mult_noise,
            self.encoder_type,
            self.decoder_type,
            self.resample_filter,
        )


_VARIANTS: dict[tuple[object, ...], type[DdpmppSpec] | type[NcsnppSpec]] = {
    ("positional", 1, "standard", "standard", (1.0, 1.0)): DdpmppSpec,
    ("fourier", 2, "residual", "standard", (1.0, 3.0, 3.0, 1.0)): NcsnppSpec,
}


@dataclass(frozen=True, kw_only=True)
class ForeignUnet:
    """A SongUNet as one of our networks.

    Attributes:
        network: its config.
        shape: (C, H, W) of an image.
        classes: number of classes; 0 if unconditional.
        expected: shape of each of our tensors.
        pieces: where each comes from.
        unused: tensors of the file that ours does without: resampling filters, which are
            constants of its code, and what told it of augmentations.
        notes: what was left out; one sentence each.
    """

    network: DdpmppSpec | NcsnppSpec
    shape: tuple[int, int, int]
    classes: int
    expected: Mapping[str, tuple[int, ...]]
    pieces: Mapping[str, Piece]
    unused: frozenset[str]
    notes: tuple[str, ...]


def read_song_unet(module: ForeignModule, tensors: Mapping[str, StoredTensor]) -> ForeignUnet:
    """Our network of a SongUNet's constructor arguments, and the names to fill it from.

    Args:
        module: the SongUNet.
        tensors: its tensors, by their names in it.

    Raises:
        ForeignWeightsError: it is another class, or has settings that ours cannot represent.
    """
    arguments = _arguments(module)
    network = _network(arguments)
    resolution = arguments.img_resolution
    if problems := check_network(network, resolution):
        raise ForeignWeightsError("; ".join(problems), "such a network cannot be represented here")
    with torch.device("meta"):
        empty = SongUnet(
            network,
            resolution,
            arguments.in_channels,
            arguments.label_dim,
            arguments.out_channels,
        )
    expected = {name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()}
    modules = dict(_modules(network, resolution))
    augment = ["map_augment.weight"] if arguments.augment_dim else []
    return ForeignUnet(
        network=network,
        shape=(arguments.in_channels, resolution, resolution),
        classes=arguments.label_dim,
        expected=expected,
        pieces={name: _piece(name, modules) for name in expected},
        unused=frozenset({*_filters(tensors, arguments.resample_filter), *augment}),
        notes=tuple(
            f"{name} is left out: it tells of augmented images, in training only"
            for name in augment
        ),
    )


def _arguments(module: ForeignModule) -> _Arguments:
    if module.kind != "SongUNet" or module.setting("_init_args"):
        raise ForeignWeightsError(
            f"the network is a {module.kind}; known is SongUNet, made from named arguments",
            "DDPM++ and NCSN++ pickles can be imported, ADM's cannot",
        )
    try:
        return _Arguments.model_validate(module.setting("_init_kwargs"))
    except ValidationError as error:
        lines = listed(
            f"{'.'.join(map(str, item['loc']))} = {shown(item['input'])}: {item['msg']}"
            for item in error.errors(include_url=False)
        )
        raise ForeignWeightsError(
            f"SongUNet's arguments cannot be represented here: {lines}",
            "DDPM++ and NCSN++ as EDM trains them can be imported",
        ) from error


def _network(arguments: _Arguments) -> DdpmppSpec | NcsnppSpec:
    spec = _VARIANTS.get(arguments.variant)
    if spec is None or arguments.in_channels != arguments.out_channels:
        raise ForeignWeightsError(
            "SongUNet with (embedding_type, channel_mult_noise, encoder_type, decoder_type, "
            f"resample_filter) = {shown(arguments.variant)} and channels "
            f"{arguments.in_channels} in, {arguments.out_channels} out is neither DDPM++ "
            "nor NCSN++",
            "known are " + " and ".join(map(str, _VARIANTS)) + ", with as many channels in as out",
        )
    levels = range(len(arguments.channel_mult))
    return spec(
        channels=arguments.model_channels,
        multipliers=arguments.channel_mult,
        blocks=arguments.num_blocks,
        # SongUNet ignores resolutions that it never reaches; our config refuses them.
        attention_resolutions=tuple(
            r
            for r in arguments.attn_resolutions
            if r in [arguments.img_resolution >> level for level in levels]
        ),
        dropout=arguments.dropout,
        embedding=arguments.channel_mult_emb,
    )


# --- names ---------------------------------------------------------------------------------------

_IN_BLOCK = {
    "norm_0": "norm0",
    "conv_0": "conv0",
    "affine": "affine",
    "norm_1": "norm1",
    "conv_1": "conv1",
    "skip": "skip",
    "attention.norm": "norm2",
    "attention.qkv": "qkv",
    "attention.project": "proj",
}


def _modules(network: DdpmppSpec | NcsnppSpec, resolution: int) -> Iterator[tuple[str, str]]:
    """(our module, theirs) for every module that may hold tensors."""
    sides = [resolution >> level for level in range(len(network.multipliers))]
    yield from {
        "embed_noise": "map_noise",
        "embed_label": "map_label",
        "embed_0": "map_layer0",
        "embed_1": "map_layer1",
        "conv_in": f"enc.{resolution}x{resolution}_conv",
        "norm_out": f"dec.{resolution}x{resolution}_aux_norm",
        "conv_out": f"dec.{resolution}x{resolution}_aux_conv",
    }.items()
    for level, side in enumerate(sides[1:]):
        yield f"pyramid.{level}", f"enc.{side}x{side}_aux_residual"
    encoder = [
        f"{side}x{side}_{part}"
        for side in sides
        for part in [
            *(["down"] if side != resolution else []),
            *(f"block{i}" for i in range(network.blocks)),
        ]
    ]
    decoder = [
        f"{side}x{side}_{part}"
        for side in reversed(sides)
        for part in [
            *(["up"] if side != sides[-1] else []),
            *(f"block{i}" for i in range(network.blocks + 1)),
        ]
    ]
    bottleneck = [f"{sides[-1]}x{sides[-1]}_in{i}" for i in range(2)]
    for ours, coder, blocks in (
        ("encoder", "enc", encoder),
        ("bottleneck", "dec", bottleneck),
        ("decoder", "dec", decoder),
    ):
        for i, block in enumerate(blocks):
            for inside, theirs in _IN_BLOCK.items():
                yield f"{ours}.{i}.{inside}", f"{coder}.{block}.{theirs}"


def _piece(name: str, modules: Mapping[str, str]) -> Piece:
    module, _, leaf = name.rpartition(".")
    source = modules[module] + "." + ("freqs" if leaf == "frequencies" else leaf)
    return Piece(source, _qkv_in_thirds if module.endswith(".qkv") else None)


def _qkv_in_thirds(tensor: Tensor) -> Tensor:
    """Output channels ordered q0 k0 v0 q1 k1 v1 ... to all q, all k, all v.

    SongUNet splits its projection as [channel, 3, pixel], one head; ours has three thirds.
    """
    return tensor.view(-1, 3, *tensor.shape[1:]).transpose(0, 1).flatten(0, 1)


def _filters(tensors: Mapping[str, StoredTensor], taps: tuple[float, ...]) -> Iterator[str]:
    """Names of the resampling filters in the file, which must be the ones of its arguments."""
    tap = torch.tensor(taps, dtype=torch.float32)
    right = torch.outer(tap, tap)[None, None] / tap.sum() ** 2
    for name, stored in tensors.items():
        if not name.endswith(".resample_filter"):
            continue
        if stored.shape != right.shape or not torch.equal(stored.load().float(), right):
            raise ForeignWeightsError(
                f"{name} is not the filter {taps} of the network's arguments",
                "the file is damaged or forged: fetch it again from a source you trust",
            )
        yield name
