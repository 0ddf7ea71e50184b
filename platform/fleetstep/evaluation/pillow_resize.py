"""Bicubic resizing by Pillow in uint8, as extractors whose authors resize that way need it.

Legend: n images, C channels, H W pixels.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from fleetstep.evaluation.network_extractor import UInt8, as_rgb


def bicubic(images_nCHW: UInt8, height: int, width: int) -> UInt8:
    """uint8 [n, 1 or 3, H, W] to uint8 [n, 3, height, width], one image after the other.

    Rounded to whole grey levels, the same on every device, and with the filter widened where
    images shrink.
    """
    resized_n3HW = np.empty((len(images_nCHW), 3, height, width), np.uint8)
    for index, image_HW3 in enumerate(as_rgb(images_nCHW).transpose(0, 2, 3, 1)):
        picture = Image.fromarray(np.ascontiguousarray(image_HW3))
        resized = picture.resize((width, height), Image.Resampling.BICUBIC)
        resized_n3HW[index] = np.asarray(resized).transpose(2, 0, 1)
    return resized_n3HW
