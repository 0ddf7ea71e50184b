"""One small network of every kind, for images of 2 channels and side 8 in 3 classes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from fleetstep.networks.build import build_network
from fleetstep.networks.spec import DdpmppSpec, DitSpec, NcsnppSpec, NetworkSpec, UnetSpec
from lcg_inputs import gauss4

_LEVELS: dict[str, Any] = {
    "channels": 8,
    "multipliers": (1, 2),
    "blocks": 1,
    "attention_resolutions": (4,),
}
SMALL: dict[str, NetworkSpec] = {
    "ddpmpp": DdpmppSpec(**_LEVELS, dropout=0),
    "ncsnpp": NcsnppSpec(**_LEVELS, dropout=0),
    "unet": UnetSpec(**_LEVELS),
    "dit": DitSpec(depth=3, width=16, heads=2),
}


def small_network(spec: NetworkSpec, seed: int = 0, classes: int = 3, **more: int) -> nn.Module:
    """The network at its start."""
    return build_network(spec, resolution=8, channels=2, classes=classes, seed=seed, **more)


def awake(network: nn.Module) -> nn.Module:
    """The network with every parameter of ordinary size: a fresh one is (nearly) silent."""
    with torch.no_grad():
        for i, parameter in enumerate(network.parameters()):
            noise = gauss4(tuple(parameter.shape), i + 1) / math.sqrt(parameter[0].numel())
            parameter.add_(torch.from_numpy(noise))
    return network


def small_inputs(batch: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Images, noise conditions and labels."""
    x = torch.from_numpy(gauss4((batch, 2, 8, 8), 99)).float()
    return x, torch.linspace(-1.5, 1, batch), torch.arange(batch) % 3
