"""From a network's config to a network whose numbers depend on the seed alone."""

from __future__ import annotations

import torch
from torch import nn

from fleetstep.errors import ConfigError
from fleetstep.networks.ddpmpp import SongUnet
from fleetstep.networks.dit import Dit
from fleetstep.networks.hub import build_diffusers_unet
from fleetstep.networks.layers import initialise
from fleetstep.networks.spec import (
    DdpmppSpec,
    DiffusersUnetSpec,
    DitSpec,
    NcsnppSpec,
    NetworkSpec,
    UnetSpec,
    check_network,
    takes_augmentation,
)
from fleetstep.networks.unet import Unet


def build_network(
    spec: NetworkSpec,
    *,
    resolution: int,
    channels: int,
    classes: int,
    seed: int,
    channels_out: int | None = None,
    augment_dim: int = 0,
) -> nn.Module:
    """The network F for square images, in float32 on the CPU.

    Same arguments, same parameters, to the bit: torch's global generator is neither read nor
    advanced.

    Args:
        spec: the network's config.
        resolution: side of the images, in pixels.
        channels: channels of the images.
        classes: number of classes; 0 for an unconditional network.
        seed: the run's seed.
        channels_out: channels of F; None for `channels`, twice as many where the process learns
            its variance.
        augment_dim: length of the vector that tells how an image was augmented; 0 for none.

    Raises:
        ConfigError: if the network does not fit the images, or cannot be told of augmentations.
    """
    problems = check_network(spec, resolution)
    if augment_dim and not takes_augmentation(spec):
        problems.append(
            f"network kind {spec.kind} cannot be told how images were augmented, and would learn "
            "the augmented images as data: switch augmentation off, or use ddpmpp or ncsnpp"
        )
    if problems:
        raise ConfigError(problems)
    if isinstance(spec, DiffusersUnetSpec):
        return build_diffusers_unet(
            spec, channels=channels, classes=classes, seed=seed, channels_out=channels_out
        )
    # On the meta device a constructor fills in nothing, and so draws nothing.
    with torch.device("meta"):
        match spec:
            case DdpmppSpec() | NcsnppSpec():
                network: nn.Module = SongUnet(
                    spec, resolution, channels, classes, channels_out, augment_dim
                )
            case UnetSpec():
                network = Unet(spec, resolution, channels, classes, channels_out)
            case DitSpec():
                network = Dit(spec, channels, classes, channels_out)
    network.to_empty(device="cpu")
    initialise(network, seed)
    return network
