"""Networks as closed configs: their blocks and the images they fit, in plain Python (no torch).

Every network of a config is one member of `NetworkSpec` here and one case of `build_network`.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field

from fleetstep.networks.spec.blocks import BlockPlan, Plan, norm_groups
from fleetstep.networks.spec.diffusers_unet import DiffusersUnetSpec, check_diffusers_unet
from fleetstep.networks.spec.dit import DitSpec, check_dit
from fleetstep.networks.spec.song_unet import DdpmppSpec, NcsnppSpec, SongUnetSpec, song_unet_plan
from fleetstep.networks.spec.unet import UnetSpec, unet_plan
from fleetstep.networks.spec.unet_checks import check_levels, check_widths

__all__ = [
    "BlockPlan",
    "DdpmppSpec",
    "DiffusersUnetSpec",
    "DitSpec",
    "NcsnppSpec",
    "NetworkSpec",
    "Plan",
    "SongUnetSpec",
    "UnetSpec",
    "check_network",
    "feature_shape",
    "norm_groups",
    "song_unet_plan",
    "takes_augmentation",
    "unet_plan",
]

NetworkSpec: TypeAlias = Annotated[
    DdpmppSpec | NcsnppSpec | UnetSpec | DitSpec | DiffusersUnetSpec,
    Field(discriminator="kind"),
]
"""Every network a config can name, told apart by `kind`."""


def check_network(spec: NetworkSpec, resolution: int) -> list[str]:
    """Every reason why the network does not fit images of side `resolution`; empty if it does."""
    match spec:
        case DitSpec():
            return check_dit(spec, resolution)
        case DiffusersUnetSpec():
            return check_diffusers_unet(spec, resolution)
        case UnetSpec():
            plan = unet_plan(spec, resolution)
        case DdpmppSpec() | NcsnppSpec():
            plan = song_unet_plan(spec, resolution)
    return [*check_levels(spec, resolution), *check_widths(spec, plan)]


def feature_shape(spec: NetworkSpec, resolution: int) -> tuple[int, int, int]:
    """(channels, height, width) of the bottleneck features, for a network that fits the images.

    They are what `forward_with_features` returns beside F: the output of the encoder's last block
    (DDPM++, NCSN++), of the middle blocks (U-Net, diffusers' U-Net), or the tokens after the
    middle block, as an image of tokens (DiT).
    """
    match spec:
        case DitSpec():
            side = resolution // spec.patch
            return spec.width, side, side
        case DiffusersUnetSpec():
            side = resolution >> (len(spec.widths) - 1)
            return spec.widths[-1], side, side
        case UnetSpec() | DdpmppSpec() | NcsnppSpec():
            side = resolution >> (len(spec.multipliers) - 1)
            return spec.channels * spec.multipliers[-1], side, side


def takes_augmentation(spec: NetworkSpec) -> bool:
    """Whether the network can be told how an image was augmented (EDM's U-Nets can).

    Without being told, a network learns the augmented images as if they were data.
    """
    return isinstance(spec, SongUnetSpec)
