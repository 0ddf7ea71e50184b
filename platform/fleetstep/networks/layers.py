"""Layers that know how they start.

A network is first built without numbers and then filled by `initialise`: every layer fills its own
weights by (seed, its name), with the law it declares; biases start at zero.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fleetstep.networks.spec import norm_groups
from fleetstep.networks.starts import Start, Xavier


@runtime_checkable
class Starting(Protocol):
    """A module that fills its own parameters and buffers (not those of its children)."""

    def start_(self, seed: int, name: str) -> None:
        """Fill them in place; `name` is the module's name in the network."""


class Conv(nn.Conv2d):
    """A convolution that keeps the image size, or divides it by `stride`; odd kernel."""

    def __init__(
        self, c_in: int, c_out: int, kernel: int, start: Start | None = None, stride: int = 1
    ) -> None:
        super().__init__(c_in, c_out, kernel, stride=stride, padding=kernel // 2)
        self.start = start or Xavier()

    def start_(self, seed: int, name: str) -> None:
        """The declared law; biases zero."""
        _start_linear(self, self.start, seed, name)


class Linear(nn.Linear):
    """A linear map."""

    def __init__(
        self, d_in: int, d_out: int, bias: bool = True, start: Start | None = None
    ) -> None:
        super().__init__(d_in, d_out, bias=bias)
        self.start = start or Xavier()

    def start_(self, seed: int, name: str) -> None:
        """The declared law; biases zero."""
        _start_linear(self, self.start, seed, name)


class ClassTable(nn.Embedding):
    """One learned vector per class and one more, the last, for "no class".

    Args:
        classes: number of classes K.
        width: size of a vector.
        start: law of all K + 1 vectors.
    """

    def __init__(self, classes: int, width: int, start: Start) -> None:
        super().__init__(classes + 1, width)
        self.start = start

    def start_(self, seed: int, name: str) -> None:
        """The declared law."""
        self.start.fill(self.weight, seed, f"network|{name}.weight")

    def vectors(self, labels_B: Tensor | None, batch: int) -> Tensor:
        """Vectors [B, width] of class ids (int64; -1 for "no class"), None being -1 for all."""
        none = self.num_embeddings - 1
        if labels_B is None:
            return self.weight[none].expand(batch, -1)
        vectors: Tensor = self(torch.where(labels_B < 0, none, labels_B))
        return vectors


class Block(nn.Module):
    """A part of a network that can be computed twice: see `through`."""

    recompute = False


def through(block: nn.Module, *inputs: Tensor) -> Tensor:
    """The block's output; if it is to be recomputed, only its inputs are kept for the backward.

    The second computation sees the random state of the first, and drops the same activations.
    """
    if block.recompute and torch.is_grad_enabled():
        twice: Tensor = checkpoint(block, *inputs, use_reentrant=False)
        return twice
    once: Tensor = block(*inputs)
    return once


def group_norm(channels: int, eps: float = 1e-6) -> nn.GroupNorm:
    """Group normalisation with at least four channels a group, at most 32 groups."""
    return nn.GroupNorm(norm_groups(channels), channels, eps=eps)


def attention_over_pixels(qkv_BCHW: Tensor) -> Tensor:
    """Self-attention over all pixels, one head; queries, keys and values are thirds of C."""
    batch, channels, height, width = qkv_BCHW.shape
    tokens = qkv_BCHW.flatten(2).transpose(1, 2)
    q, k, v = tokens[:, None].chunk(3, dim=-1)
    a = F.scaled_dot_product_attention(q, k, v).squeeze(1)
    return a.transpose(1, 2).reshape(batch, channels // 3, height, width)


@torch.no_grad()
def initialise(network: nn.Module, seed: int) -> None:
    """Fill every parameter and persistent buffer in place; normalisations start at 1 and 0.

    Raises:
        TypeError: if a module holds parameters or buffers that no rule covers.
    """
    for name, module in network.named_modules():
        match module:
            case Starting():
                module.start_(seed, name)
            case nn.GroupNorm():
                module.reset_parameters()
            case _ if [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
                raise TypeError(f"no rule initialises {name} ({type(module).__name__})")


def _start_linear(layer: nn.Conv2d | nn.Linear, start: Start, seed: int, name: str) -> None:
    start.fill(layer.weight, seed, f"network|{name}.weight")
    if layer.bias is not None:
        layer.bias.zero_()
