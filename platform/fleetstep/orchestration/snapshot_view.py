"""What is measured and drawn of every snapshot while training goes on: held-out error and a sample
grid.

Workers share the work: each takes a contiguous slice of the held-out images and of the grid's
seeds with a plain copy of the network (no engine, so no collective can hang inside a forward
pass), and rank 0 keeps the result.

Legend: B batch, C channels, H W pixels, J bins of held-out noise levels.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fleetstep.config import GridSpec
from fleetstep.data.stream import Stream
from fleetstep.diffusion.loss import held_out_errors, held_out_levels
from fleetstep.diffusion.objective import Objective
from fleetstep.diffusion.precondition import Denoiser
from fleetstep.reporting.grids import write_grid
from fleetstep.sampling.generate import generate
from fleetstep.training.group import Group
from fleetstep.training.spec import HeldOutSpec

# The same for every run, whatever its seed: runs are compared on the same noise and the same
# latents.
SEED = 0
_ENLARGED_PX = 32


def share(count: int, group: Group) -> tuple[int, int]:
    """(first, count) of this rank's contiguous slice of `count` items; sizes differ by at most
    one.
    """
    low, high = (count * r // group.world for r in (group.rank, group.rank + 1))
    return low, high - low


@dataclass
class SnapshotView:
    """Held-out error and grids of one run.

    Args:
        network: a copy of F that is not trained; its weights are replaced at every snapshot.
        split: the held-out split.
        objective: the run's objective: its denoiser and its held-out noise levels.
        stream: the run's data; the held-out split is read once.
        heldout, grid: what to measure and what to draw.
        group: this process among the run's workers.
        device: where to compute.
    """

    network: nn.Module
    objective: Objective
    stream: Stream
    split: str
    heldout: HeldOutSpec
    grid: GridSpec
    group: Group
    device: torch.device

    def __post_init__(self) -> None:
        self.network.to(self.device).eval().requires_grad_(False)
        self._images = self.stream.manifest.samples(self.split)
        if self.heldout.images is not None:
            self._images = min(self._images, self.heldout.images)

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take the EMA weights of a snapshot; collective work follows in `held_out` and `draw`."""
        self.network.load_state_dict(dict(weights))

    def held_out(self) -> dict[str, float]:
        """`held_out/loss`, the error over the process's own noise levels under its own weight, and
        `held_out/bin<j>` over each of their bins.
        """
        denoiser, classes = self._denoiser(), self.stream.classes
        bins = self.heldout.bins
        sums_J = torch.zeros(bins, dtype=torch.float64)
        first, count = share(self._images, self.group)
        for start in range(first, first + count, self.heldout.batch):
            size = min(self.heldout.batch, first + count - start)
            batch = self.stream.split(self.split, start, size)
            x0_BCHW = torch.from_numpy(batch.images).to(self.device).float() / 127.5 - 1
            labels_B = torch.from_numpy(batch.labels).to(self.device) if classes else None
            sigma_BJ = held_out_levels(self.objective, bins, SEED, start, size)
            weight = self.objective.own_weight
            sums_J += held_out_errors(denoiser, weight, x0_BCHW, labels_B, start, sigma_BJ, SEED)
        mean_J = self.group.sum(sums_J) / self._images
        parts = {f"held_out/bin{j}": float(value) for j, value in enumerate(mean_J)}
        return {"held_out/loss": float(mean_J.mean()), **parts}

    def draw(self, path: Path) -> None:
        """Write the grid of seeds 0 ... samples-1 as a PNG (rank 0)."""
        images_BCHW = self._samples()
        texts = self.group.gather(base64.b64encode(images_BCHW.tobytes()).decode())
        if self.group.rank != 0:
            return
        pieces = [
            np.frombuffer(base64.b64decode(text), np.uint8).reshape(-1, *self.stream.shape)
            for text in texts
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        scale = max(1, _ENLARGED_PX // self.stream.shape[-1])
        write_grid(
            np.concatenate(pieces),
            path,
            columns=max(1, round(self.grid.samples**0.5)),
            scale=scale,
        )

    def _samples(self) -> npt.NDArray[np.uint8]:
        first, count = share(self.grid.samples, self.group)
        if count == 0:
            return np.empty((0, *self.stream.shape), np.uint8)
        return generate(
            self._denoiser(),
            self.grid.solver,
            self.grid.nfe,
            guidance=self.grid.guidance,
            namespace=SEED,
            first=first,
            count=count,
            shape=self.stream.shape,
            classes=self.stream.classes,
            batch=max(2, min(64, count)),
            labels="balanced",
        ).images

    def _denoiser(self) -> Denoiser:
        return self.objective.denoiser(self.network).eval()
