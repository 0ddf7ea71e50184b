"""CLIP score: how well images match the texts of their classes.

Legend: b images of a block, D features.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fleetstep.errors import ExtractorError
from fleetstep.evaluation.jackknife import CONFIDENCE, Estimate, check_sizes, mean_estimate
from fleetstep.evaluation.moments import Float32, Float64

SCALE = 100.0


def clip_score(
    images: Sequence[Float32], texts: Sequence[Float32], *, confidence: float = CONFIDENCE
) -> Estimate:
    """Mean over images of 100 max(cos(image, text), 0), higher is better.

    Hessel et al. 2021 multiply by 2.5; 100 is what papers on generated images report, and what
    torchmetrics computes.

    Args:
        images: CLIP's features of the images in two or more blocks of one size, [b, D].
        texts: the embedding of the text of each image, [b, D].
        confidence: of the interval.

    Raises:
        ExtractorError: images and texts differ in shape, or one has no direction.
        ValueError: blocks of different sizes.
    """
    check_sizes([len(block) for block in images])
    means = [
        SCALE * float(np.maximum(_cosines(image, text), 0.0).mean())
        for image, text in zip(images, texts, strict=True)
    ]
    return mean_estimate(means, confidence=confidence)


def _cosines(image_bD: Float32, text_bD: Float32) -> Float64:
    if image_bD.shape != text_bD.shape:
        raise ExtractorError(
            f"CLIP's features of images and texts have one shape, got {image_bD.shape} and "
            f"{text_bD.shape}",
            "embed the texts with the model whose images are scored",
        )
    x_bD, y_bD = np.asarray(image_bD, np.float64), np.asarray(text_bD, np.float64)
    length_b = np.linalg.norm(x_bD, axis=1) * np.linalg.norm(y_bD, axis=1)
    if not (length_b > 0).all():
        raise ExtractorError(
            "a CLIP embedding must be finite and not zero, and one of the images or texts is not",
            "look at the scored images and at the file of texts",
        )
    return np.asarray(np.einsum("bD,bD->b", x_bD, y_bD) / length_b)
