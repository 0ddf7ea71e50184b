"""A torch network that turns images into features.

Features of an image must not depend on the images beside it: batches have one fixed size, the last
one is padded, batch size 1 (another convolution kernel, other last bits) never occurs, and TF32 is
off.

Legend: n images, B batch, C channels, H W pixels, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fleetstep.errors import ExtractorError
from fleetstep.evaluation.spec import IMAGE_CHANNELS

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

Network = Callable[[Tensor], tuple[Tensor, Tensor | None]]
"""A batch of inputs to features [B, D] and class probabilities [B, K], or None without classes."""


@dataclass(frozen=True, eq=False)
class Extracted:
    """What an extractor says of images.

    Args:
        features: float32 [n, D].
        probabilities: of the network's classes, float32 [n, K]; None where it does not classify.
    """

    features: Float32
    probabilities: Float32 | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class NetworkExtractor:
    """A torch network as an `Extractor`.

    Args:
        name: short name.
        digest: SHA-256 of the weights.
        dim: number of features.
        classes: number of class probabilities; 0 for none.
        preprocess: description of `prepare`.
        prepare: uint8 [b, C, H, W] to the network's input on the CPU, image by image.
        network: what is run on `device`.
        device: where the network is.
        batch: fixed batch size, at least 2.
    """

    name: str
    digest: str
    dim: int
    classes: int = 0
    preprocess: str
    prepare: Callable[[UInt8], Tensor]
    network: Network
    device: str
    batch: int

    @torch.inference_mode()
    def __call__(self, images_nCHW: UInt8) -> Extracted:
        """Features, and class probabilities if there are classes; row i is of image i alone.

        Raises:
            ExtractorError: images that the extractor cannot read.
        """
        _check_images(images_nCHW)
        count = len(images_nCHW)
        features_nD = np.empty((count, self.dim), np.float32)
        probabilities_nK = np.empty((count, self.classes), np.float32)
        for start in range(0, count, self.batch):
            part = slice(start, min(start + self.batch, count))
            features_BD, probabilities_BK = self._run(self.prepare(images_nCHW[part]))
            size = part.stop - start
            features_nD[part] = features_BD[:size].float().cpu().numpy()
            if probabilities_BK is not None:
                probabilities_nK[part] = probabilities_BK[:size].float().cpu().numpy()
        return Extracted(features_nD, probabilities_nK if self.classes else None)

    def _run(self, x_bCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """The network on one batch, padded to its fixed size."""
        x_BCHW = x_bCHW.new_zeros((self.batch, *x_bCHW.shape[1:]))
        x_BCHW[: len(x_bCHW)] = x_bCHW
        with torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        ):
            features_BD, probabilities_BK = self.network(x_BCHW.to(self.device))
        seen = (features_BD.shape, None if probabilities_BK is None else probabilities_BK.shape)
        wanted = ((self.batch, self.dim), (self.batch, self.classes) if self.classes else None)
        if seen != wanted:
            raise ExtractorError(
                f"features and probabilities of {self.name}@{self.digest[:8]} must have shapes "
                f"{wanted}, got {tuple(None if s is None else tuple(s) for s in seen)}",
                "the weights are of another network: give the file that this extractor is for",
            )
        return features_BD, probabilities_BK


def as_rgb(images_nCHW: UInt8) -> UInt8:
    """Images of three channels; grey ones repeat theirs. A view, uint8 [n, 3, H, W]."""
    return np.broadcast_to(images_nCHW, (len(images_nCHW), 3, *images_nCHW.shape[2:]))


def normalised(
    pixels_B3HW: Tensor, mean: tuple[float, ...], deviation: tuple[float, ...]
) -> Tensor:
    """Pixels 0..255 over 255, less the channels' mean, over their deviation; float32."""
    shape = (1, 3, 1, 1)
    mean_1311 = torch.tensor(mean, device=pixels_B3HW.device).view(shape)
    deviation_1311 = torch.tensor(deviation, device=pixels_B3HW.device).view(shape)
    return (pixels_B3HW.to(torch.float32) / 255 - mean_1311) / deviation_1311


def _check_images(images_nCHW: UInt8) -> None:
    shape = images_nCHW.shape
    if images_nCHW.dtype != np.uint8 or len(shape) != 4 or shape[1] not in IMAGE_CHANNELS:
        raise ExtractorError(
            "images to score are uint8 of shape (n, 1 or 3, height, width), "
            f"got {images_nCHW.dtype} {shape}",
            "round samples to 0..255 and put channels before pixels",
        )
