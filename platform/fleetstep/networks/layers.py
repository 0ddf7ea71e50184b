"""Layers that know how they start: Xavier-uniform weights times a declared gain, biases zero.

A network is first built without numbers and then filled by `initialise`, where every weight is
addressed by (seed, its name). So a start depends on neither torch's global generator, nor its
version, nor the order in which layers are made.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fleetstep import rng
from fleetstep.networks.spec import norm_groups


class Conv(nn.Conv2d):
    """A convolution that keeps the image size; odd kernel."""

    def __init__(self, c_in: int, c_out: int, kernel: int, gain: float = 1.0) -> None:
        super().__init__(c_in, c_out, kernel, padding=kernel // 2)
        self.gain = gain


class Linear(nn.Linear):
    """A linear map."""

    def __init__(self, d_in: int, d_out: int, bias: bool = True, gain: float = 1.0) -> None:
        super().__init__(d_in, d_out, bias=bias)
        self.gain = gain


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation with at least four channels a group, at most 32 groups, eps 1e-6."""
    return nn.GroupNorm(norm_groups(channels), channels, eps=1e-6)


@torch.no_grad()
def initialise(network: nn.Module, seed: int) -> None:
    """Fill every parameter in place: weights by (seed, name), biases 0, normalisations 1 and 0.

    Raises:
        TypeError: if a module holds parameters that no rule covers.
    """
    for name, module in network.named_modules():
        match module:
            case Conv() | Linear():
                module.weight.copy_(_xavier_uniform(module.weight, seed, f"network|{name}.weight"))
                module.weight.mul_(module.gain)
                if module.bias is not None:
                    module.bias.zero_()
            case nn.GroupNorm():
                module.reset_parameters()
            case _ if next(module.parameters(recurse=False), None) is not None:
                raise TypeError(f"no rule initialises {name} ({type(module).__name__})")


def _xavier_uniform(weight: Tensor, seed: int, purpose: str) -> Tensor:
    """U(-b, b), b = sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010, eq. 16)."""
    kernel = math.prod(weight.shape[2:])
    bound = math.sqrt(6 / (kernel * (weight.shape[0] + weight.shape[1])))
    count = weight.numel()
    # One block of positions, each as long as needed: a position a weight would cost one generator
    # per 32 weights.
    u = rng.uniform(seed, purpose, 0, rng.BLOCK, (-(-count // rng.BLOCK),)).reshape(-1)[:count]
    return (bound * (2 * torch.from_numpy(u) - 1)).view(weight.shape)
