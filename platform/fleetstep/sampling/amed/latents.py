"""The latents that predictors are trained and judged on.

Legend: B batch, C channels, H W pixels.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fleetstep import rng


def training_latents(
    seed: int,
    first: int,
    count: int,
    shape: tuple[int, int, int],
    classes: int,
    device: torch.device,
    purpose: Literal["train", "held out"] = "train",
) -> tuple[Tensor, Tensor | None]:
    """Standard normal float64 [count, *shape] and class ids of these positions of a training.

    They share nothing with the images that `generate` draws from the same seed.
    """
    z = rng.draw(seed, f"amed|{purpose}|latent", first, count, shape)
    z_BCHW = torch.from_numpy(z).to(device, torch.float64)
    if not classes:
        return z_BCHW, None
    u_B = rng.uniform(seed, f"amed|{purpose}|label", first, count)
    return z_BCHW, torch.from_numpy((u_B * classes).astype("int64")).to(device)
