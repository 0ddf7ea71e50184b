"""Engines run forward, backward and the optimiser step; the loop knows nothing else of them.

This is the only module that imports deepspeed. An engine owns a partition of the fp32 weights
and of Adam's moments, as named flat slices; what is built on partitions (EMA, checkpoints) is
then the same under every ZeRO stage.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fleetstep.errors import ConfigError
from fleetstep.exactness import exact_on_cuda
from fleetstep.training.group import Group, current_group, ensure_group
from fleetstep.training.partition import (
    QUANTITIES,
    OwnedSlice,
    Reader,
    create_moments,
    load_replicated,
    make_optimizer,
    moments_of,
    persistent_buffers,
    replicated_slices,
    set_learning_rate,
)
from fleetstep.training.spec import BatchPlan, OptimizerSpec, Precision, ZeroStage


class Engine(Protocol):
    """What the loop, the EMA and checkpoints ask of an engine."""

    @property
    def group(self) -> Group:
        """This process among the run's workers."""
        ...

    @property
    def device(self) -> torch.device:
        """Where inputs of the network must lie."""
        ...

    @property
    def steps(self) -> int:
        """Optimiser steps taken, those before a `load` included."""
        ...

    def network(self, x_BCHW: Tensor, c_noise_B: Tensor, *conditions_B: Tensor | None) -> Tensor:
        """F_BCHW in float32, in training mode; conditions are labels and augmentation."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients of one micro-batch's mean loss (scaled by 1/accumulation here)."""
        ...

    def step(self, lr: float) -> None:
        """Update the weights from `accumulation` micro-batches, averaged over all workers."""
        ...

    def grad_norm(self) -> float:
        """Global gradient norm of the last step, before clipping; not finite if it overflowed."""
        ...

    def owned(self) -> list[OwnedSlice]:
        """This rank's partition; over all ranks every element appears exactly once."""
        ...

    def buffers(self) -> dict[str, Tensor]:
        """The network's persistent buffers (equal on all ranks), by name."""
        ...

    def load(self, read: Reader, steps: int) -> None:
        """Set weights, moments and the step count; collective: every rank calls it."""
        ...


class TorchEngine:
    """Plain PyTorch in fp32, all of it on every rank: what the DeepSpeed engine is held to.

    Args:
        network: F, float32; initial weights must be equal on all ranks.
        optimizer: its config.
        plan: how the global batch is cut.
        device: where to train; default the CPU.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerSpec,
        plan: BatchPlan,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        self.device = torch.device(device)
        exact_on_cuda(self.device)
        self.group = current_group(self.device)
        self.steps = 0
        self._module = network.to(self.device).train()
        self._params = list(network.parameters())
        self._optimizer = make_optimizer(network, optimizer)
        self._clip = optimizer.clip_grad_norm
        self._accumulation = plan.accumulation
        self._grad_norm = torch.tensor(0.0)
        create_moments(self._optimizer, list(self._params))

    def network(self, x_BCHW: Tensor, c_noise_B: Tensor, *conditions_B: Tensor | None) -> Tensor:
        """F_BCHW in float32, in training mode."""
        f_BCHW: Tensor = self._module(x_BCHW, c_noise_B, *conditions_B)
        return f_BCHW

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients of one micro-batch's mean loss."""
        (loss / self._accumulation).backward()  # type: ignore[no-untyped-call]

    def step(self, lr: float) -> None:
        """Average gradients over workers, clip, and update."""
        grads = [p.grad for p in self._params if p.grad is not None]
        if self.group.world > 1:
            flat = torch.cat([g.view(-1) for g in grads])
            dist.all_reduce(flat)
            flat /= self.group.world
            means = torch.split(flat, [g.numel() for g in grads])
            for g, mean in zip(grads, means, strict=True):
                g.copy_(mean.view_as(g))
        self._grad_norm = nn.utils.get_total_norm(grads)
        if self._clip is not None:
            nn.utils.clip_grads_with_norm_(self._params, self._clip, self._grad_norm)
        set_learning_rate(self._optimizer, lr)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.steps += 1

    def grad_norm(self) -> float:
        """Global gradient norm of the last step, before clipping."""
        return float(self._grad_norm)

    def owned(self) -> list[OwnedSlice]:
        """An equal share of all elements."""
        return replicated_slices(self._module, self._optimizer, self.group)

    def buffers(self) -> dict[str, Tensor]:
        """The network's persistent buffers, by name."""
        return persistent_buffers(self._module)

    def load(self, read: Reader, steps: int) -> None:
        """Set weights, moments and the step count."""
        load_replicated(self._module, self._optimizer, read, steps)
        self.steps = steps


def _import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed, quiet, and without the one operator it would otherwise compile when it starts."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    # Launchers set it; DeepSpeed refuses to start without, and picks the device by it.
    os.environ.setdefault("LOCAL_RANK", str(device.index or 0))
    # The logger's level is set before the import, which already talks.
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # Collectives that DeepSpeed calls by their old names.
    warnings.filterwarnings(
        "ignore", r"`torch\.distributed\.(all_gather_into|reduce_scatter)_tensor`", FutureWarning
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # "No operator can be built here". Left alone, DeepSpeed runs a C compiler to find out, then
    # builds deepspeed_shm_comm (which only inference uses), and fails where there is no compiler.
    deepspeed.ops.__compatible_ops__ = {}
    return deepspeed


class DeepSpeedEngine:
    """DeepSpeed ZeRO 0-3 around torch's own fused Adam; nothing is compiled at run time.

    Reuses the process group that exists, or makes one with this process alone.

    Args:
        network: F, float32; rank 0's initial weights are broadcast.
        optimizer: its config.
        plan: how the global batch is cut; `plan.workers` must be the group's size.
        stage: ZeRO stage: 0 replicates all, 1 shards fp32 weights and moments, 2 gradients too,
            3 weights too.
        precision: of the network's weights and activations; masters and moments are always fp32.
        device: where to train; default the CPU.

    Raises:
        ConfigError: for bf16 at stage 0, or a plan for another number of workers.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerSpec,
        plan: BatchPlan,
        *,
        stage: ZeroStage,
        precision: Precision = "fp32",
        device: torch.device | str = "cpu",
    ) -> None:
        self.device = torch.device(device)
        exact_on_cuda(self.device)
        deepspeed = _import_deepspeed(self.device)
        self.group = ensure_group(self.device)
        if plan.workers != self.group.world:
            raise ConfigError(
                [f"the batch plan is for {plan.workers} workers, the group has {self.group.world}"]
            )
        if stage == 0 and precision == "bf16":
            raise ConfigError(
                ["zero_stage 0 has no fp32 masters for precision bf16; use 1, 2 or 3"]
            )
        self.steps = 0
        self._stage = stage
        self._dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self._shapes = {name: tuple(p.shape) for name, p in network.named_parameters()}
        self._torch_optimizer = make_optimizer(network.to(self.device), optimizer)
        self._grad_norm = float("nan")
        with warnings.catch_warnings():
            # Its modules, some imported only here, use what torch deprecates.
            warnings.simplefilter("ignore")
            deepspeed.init_distributed(
                dist.get_backend(),
                auto_mpi_discovery=False,
                verbose=False,
                dist_init_required=False,
            )
            self._engine, self._zero, _, _ = deepspeed.initialize(
                model=network,
                optimizer=self._torch_optimizer,
                config=_deepspeed_json(optimizer, plan, stage, precision),
                dist_init_required=False,
            )
        self._module: nn.Module = self._engine.module
        self._engine.train()
        create_moments(self._torch_optimizer, self._masters())

    def network(self, x_BCHW: Tensor, c_noise_B: Tensor, *conditions_B: Tensor | None) -> Tensor:
        """F_BCHW in float32, in training mode; c_noise stays float32 (bf16 has 3 digits)."""
        f_BCHW: Tensor = self._engine(x_BCHW.to(self._dtype), c_noise_B, *conditions_B)
        return f_BCHW.float()

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients; at the last micro-batch DeepSpeed reduces them over workers."""
        self._engine.backward(loss)
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()  # counts the micro-batch, updates nothing

    def step(self, lr: float) -> None:
        """Clip and update; at stage 0 the norm is taken here, since DeepSpeed keeps none."""
        set_learning_rate(self._torch_optimizer, lr)
        if self._stage == 0:
            grads = [p.grad for p in self._module.parameters() if p.grad is not None]
            norm = nn.utils.get_total_norm(grads)
        self._engine.step()
        if self._stage > 0:
            norm = self._engine.get_global_grad_norm()
        # DeepSpeed marks an overflow by -1 and skips the update.
        self._grad_norm = float(norm) if float(norm) >= 0 else float("nan")
        self.steps += 1

    def grad_norm(self) -> float:
        """Global gradient norm of the last step, before clipping."""
        return self._grad_norm

    def owned(self) -> list[OwnedSlice]:
        """This rank's ZeRO partition without padding; at stage 0 an equal share of all."""
        if self._stage == 0:
            return replicated_slices(self._module, self._torch_optimizer, self.group)
        slices = []
        for name, start, numel, master, offset in self._partition():
            state = self._torch_optimizer.state[master]
            flats = [t.detach().narrow(0, offset, numel) for t in (master, *moments_of(state))]
            slices.append(OwnedSlice(name, start, numel, self._shapes[name], *flats))
        return slices

    def buffers(self) -> dict[str, Tensor]:
        """The network's persistent buffers, by name."""
        return persistent_buffers(self._module)

    @torch.no_grad()
    def load(self, read: Reader, steps: int) -> None:
        """Set masters, moments and the step count; then the network's weights from the masters."""
        self.steps = steps
        if self._stage == 0:
            load_replicated(self._module, self._torch_optimizer, read, steps)
            return
        if self._stage == 3:
            self._zero.checkpoint_event_prologue()
        for piece in self.owned():
            for quantity in QUANTITIES:
                target: Tensor = getattr(piece, quantity)
                target.copy_(read(quantity, piece.name, piece.start, piece.numel))
        for master in self._masters():
            self._torch_optimizer.state[master]["step"].fill_(steps)
        if self._stage == 3:
            for i in range(len(self._masters())):
                self._zero._reassign_or_swap_out_partitioned_parameters(i)
            self._zero.checkpoint_event_epilogue()
        else:
            self._zero.update_lp_params()

    def _masters(self) -> list[Tensor]:
        """The fp32 tensors that the torch optimiser updates on this rank."""
        if self._stage == 0:
            return list(self._module.parameters())
        if self._stage == 3:
            return list(self._zero.fp32_partitioned_groups_flat)
        return list(self._zero.single_partition_of_fp32_groups)

    def _partition(self) -> Iterator[tuple[str, int, int, Tensor, int]]:
        """Owned slices of stages 1-3.

        Each is (name, start in the parameter, numel, master tensor, offset in the master).
        """
        masters = self._masters()
        # DeepSpeed hangs its bookkeeping on the parameters.
        parameters: Iterator[tuple[str, Any]] = self._module.named_parameters()
        for name, p in parameters:
            if self._stage == 3:
                group, offset, padded = self._zero.grad_position[self._zero.get_param_id(p)]
                start = self.group.rank * p.ds_tensor.ds_numel
                numel = min(padded, p.ds_numel - start)
            else:
                mapping = p._hp_mapping
                if mapping is None:
                    continue
                group, offset = mapping.param_group_index, mapping.hp_fragment_address.start
                start, numel = mapping.lp_fragment_address.start, mapping.lp_fragment_address.numel
            if numel > 0:
                yield name, start, numel, masters[group], offset


def _deepspeed_json(
    optimizer: OptimizerSpec, plan: BatchPlan, stage: ZeroStage, precision: Precision
) -> dict[str, Any]:
    """DeepSpeed's own config, generated from ours."""
    zero: dict[str, Any] = {"stage": stage}
    if stage in (1, 2):
        # Measured on the CPU: 4.8 % -> 2.3 % of a step at stage 1. Stage 2 needs its contiguous
        # buffer.
        zero["contiguous_gradients"] = stage == 2
    return {
        "train_batch_size": plan.global_batch,
        "train_micro_batch_size_per_gpu": plan.micro_batch,
        "gradient_accumulation_steps": plan.accumulation,
        "gradient_clipping": optimizer.clip_grad_norm or 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": precision == "bf16"},
        "steps_per_print": 2**31,
    }
