"""The time embedding that U-Net and DiT share: cosines and sines of c_noise, then two layers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fleetstep.networks.layers import Linear
from fleetstep.networks.starts import Start


class TimestepEmbedding(nn.Module):
    """Two layers on [cos, sin] of c_noise at frequencies 10000^(-k/n), k = 0 .. n-1.

    Args:
        waves: cosines and sines together, 2 n; even.
        width: size of the embedding.
        start: law of both layers' weights.
    """

    def __init__(self, waves: int, width: int, start: Start) -> None:
        super().__init__()
        self.waves = waves
        self.linear_0 = Linear(waves, width, start=start)
        self.linear_1 = Linear(width, width, start=start)

    def forward(self, c_noise_B: Tensor, dtype: torch.dtype) -> Tensor:
        """Embedding of shape [B, width]; the waves are computed in float32."""
        half = self.waves // 2
        k = torch.arange(half, dtype=torch.float32, device=c_noise_B.device)
        angle = c_noise_B.float()[:, None] * torch.exp(-math.log(10_000) * k / half)
        waves = torch.cat([angle.cos(), angle.sin()], dim=1).to(dtype)
        embedding: Tensor = self.linear_1(F.silu(self.linear_0(waves)))
        return embedding
