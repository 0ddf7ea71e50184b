"""From a network's config to a network whose numbers depend on the seed alone."""

from __future__ import annotations

import torch
from torch import nn

from fleetstep.errors import ConfigError
from fleetstep.networks.ddpmpp import Ddpmpp
from fleetstep.networks.layers import initialise
from fleetstep.networks.spec import DdpmppSpec, NetworkSpec, check_network


def build_network(
    spec: NetworkSpec, *, resolution: int, channels: int, classes: int, seed: int
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

    Raises:
        ConfigError: if the network does not fit the images.
    """
    if problems := check_network(spec, resolution):
        raise ConfigError(problems)
    # On the meta device a constructor fills in nothing, and so draws nothing.
    with torch.device("meta"):
        match spec:
            case DdpmppSpec():
                network = Ddpmpp(spec, resolution, channels, classes)
    network.to_empty(device="cpu")
    initialise(network, seed)
    return network
