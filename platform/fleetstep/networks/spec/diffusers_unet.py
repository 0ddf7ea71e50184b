"""A diffusers `UNet2DModel`, as its own `config.json` describes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, Self

from pydantic import JsonValue, model_validator

from fleetstep.spec import Spec

# What the adapter feeds: a step index and, for some, a class id.
_FIXED = {
    "time_embedding_type": "positional",
    "class_embed_type": None,
    "mid_block_type": "UNetMidBlock2D",
}
PARAMETERS = frozenset(
    {
        "sample_size", "in_channels", "out_channels", "center_input_sample",
        "time_embedding_type", "time_embedding_dim", "freq_shift", "flip_sin_to_cos",
        "down_block_types", "mid_block_type", "up_block_types", "block_out_channels",
        "layers_per_block", "mid_block_scale_factor", "downsample_padding", "downsample_type",
        "upsample_type", "dropout", "act_fn", "attention_head_dim", "norm_num_groups",
        "attn_norm_num_groups", "norm_eps", "resnet_time_scale_shift", "add_attention",
        "class_embed_type", "num_class_embeds", "num_train_timesteps",
    }
)  # fmt: skip
"""`UNet2DModel`'s constructor arguments (diffusers 0.36 to 0.42)."""


class DiffusersUnetSpec(Spec):
    """A `UNet2DModel` of the diffusers library, which the extra `hub` installs.

    Attributes:
        config: the constructor's arguments, all of them; names that begin with "_" are notes.
    """

    kind: Literal["diffusers_unet"] = "diffusers_unet"
    config: dict[str, JsonValue]

    @model_validator(mode="after")
    def _known(self) -> Self:
        if problems := [*_problems(self.config)]:
            raise ValueError("; ".join(problems))
        return self

    @property
    def sides(self) -> tuple[int, int]:
        """(height, width) of the images."""
        size: Any = self.config["sample_size"]
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    @property
    def channels_in(self) -> int:
        """Channels of the images."""
        return self._whole("in_channels")

    @property
    def channels_out(self) -> int:
        """Channels of F."""
        return self._whole("out_channels")

    @property
    def classes(self) -> int:
        """Number of classes; 0 if unconditional."""
        return self._whole("num_class_embeds") if self.config.get("num_class_embeds") else 0

    @property
    def widths(self) -> list[int]:
        """Channels of each level; each after the first halves the resolution."""
        widths: Any = self.config["block_out_channels"]
        return list(widths)

    def _whole(self, name: str) -> int:
        number: Any = self.config[name]
        return int(number)


def _problems(config: Mapping[str, JsonValue]) -> Iterator[str]:
    for name in sorted(config.keys() - PARAMETERS):
        if not name.startswith("_"):
            yield f"{name[:80]} is no argument of UNet2DModel: remove it, or correct its name"
    for name, value in _FIXED.items():
        if config.get(name, value) != value:
            yield f"{name} must be {value!r}, got {config[name]!r}"
    for name in ("in_channels", "out_channels"):
        if not _positive(config.get(name)):
            yield f"{name} must be a positive whole number, got {config.get(name)!r}"
    size = config.get("sample_size")
    if not (_positive(size) or _positives(size, 2)):
        yield (
            "sample_size must be the side of the images, or [height, width], got "
            f"{size!r}: write it into the model's config.json"
        )
    if not _positives(config.get("block_out_channels")):
        yield "block_out_channels must be positive whole numbers"
    if config.get("num_class_embeds") is not None and not _positive(config["num_class_embeds"]):
        yield f"num_class_embeds must be null or positive, got {config['num_class_embeds']!r}"


def _positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _positives(value: object, count: int | None = None) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and count in (None, len(value))
        and all(map(_positive, value))
    )


def check_diffusers_unet(spec: DiffusersUnetSpec, resolution: int) -> list[str]:
    """Every reason why the network does not fit images of side `resolution`."""
    if spec.sides != (resolution, resolution):
        return [
            f"the diffusers network is for images of {spec.sides[0]} x {spec.sides[1]} pixels, "
            f"not {resolution} x {resolution}: use images of that size"
        ]
    return []
