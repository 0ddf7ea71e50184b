"""The workers of a run as a process group, and the three collectives training needs."""

from __future__ import annotations

import atexit
import json
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """This process among the run's workers; for one worker every collective is the identity.

    Attributes:
        rank: 0 .. world-1.
        world: number of workers.
        device: where collectives' tensors must lie.
    """

    rank: int
    world: int
    device: torch.device

    def barrier(self) -> None:
        """Wait until every worker is here."""
        if self.world > 1:
            # An all-reduce rather than dist.barrier, which guesses devices under NCCL.
            self.sum(torch.zeros(1, dtype=torch.float64))

    def sum(self, values: Tensor) -> Tensor:
        """Sum over workers, same on each: a new tensor of the same dtype, on the CPU."""
        total = values.detach().to(self.device, copy=True)
        if self.world > 1:
            dist.all_reduce(total)
        return total.cpu()

    def gather(self, value: Any) -> list[Any]:
        """The JSON-able `value` of every worker, by rank, on every worker.

        JSON rather than torch's all_gather_object, which unpickles what it receives.
        """
        if self.world == 1:
            return [value]
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = torch.zeros(self.world, dtype=torch.int64)
        sizes[self.rank] = len(text)
        lengths = [int(n) for n in self.sum(sizes)]
        padded = torch.zeros(max(lengths), dtype=torch.uint8, device=self.device)
        padded[: len(text)] = text.to(self.device)
        parts = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(parts, padded)
        return [
            json.loads(part[:length].cpu().numpy().tobytes())
            for part, length in zip(parts, lengths, strict=True)
        ]


def current_group(device: torch.device) -> Group:
    """The process group that exists (Ray Train's, or a test's), or one worker alone."""
    if dist.is_initialized():
        return Group(dist.get_rank(), dist.get_world_size(), device)
    return Group(0, 1, device)


def ensure_group(device: torch.device) -> Group:
    """The process group that exists; else one of this process alone (for DeepSpeed)."""
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        # A store in this process's memory: no port, no file.
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
        # gloo's threads should end before the interpreter does.
        atexit.register(_leave)
    return current_group(device)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
