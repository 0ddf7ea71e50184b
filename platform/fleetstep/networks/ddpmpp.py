"""DDPM++ and NCSN++: the U-Nets of Song et al. (2021), with the settings of Karras et al. (2022,
table 7).

Shapes: B batch, C channels, H W pixels, h w pixels at the lowest resolution, E embedding, K
classes, A augmentations.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fleetstep.networks.layers import (
    Block,
    Conv,
    Linear,
    attention_over_pixels,
    group_norm,
    through,
)
from fleetstep.networks.ncsnpp import FourierEmbedding, PyramidStep
from fleetstep.networks.resampling import AVERAGE, BINOMIAL, Resampling
from fleetstep.networks.spec import BlockPlan, DdpmppSpec, NcsnppSpec, song_unet_plan
from fleetstep.networks.starts import Xavier

# The sum of two branches of equal variance keeps that variance.
_SKIP_SCALE = math.sqrt(0.5)
# Residual branches and the last convolution start as good as absent.
_ALMOST_ZERO = Xavier(1e-5)


class SongUnet(nn.Module):
    """The network F of the denoiser. Make one with `build_network`, which also initialises it.

    Args:
        spec: DDPM++ or NCSN++, with widths, depth, attention, dropout.
        resolution: side of the square images; must pass `check_network`.
        channels_in: channels of the images.
        classes: number of classes K; 0 makes an unconditional network, which ignores labels.
        channels_out: channels of F; None for as many as the images have.
        augment_dim: length A of the augmentation vector; 0 for none.
    """

    def __init__(
        self,
        spec: DdpmppSpec | NcsnppSpec,
        resolution: int,
        channels_in: int,
        classes: int,
        channels_out: int | None = None,
        augment_dim: int = 0,
    ) -> None:
        super().__init__()
        plan = song_unet_plan(spec, resolution)
        embedding = spec.channels * spec.embedding
        match spec:
            case DdpmppSpec():
                width, resampling = spec.channels, AVERAGE
                self.embed_noise: nn.Module = NoiseEmbedding(width)
                pyramid = []
            case NcsnppSpec():
                width, resampling = 2 * spec.channels, BINOMIAL
                self.embed_noise = FourierEmbedding(width)
                halved = [p.c_out for p in plan.encoder if p.resample == "down"]
                pyramid = [*itertools.pairwise([channels_in, *halved])]
        self.embed_label = Linear(classes, width) if classes else None
        self.embed_augment = Linear(augment_dim, width, bias=False) if augment_dim else None
        self.embed_0 = Linear(width, embedding)
        self.embed_1 = Linear(embedding, embedding)

        def blocks(plans: tuple[BlockPlan, ...]) -> nn.ModuleList:
            return nn.ModuleList(
                ResidualBlock(p, embedding, spec.dropout, resampling) for p in plans
            )

        self.conv_in = Conv(channels_in, spec.channels, 3)
        self.encoder = blocks(plan.encoder)
        self.pyramid = nn.ModuleList(PyramidStep(c_in, c_out) for c_in, c_out in pyramid)
        self.bottleneck = blocks(plan.bottleneck)
        self.decoder = blocks(plan.decoder)
        last = plan.decoder[-1].c_out
        self.norm_out = group_norm(last)
        self.conv_out = Conv(last, channels_out or channels_in, 3, _ALMOST_ZERO)

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
            c_noise_B: the noise level as the process encodes it (ln(sigma) / 4 for EDM), float32.
            labels_B: class ids (int64), -1 for "no class"; None is -1 for all.
            augment_BA: how the images were augmented; None is no augmentation.
        """
        return self.forward_with_features(x_BCHW, c_noise_B, labels_B, augment_BA)[0]

    def forward_with_features(
        self,
        x_BCHW: Tensor,
        c_noise_B: Tensor,
        labels_B: Tensor | None = None,
        augment_BA: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """F_BCHW, and the output of the encoder's last block, at the lowest resolution."""
        e_BE = self._embed(x_BCHW, c_noise_B, labels_B, augment_BA)
        features_BChw, skips = self._encode(x_BCHW, e_BE)
        h = features_BChw
        for block in self.bottleneck:
            h = through(block, h, e_BE)
        for block in self.decoder:
            if block.resample is None:
                h = torch.cat([h, skips.pop()], dim=1)
            h = through(block, h, e_BE)
        return self.conv_out(F.silu(self.norm_out(h))), features_BChw

    def _encode(self, x_BCHW: Tensor, e_BE: Tensor) -> tuple[Tensor, list[Tensor]]:
        h, halved, pyramid = self.conv_in(x_BCHW), x_BCHW, iter(self.pyramid)
        skips = [h]
        for block in self.encoder:
            h = through(block, h, e_BE)
            if block.resample == "down" and self.pyramid:
                h = halved = (h + next(pyramid)(halved)) * _SKIP_SCALE
            skips.append(h)
        return h, skips

    def _embed(
        self, x_BCHW: Tensor, c_noise_B: Tensor, labels_B: Tensor | None, augment_BA: Tensor | None
    ) -> Tensor:
        e_B = self.embed_noise(c_noise_B).to(x_BCHW.dtype)
        if self.embed_label is not None:
            classes = self.embed_label.in_features
            one_hot_BK = e_B.new_zeros(len(e_B), classes)
            if labels_B is not None:
                one_hot_BK = labels_B[:, None] == torch.arange(classes, device=e_B.device)
            # sqrt(K) gives the one-hot vector unit variance, as the layer's initialisation
            # expects.
            e_B = e_B + self.embed_label(one_hot_BK.to(e_B.dtype) * math.sqrt(classes))
        if self.embed_augment is not None and augment_BA is not None:
            e_B = e_B + self.embed_augment(augment_BA.to(e_B.dtype))
        return F.silu(self.embed_1(F.silu(self.embed_0(e_B))))


class NoiseEmbedding(nn.Module):
    """[sin, cos] of c_noise at frequencies 10000^(-k/(n-1)), k = 0 .. n-1, n half the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, c_noise_B: Tensor) -> Tensor:
        """Embedding of shape [B, channels], float32."""
        half = self.channels // 2
        k = torch.arange(half, dtype=torch.float32, device=c_noise_B.device)
        angle = c_noise_B.float()[:, None] * (1 / 10_000) ** (k / (half - 1))
        return torch.cat([angle.sin(), angle.cos()], dim=1)


class ResidualBlock(Block):
    """Two convolutions, the embedding added between them, a skip path, and optional attention."""

    def __init__(
        self, plan: BlockPlan, embedding: int, dropout: float, resampling: Resampling = AVERAGE
    ) -> None:
        super().__init__()
        self.resample = plan.resample
        self.resampling = resampling
        self.dropout = dropout
        self.norm_0 = group_norm(plan.c_in)
        self.conv_0 = Conv(plan.c_in, plan.c_out, 3)
        self.affine = Linear(embedding, plan.c_out)
        self.norm_1 = group_norm(plan.c_out)
        self.conv_1 = Conv(plan.c_out, plan.c_out, 3, _ALMOST_ZERO)
        changes = plan.resample is not None or plan.c_in != plan.c_out
        self.skip = Conv(plan.c_in, plan.c_out, 1) if changes else nn.Identity()
        self.attention = Attention(plan.c_out) if plan.attention else nn.Identity()

    def forward(self, x: Tensor, e_BE: Tensor) -> Tensor:
        """Block output, at half, equal or double the resolution of x."""
        h = (
            self.conv_0(self._resampled(F.silu(self.norm_0(x))))
            + self.affine(e_BE)[:, :, None, None]
        )
        h = F.dropout(F.silu(self.norm_1(h)), self.dropout, self.training)
        h = (self.conv_1(h) + self.skip(self._resampled(x))) * _SKIP_SCALE
        y: Tensor = self.attention(h)
        return y

    def _resampled(self, x: Tensor) -> Tensor:
        match self.resample:
            case "down":
                return self.resampling.down(x)
            case "up":
                return self.resampling.up(x)
            case _:
                return x


class Attention(nn.Module):
    """Self-attention over all pixels, one head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv = Conv(channels, 3 * channels, 1, Xavier(math.sqrt(0.2)))
        self.project = Conv(channels, channels, 1, _ALMOST_ZERO)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(x + attention(x)) / sqrt(2)."""
        a_BCHW = attention_over_pixels(self.qkv(self.norm(x_BCHW)))
        y_BCHW: Tensor = (x_BCHW + self.project(a_BCHW)) * _SKIP_SCALE
        return y_BCHW
