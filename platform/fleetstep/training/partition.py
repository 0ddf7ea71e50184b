"""The partition of weights and moments that a rank owns, as named flat slices of parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fleetstep.training.group import Group
from fleetstep.training.spec import OptimizerSpec

Quantity = Literal["param", "exp_avg", "exp_avg_sq"]
QUANTITIES: tuple[Quantity, ...] = ("param", "exp_avg", "exp_avg_sq")

Reader = Callable[[Quantity, str, int, int], Tensor]
"""read(quantity, parameter name, start, numel) -> flat fp32 tensor on the CPU."""


@dataclass(frozen=True, eq=False)
class OwnedSlice:
    """A run of elements of one flattened parameter that this rank owns: live views, never copies.

    Attributes:
        name: the parameter, as in network.named_parameters().
        start: index of the first element in the flattened parameter.
        numel: number of elements (at least 1).
        shape: of the whole parameter.
        param, exp_avg, exp_avg_sq: fp32 [numel]: master weights and Adam's moments.
    """

    name: str
    start: int
    numel: int
    shape: tuple[int, ...]
    param: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor


def make_optimizer(network: nn.Module, spec: OptimizerSpec) -> torch.optim.Optimizer:
    """Torch's fused Adam or AdamW: one kernel for all tensors, nothing compiled."""
    kind = torch.optim.AdamW if spec.kind == "adamw" else torch.optim.Adam
    return kind(
        network.parameters(),
        lr=spec.lr,
        betas=spec.betas,
        eps=spec.eps,
        weight_decay=spec.weight_decay,
        fused=True,
    )


def create_moments(optimizer: torch.optim.Optimizer, params: list[Tensor]) -> None:
    """Create Adam's state before its first step, so that it can be owned, saved and loaded."""
    for p in params:
        optimizer.state[p] = {
            "step": torch.zeros((), dtype=torch.float32, device=p.device),
            "exp_avg": torch.zeros_like(p.detach()),
            "exp_avg_sq": torch.zeros_like(p.detach()),
        }


def replicated_slices(
    network: nn.Module, optimizer: torch.optim.Optimizer, group: Group
) -> list[OwnedSlice]:
    """Where every rank holds everything: an equal split of all parameters, laid end to end."""
    total = sum(p.numel() for p in network.parameters())
    share = -(-total // group.world)
    low, high = group.rank * share, min((group.rank + 1) * share, total)
    slices, offset = [], 0
    for name, p in network.named_parameters():
        start, stop = max(low - offset, 0), min(high - offset, p.numel())
        if start < stop:
            state = optimizer.state[p]
            flats = [t.detach().view(-1)[start:stop] for t in (p, *moments_of(state))]
            slices.append(OwnedSlice(name, start, stop - start, tuple(p.shape), *flats))
        offset += p.numel()
    return slices


def moments_of(state: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Adam's first and second moment of one tensor."""
    return state["exp_avg"], state["exp_avg_sq"]


@torch.no_grad()
def load_replicated(
    network: nn.Module, optimizer: torch.optim.Optimizer, read: Reader, steps: int
) -> None:
    """Set parameters, moments and step count where every rank holds everything."""
    for name, p in network.named_parameters():
        state = optimizer.state[p]
        for quantity, target in zip(QUANTITIES, (p, *moments_of(state)), strict=True):
            target.copy_(read(quantity, name, 0, p.numel()).view_as(p))
        state["step"].fill_(steps)


def persistent_buffers(network: nn.Module) -> dict[str, Tensor]:
    """Buffers that a state dict holds, by name."""
    kept = network.state_dict().keys()
    return {name: b.detach() for name, b in network.named_buffers() if name in kept}


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all parameters."""
    for parameters in optimizer.param_groups:
        parameters["lr"] = lr
