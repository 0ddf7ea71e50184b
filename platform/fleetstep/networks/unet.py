"""The U-Net of latent diffusion models (Rombach et al. 2022), as SpeeD trains it.

Shapes: B batch, C channels, H W pixels, h w pixels at the lowest resolution, E embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fleetstep.networks.layers import (
    Block,
    ClassTable,
    Conv,
    Linear,
    attention_over_pixels,
    group_norm,
    through,
)
from fleetstep.networks.spec import BlockPlan, UnetSpec, unet_plan
from fleetstep.networks.starts import FanIn, Normal, Zero
from fleetstep.networks.timestep import TimestepEmbedding

_EPS = 1e-5


class Unet(nn.Module):
    """The network F of the denoiser. Make one with `build_network`, which also initialises it.

    Args:
        spec: widths, depth, attention, dropout.
        resolution: side of the square images; must pass `check_network`.
        channels_in: channels of the images.
        classes: number of classes; 0 makes an unconditional network, which ignores labels.
        channels_out: channels of F; None for as many as the images have.
    """

    def __init__(
        self,
        spec: UnetSpec,
        resolution: int,
        channels_in: int,
        classes: int,
        channels_out: int | None = None,
    ) -> None:
        super().__init__()
        embedding = 4 * spec.channels
        self.embed_time = TimestepEmbedding(spec.channels, embedding, FanIn())
        self.embed_label = ClassTable(classes, embedding, Normal(1.0)) if classes else None

        def blocks(plans: tuple[BlockPlan, ...]) -> nn.ModuleList:
            return nn.ModuleList(
                UnetBlock(p, embedding, spec.dropout) if p.resample is None else Resample(p)
                for p in plans
            )

        plan = unet_plan(spec, resolution)
        self.conv_in = Conv(channels_in, spec.channels, 3, FanIn())
        self.encoder = blocks(plan.encoder)
        self.bottleneck = blocks(plan.bottleneck)
        self.decoder = blocks(plan.decoder)
        last = plan.decoder[-1].c_out
        self.norm_out = group_norm(last, _EPS)
        self.conv_out = Conv(last, channels_out or channels_in, 3, Zero())

    def forward(
        self,
        x_BCHW: Tensor,
        c_noise_B: Tensor,
        labels_B: Tensor | None = None,
        augment_BA: Tensor | None = None,
    ) -> Tensor:
        """F_BCHW of scaled images x and noise conditions c_noise.

        Args:
            x_BCHW: c_in times the noisy image.
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
        """F_BCHW, and the output of the middle blocks, at the lowest resolution."""
        e_BE = self.embed_time(c_noise_B, x_BCHW.dtype)
        if self.embed_label is not None:
            e_BE = e_BE + self.embed_label.vectors(labels_B, len(e_BE))
        # Every block starts with it: once is enough.
        e_BE = F.silu(e_BE)
        h = self.conv_in(x_BCHW)
        skips = [h]
        for block in self.encoder:
            h = through(block, h, e_BE)
            skips.append(h)
        for block in self.bottleneck:
            h = through(block, h, e_BE)
        features_BChw = h
        for block in self.decoder:
            if not isinstance(block, Resample):
                h = torch.cat([h, skips.pop()], dim=1)
            h = through(block, h, e_BE)
        return self.conv_out(F.silu(self.norm_out(h))), features_BChw


class UnetBlock(Block):
    """Two convolutions, the embedding added between them, a skip path, and optional attention."""

    def __init__(self, plan: BlockPlan, embedding: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.norm_0 = group_norm(plan.c_in, _EPS)
        self.conv_0 = Conv(plan.c_in, plan.c_out, 3, FanIn())
        self.affine = Linear(embedding, plan.c_out, start=FanIn())
        self.norm_1 = group_norm(plan.c_out, _EPS)
        self.conv_1 = Conv(plan.c_out, plan.c_out, 3, Zero())
        changes = plan.c_in != plan.c_out
        self.skip = Conv(plan.c_in, plan.c_out, 1, FanIn()) if changes else nn.Identity()
        self.attention = UnetAttention(plan.c_out) if plan.attention else nn.Identity()

    def forward(self, x_BCHW: Tensor, e_BE: Tensor) -> Tensor:
        """Block output, at the resolution of x."""
        h = self.conv_0(F.silu(self.norm_0(x_BCHW))) + self.affine(e_BE)[:, :, None, None]
        h = F.dropout(F.silu(self.norm_1(h)), self.dropout, self.training)
        y_BCHW: Tensor = self.attention(self.skip(x_BCHW) + self.conv_1(h))
        return y_BCHW


class UnetAttention(nn.Module):
    """x + attention(x): self-attention over all pixels, one head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, _EPS)
        self.qkv = Conv(channels, 3 * channels, 1, FanIn())
        self.project = Conv(channels, channels, 1, Zero())

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """An image of x's shape."""
        a_BCHW = attention_over_pixels(self.qkv(self.norm(x_BCHW)))
        y_BCHW: Tensor = x_BCHW + self.project(a_BCHW)
        return y_BCHW


class Resample(Block):
    """Halves the image by a convolution of stride 2, or repeats its pixels and convolves them."""

    def __init__(self, plan: BlockPlan) -> None:
        super().__init__()
        self.doubles = plan.resample == "up"
        self.conv = Conv(plan.c_in, plan.c_out, 3, FanIn(), stride=1 if self.doubles else 2)

    def forward(self, x_BCHW: Tensor, e_BE: Tensor) -> Tensor:
        """The image at half or double the resolution; the embedding plays no part."""
        if self.doubles:
            x_BCHW = F.interpolate(x_BCHW, scale_factor=2, mode="nearest")
        y_BCHW: Tensor = self.conv(x_BCHW)
        return y_BCHW
