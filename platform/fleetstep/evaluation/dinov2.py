"""DINOv2's vision transformers (Oquab et al. 2023; Dosovitskiy et al. 2021) as extractors.

FD in features of the large one is what Stein et al. 2023 found nearest to people's judgement.

Legend: B batch, H W pixels, G patches of a side, T = 1 + G^2 tokens, D width, h heads.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fleetstep.errors import ExtractorError
from fleetstep.evaluation.network_extractor import NetworkExtractor, normalised
from fleetstep.evaluation.pillow_resize import bicubic
from fleetstep.evaluation.spec import DinoV2Spec, dinov2_name
from fleetstep.evaluation.weight_files import fill, first_line, read_weights

BATCH = 16
PATCH = 14
NATIVE_GRID = 37
"""Patches of a side for which the published position embeddings were trained: 518 pixels."""

SIDE = 224
CHANNEL_MEANS = (0.485, 0.456, 0.406)
CHANNEL_DEVIATIONS = (0.229, 0.224, 0.225)
PREPROCESS = "PIL bicubic to 224x224 in uint8; /255, -mean, /sd of ImageNet"

SHAPES: Final[Mapping[Literal["small", "base", "large"], tuple[int, int, int]]] = {
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
}
"""Width, depth and heads."""

_GRID_OFFSET = 0.1
"""Added to the number of patches before embeddings are stretched, by the authors' network: a trace
of a rounding problem, and part of every FD that has been published."""


class _PatchEmbedding(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH, PATCH)

    def forward(self, x_B3HW: Tensor) -> Tensor:
        """To (B, G^2, D)."""
        patches: Tensor = self.proj(x_B3HW)
        return patches.flatten(2).transpose(1, 2)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Self-attention of all tokens, (B, T, D) to (B, T, D)."""
        query, key, value = (
            part.reshape(*part.shape[:2], self.heads, -1).transpose(1, 2)
            for part in self.qkv(x_BTD).chunk(3, 2)
        )
        mixed_BhTd = F.scaled_dot_product_attention(query, key, value)
        mixed: Tensor = self.proj(mixed_BhTd.transpose(1, 2).flatten(2))
        return mixed


class _LayerScale(nn.Module):
    """A learned factor per channel (Touvron et al. 2021)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(width))

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD * self.gamma


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        hidden: Tensor = self.fc2(F.gelu(self.fc1(x_BTD)))
        return hidden


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = _Attention(width, heads)
        self.ls1 = _LayerScale(width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = _Mlp(width)
        self.ls2 = _LayerScale(width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self.ls1(self.attn(self.norm1(x_BTD)))
        after: Tensor = x_BTD + self.ls2(self.mlp(self.norm2(x_BTD)))
        return after


class DinoV2(nn.Module):
    """The transformer; its tensors are named as in the published files.

    Args:
        width: D.
        depth: blocks.
        heads: of attention; divides D.
        native_grid: patches of a side that position embeddings are stored for.
    """

    def __init__(
        self, width: int, depth: int, heads: int, *, native_grid: int = NATIVE_GRID
    ) -> None:
        super().__init__()
        self.native_grid = native_grid
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        # For training alone, but a file holds it.
        self.mask_token = nn.Parameter(torch.empty(1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + native_grid**2, width))
        self.patch_embed = _PatchEmbedding(width)
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x_B3HW: Tensor) -> Tensor:
        """The class token after the last normalisation: (B, 3, H, H) to (B, D).

        H is a multiple of 14.
        """
        patches_BPD = self.patch_embed(x_B3HW)
        class_B1D = self.cls_token.expand(len(x_B3HW), -1, -1)
        x_BTD = torch.cat([class_B1D, patches_BPD], 1) + self.positions(x_B3HW.shape[-1] // PATCH)
        for block in self.blocks:
            x_BTD = block(x_BTD)
        features_BD: Tensor = self.norm(x_BTD)[:, 0]
        return features_BD

    def positions(self, grid: int) -> Tensor:
        """Position embeddings of a square of `grid` patches a side, (1, 1 + grid^2, D).

        The stored ones for the native grid; others are interpolated, as the authors do it.
        """
        if grid == self.native_grid:
            return self.pos_embed
        stored = self.pos_embed[:, 1:].reshape(1, self.native_grid, self.native_grid, -1)
        factor = (grid + _GRID_OFFSET) / self.native_grid
        stretched = F.interpolate(
            stored.permute(0, 3, 1, 2), scale_factor=(factor, factor), mode="bicubic"
        )
        return torch.cat([self.pos_embed[:, :1], stretched.flatten(2).transpose(1, 2)], 1)


def dinov2(spec: DinoV2Spec, device: str = "cpu") -> NetworkExtractor:
    """DINOv2 from a file whose digest is checked.

    Raises:
        ExtractorError: the weights are missing, not the file they should be, or of another
            network.
    """
    path = Path(spec.path)
    name = dinov2_name(spec.size)
    remedy = (
        f"get dinov2_vit{spec.size[0]}14_pretrain.pth, the transformer without registers, "
        "yourself, and give its path and sha256: extractor={kind: dinov2, "
        f"size: {spec.size}, path: ..., sha256: ...}}"
    )
    content = read_weights(path, spec.sha256, "DINOv2", remedy)
    width, depth, heads = SHAPES[spec.size]
    with torch.device("meta"):
        network = DinoV2(width, depth, heads)
    fill(network, _tensors(content, path, remedy), str(path), remedy)
    network.to(device)
    return NetworkExtractor(
        name=name,
        digest=spec.sha256,
        dim=width,
        preprocess=PREPROCESS,
        # Stein et al. 2023 round to whole grey levels, too.
        prepare=lambda images: torch.from_numpy(bicubic(images, SIDE, SIDE)),
        network=lambda pixels_B3HW: (
            network(normalised(pixels_B3HW, CHANNEL_MEANS, CHANNEL_DEVIATIONS)),
            None,
        ),
        device=device,
        batch=BATCH,
    )


def _tensors(content: bytes, path: Path, remedy: str) -> Mapping[str, Tensor]:
    """Tensors by name, of safetensors or of torch's own format without any other object."""
    try:
        if path.suffix == ".safetensors":
            loaded: object = safetensors.torch.load(content)
        else:
            loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (safetensors.SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ExtractorError(
            f"{path} must be a file of tensors: {first_line(error)}", remedy
        ) from error
    if not (isinstance(loaded, Mapping) and all(isinstance(v, Tensor) for v in loaded.values())):
        raise ExtractorError(f"{path} must hold tensors by name and nothing else", remedy)
    return loaded
