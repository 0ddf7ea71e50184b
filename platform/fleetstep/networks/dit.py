"""DiT, the diffusion transformer of Peebles and Xie (2023), with adaptive layer norm (adaLN-Zero).

Shapes: B batch, C channels, H W pixels, h w rows and columns of patches, N = h w tokens, D width,
K heads, P pixels along a patch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fleetstep.networks.layers import Block, ClassTable, Linear, through
from fleetstep.networks.spec import DitSpec
from fleetstep.networks.starts import Normal, Xavier, Zero
from fleetstep.networks.timestep import TimestepEmbedding

# Cosines and sines of the noise level.
_WAVES = 256
_CONDITION = Normal(0.02)


class Dit(nn.Module):
    """The network F of the denoiser. Make one with `build_network`, which also initialises it.

    Args:
        spec: depth, width, heads, patch.
        channels_in: channels of the images.
        classes: number of classes; 0 makes an unconditional network, which ignores labels.
        channels_out: channels of F; None for as many as the images have.
    """

    def __init__(
        self, spec: DitSpec, channels_in: int, classes: int, channels_out: int | None = None
    ) -> None:
        super().__init__()
        width = spec.width
        self.patch = spec.patch
        self.embed_patch = PatchEmbedding(channels_in, width, spec.patch)
        self.embed_time = TimestepEmbedding(_WAVES, width, _CONDITION)
        self.embed_label = ClassTable(classes, width, _CONDITION) if classes else None
        self.blocks = nn.ModuleList(
            DitBlock(width, spec.heads, round(width * spec.mlp_ratio)) for _ in range(spec.depth)
        )
        self.modulate_out = Linear(width, 2 * width, start=Zero())
        self.project_out = Linear(
            width, spec.patch**2 * (channels_out or channels_in), start=Zero()
        )

    def forward(
        self,
        x_BCHW: Tensor,
        c_noise_B: Tensor,
        labels_B: Tensor | None = None,
        augment_BA: Tensor | None = None,
    ) -> Tensor:
        """F_BCHW of scaled images x and noise conditions c_noise.

        Args:
            x_BCHW: c_in times the noisy image; sides are multiples of the patch.
            c_noise_B: the noise level as the process encodes it (DDPM: the step index), float32.
            labels_B: class ids (int64), -1 for "no class"; None is -1 for all.
            augment_BA: must be None: this network cannot be told of augmentations.
        """
        return self.forward_with_features(x_BCHW, c_noise_B, labels_B, augment_BA)[0]

    def forward_with_features(
        self,
        x_BCHW: Tensor,
        c_noise_B: Tensor,
        labels_B: Tensor | None = None,
        augment_BA: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """F_BCHW, and the tokens after the middle block as an image [B, D, h, w]."""
        x_BDhw = self.embed_patch(x_BCHW)
        rows, columns = x_BDhw.shape[2:]
        tokens_BND = x_BDhw.flatten(2).transpose(1, 2)
        place_ND = position_embedding(rows, columns, x_BDhw.shape[1], x_BCHW.device)
        tokens_BND = tokens_BND + place_ND.to(x_BCHW.dtype)
        c_BD = self.embed_time(c_noise_B, x_BCHW.dtype)
        if self.embed_label is not None:
            c_BD = c_BD + self.embed_label.vectors(labels_B, len(c_BD))
        c_BD = F.silu(c_BD)

        half = (len(self.blocks) + 1) // 2
        for block in self.blocks[:half]:
            tokens_BND = through(block, tokens_BND, c_BD)
        features_BDhw = tokens_BND.transpose(1, 2).unflatten(2, (rows, columns))
        for block in self.blocks[half:]:
            tokens_BND = through(block, tokens_BND, c_BD)

        shift, scale = self.modulate_out(c_BD)[:, None].chunk(2, dim=-1)
        patches = self.project_out(_normalised(tokens_BND) * (1 + scale) + shift)
        return unpatchify(patches, rows, columns, self.patch), features_BDhw


class PatchEmbedding(nn.Conv2d):
    """One token per patch: a linear map of its pixels."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__(channels, width, patch, stride=patch)

    def start_(self, seed: int, name: str) -> None:
        """Xavier-uniform, as the linear map of whole patches that it is; bias zero."""
        Xavier().fill(self.weight.flatten(1), seed, f"network|{name}.weight")
        if self.bias is not None:
            self.bias.zero_()


class DitBlock(Block):
    """Attention and a two-layer perceptron, both scaled, shifted and gated by the condition."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.modulate = Linear(width, 6 * width, start=Zero())
        self.qkv = Linear(width, 3 * width)
        self.project = Linear(width, width)
        self.mlp_0 = Linear(width, hidden)
        self.mlp_1 = Linear(hidden, width)

    def forward(self, x_BND: Tensor, c_BD: Tensor) -> Tensor:
        """Tokens of x's shape; c is the condition after its SiLU."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulate(c_BD)[:, None].chunk(
            6, dim=-1
        )
        x_BND = x_BND + gate_a * self._attention(_normalised(x_BND) * (1 + scale_a) + shift_a)
        h = F.gelu(self.mlp_0(_normalised(x_BND) * (1 + scale_m) + shift_m), approximate="tanh")
        y_BND: Tensor = x_BND + gate_m * self.mlp_1(h)
        return y_BND

    def _attention(self, x_BND: Tensor) -> Tensor:
        # [B, N, 3 D] -> three of [B, K, N, D / K]
        q, k, v = self.qkv(x_BND).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        a_BKND = F.scaled_dot_product_attention(q, k, v)
        a_BND: Tensor = self.project(a_BKND.transpose(1, 2).flatten(2))
        return a_BND


def position_embedding(rows: int, columns: int, width: int, device: torch.device) -> Tensor:
    """Fixed embedding of patch positions, row by row: [N, width], float32.

    The first half holds sines, then cosines, of the column at frequencies 10000^(-4 k / width),
    the second half those of the row.
    """
    k = torch.arange(width // 4, dtype=torch.float64, device=device)
    frequencies = 10_000 ** (-4 * k / width)

    def waves(position_N: Tensor) -> Tensor:
        angle = position_N[:, None] * frequencies
        return torch.cat([angle.sin(), angle.cos()], dim=1)

    row_N, column_N = torch.meshgrid(
        torch.arange(rows, dtype=torch.float64, device=device),
        torch.arange(columns, dtype=torch.float64, device=device),
        indexing="ij",
    )
    return torch.cat([waves(column_N.flatten()), waves(row_N.flatten())], dim=1).float()


def unpatchify(patches_BNF: Tensor, rows: int, columns: int, patch: int) -> Tensor:
    """The image [B, C, H, W] of patches, row by row, each a vector over (row, column, channel)."""
    pixels_BhwPPC = patches_BNF.reshape(len(patches_BNF), rows, columns, patch, patch, -1)
    return pixels_BhwPPC.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def _normalised(x_BND: Tensor) -> Tensor:
    return F.layer_norm(x_BND, x_BND.shape[-1:], eps=1e-6)
