"""CLIP's image tower (Radford et al. 2021) as clean-fid runs it, and the texts of CLIP score.

OpenAI's archive itself computes in half precision on the first GPU; so its weights are taken, and
the network is written here, in float32 on any device. clean-fid does the same on a CPU.

Legend: B batch, H W pixels, T tokens, D features, K classes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy
import torch
from torch import Tensor, nn

from fleetstep.errors import ExtractorError
from fleetstep.evaluation.network_extractor import (
    Float32,
    NetworkExtractor,
    UInt8,
    normalised,
)
from fleetstep.evaluation.pillow_resize import bicubic
from fleetstep.evaluation.spec import CLIP_NAME, ClipSpec
from fleetstep.evaluation.weight_files import fill, load_script, read_weights

BATCH = 32
SIDE = 224
PATCH = 32
WIDTH = 768
DEPTH = 12
HEADS = 12
FEATURES = 512
CHANNEL_MEANS = (0.48145466, 0.4578275, 0.40821073)
CHANNEL_DEVIATIONS = (0.26862954, 0.26130258, 0.27577711)
PREPROCESS = (
    "clean-fid clip: PIL bicubic in uint8, shorter side to 224, centre crop; /255, -mean, /sd"
)
_REMEDY = (
    "get OpenAI's ViT-B-32.pt yourself and give its path and sha256: "
    "extractor={kind: clip, path: ..., sha256: ...}"
)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)}
        )

    def forward(self, x_BTD: Tensor) -> Tensor:
        h_BTD = self.ln_1(x_BTD)
        x_BTD = x_BTD + self.attn(h_BTD, h_BTD, h_BTD, need_weights=False)[0]
        h_BTF = self.mlp["c_fc"](self.ln_2(x_BTD))
        # The approximation of GELU that CLIP was trained with.
        after: Tensor = x_BTD + self.mlp["c_proj"](h_BTF * torch.sigmoid(1.702 * h_BTF))
        return after


class ImageTower(nn.Module):
    """The transformer of images; its tensors are named as in the archive, less `visual.`.

    Args:
        width, depth, heads: of the transformer.
        features: length of an embedding.
        side: of the images in pixels.
    """

    def __init__(
        self,
        width: int = WIDTH,
        depth: int = DEPTH,
        heads: int = HEADS,
        features: int = FEATURES,
        side: int = SIDE,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, PATCH, PATCH, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(1 + (side // PATCH) ** 2, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = nn.ModuleDict(
            {"resblocks": nn.ModuleList(_Block(width, heads) for _ in range(depth))}
        )
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.empty(width, features))

    def forward(self, x_B3HW: Tensor) -> Tensor:
        """Embeddings, not normalised: (B, 3, side, side) to (B, features)."""
        patches_BPD = self.conv1(x_B3HW).flatten(2).transpose(1, 2)
        class_B1D = self.class_embedding.expand(len(x_B3HW), 1, -1)
        x_BTD = self.ln_pre(torch.cat([class_B1D, patches_BPD], 1) + self.positional_embedding)
        for block in self.transformer["resblocks"]:  # type: ignore[attr-defined]
            x_BTD = block(x_BTD)
        embeddings: Tensor = self.ln_post(x_BTD[:, 0]) @ self.proj
        return embeddings


def clip(spec: ClipSpec, device: str = "cpu") -> NetworkExtractor:
    """CLIP's image tower from OpenAI's archive, whose digest is checked.

    Raises:
        ExtractorError: the weights are missing, not the file they should be, or of another
            network.
    """
    path = Path(spec.path)
    content = read_weights(path, spec.sha256, "CLIP", _REMEDY)
    held: dict[str, Tensor] = load_script(content, path, "cpu").state_dict()
    prefix = "visual."
    tensors = {k.removeprefix(prefix): v for k, v in held.items() if k.startswith(prefix)}
    with torch.device("meta"):
        network = ImageTower()
    fill(network, tensors, str(path), _REMEDY)
    network.to(device)
    return NetworkExtractor(
        name=CLIP_NAME,
        digest=spec.sha256,
        dim=FEATURES,
        preprocess=PREPROCESS,
        prepare=resize_and_crop,
        network=lambda pixels_B3HW: (
            network(normalised(pixels_B3HW, CHANNEL_MEANS, CHANNEL_DEVIATIONS)),
            None,
        ),
        device=device,
        batch=BATCH,
    )


def resize_and_crop(images_nCHW: UInt8) -> Tensor:
    """uint8 [n, 1 or 3, H, W] to uint8 [n, 3, 224, 224]: shorter side resized, centre cut out."""
    height, width = images_nCHW.shape[2:]
    # The longer side is cut to a whole number of pixels, as torchvision does.
    scaled_height, scaled_width = (
        int(SIDE * length / min(height, width)) for length in (height, width)
    )
    top, left = (round((length - SIDE) / 2) for length in (scaled_height, scaled_width))
    resized_n3HW = bicubic(images_nCHW, scaled_height, scaled_width)
    return torch.from_numpy(resized_n3HW[:, :, top : top + SIDE, left : left + SIDE].copy())


def load_texts(spec: ClipSpec) -> Float32 | None:
    """CLIP's embeddings of the classes' texts, float32 [K, 512]; None if `spec` names no file.

    The file is a safetensors with `features` [K, 512], in the order of the labels.

    Raises:
        ExtractorError: the file is missing, or holds something else.
    """
    if spec.texts is None:
        return None
    remedy = (
        "write encode_text's output for one text a class, in the order of the labels, as "
        "`features` of a safetensors file"
    )
    try:
        held = safetensors.numpy.load(Path(spec.texts).read_bytes())
    except (OSError, safetensors.SafetensorError) as error:
        raise ExtractorError(f"there are no texts at {spec.texts}: {error}", remedy) from error
    texts_KD: npt.NDArray[np.generic] | None = held.get("features")
    if texts_KD is None or texts_KD.ndim != 2 or texts_KD.shape[1] != FEATURES:
        shapes = {name: array.shape for name, array in held.items()}
        raise ExtractorError(
            f"{spec.texts} must hold `features` of shape (classes, {FEATURES}), got {shapes}",
            remedy,
        )
    features_KD = texts_KD.astype(np.float32)
    if not (np.isfinite(features_KD).all() and np.abs(features_KD).max(1, initial=0).all()):
        raise ExtractorError(f"texts in {spec.texts} must be finite, none of them zero", remedy)
    return features_KD
