"""The exact denoiser of a finite dataset: a perfectly trained model without weights.

For data that are n images a_j, each as likely as the others,

    D(x; sigma) = sum_j w_j a_j / sum_j w_j,   w_j = exp(-|x - a_j|^2 / (2 sigma^2))

(Karras et al. 2022, eq. 57). A solver with enough calls gives back images of the dataset, and what
its samples lack with fewer is the solver's error alone.

Sums over pixels and over images are exact. 255 a_j is a vector of whole numbers k_j, and what is
multiplied with it, the state or the weights, is cut into two pieces of so few bits that float64
holds every partial sum. So a row has the same bits whatever rows are beside it, however many they
are and however a product is split over threads; and of |x - a_j|^2, which is divided by as little
as 0.002^2, the differences between images are known to the last digit of the state.

Legend: B batch, C channels, H W pixels, D = C H W, n images of the dataset, c of them in a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fleetstep.errors import SamplingError
from fleetstep.sampling.spec import SIGMA_MAX, SIGMA_MIN

CHUNK_BYTES = 64 * 2**20
"""Of a float64 array at a time: the dataset itself stays uint8."""

_SCALE = 255
"""k = 255 a = 2 v - 255 of a pixel v = 0 ... 255: eight bits and a sign."""

_FACTOR_BITS = 8
_EXACT_BITS = 53


class FiniteDenoiser(nn.Module):
    """D(x; sigma) of a finite dataset, conditional on the class if its images are labelled.

    A row's data are the images of its class; a row of class -1, and every row of a call without
    labels, has them all. It is in evaluation mode, and gradients do not pass through it.

    Args:
        images_nCHW: the dataset, uint8.
        labels_n: int64 class ids; None for an unlabelled dataset.
        classes: number of classes; 0 for an unlabelled dataset.

    Attributes:
        nfe: calls so far; one call on a batch counts one.
        sigma_min, sigma_max: the range that samplers walk; D itself takes any level above 0.

    Raises:
        SamplingError: there is no image, or a class has none.
    """

    labels_n: Tensor

    def __init__(
        self,
        images_nCHW: npt.NDArray[np.uint8],
        labels_n: npt.NDArray[np.int64] | None = None,
        classes: int = 0,
    ) -> None:
        super().__init__()
        ids_n = np.full(len(images_nCHW), -1) if labels_n is None else labels_n
        _check_data(len(images_nCHW), ids_n, classes)
        self.shape, self.classes = images_nCHW.shape[1:], classes
        self.sigma_min, self.sigma_max, self.nfe = SIGMA_MIN, SIGMA_MAX, 0
        pixels_nD = torch.from_numpy(images_nCHW.reshape(len(images_nCHW), -1).copy())
        # A parameter, because images are drawn where a denoiser's parameters are.
        self.pixels_nD = nn.Parameter(pixels_nD, requires_grad=False)
        self.register_buffer("labels_n", torch.from_numpy(ids_n.astype(np.int64)))
        self.eval()

    @torch.no_grad()
    def forward(
        self, x_BCHW: Tensor, sigma: Tensor | float, labels_B: Tensor | None = None
    ) -> Tensor:
        """The expected clean image [B, C, H, W], computed in float64, in the dtype of x.

        Args:
            x_BCHW: an image of the dataset + sigma eps.
            sigma: level above 0, one for the batch or one a row (shape [B]).
            labels_B: class ids (int64), -1 for "no class", or None.

        Raises:
            SamplingError: images of another shape, or a class that the dataset does not have.
        """
        self._check_call(x_BCHW, labels_B)
        self.nfe += 1
        sigma_B = torch.as_tensor(sigma, dtype=torch.float64, device=x_BCHW.device)
        if labels_B is None:
            labels_B = self.labels_n.new_full((len(x_BCHW),), -1)
        y_BD = x_BCHW.flatten(1).double() * _SCALE
        scaled_B1 = sigma_B.expand(len(x_BCHW))[:, None] * _SCALE
        # Rows are independent to the last bit, so cutting the batch changes nothing.
        size = max(1, CHUNK_BYTES // (8 * len(self.pixels_nD)))
        parts = []
        for first in range(0, len(y_BD), size):
            rows = slice(first, first + size)
            parts.append(self._mean(self._weights(y_BD[rows], scaled_B1[rows], labels_B[rows])))
        return torch.cat(parts).reshape(x_BCHW.shape).to(x_BCHW.dtype)

    def _weights(self, y_BD: Tensor, sigma_B1: Tensor, labels_B: Tensor) -> Tensor:
        """w_j [B, n] over the largest of its row; state and levels in units of 1 / 255."""
        bits = _EXACT_BITS - 1 - _FACTOR_BITS - (y_BD.shape[1] - 1).bit_length()
        # 255 at least, so that |k|^2 has room beside y k.
        top_B1 = _power_above(y_BD.abs().amax(1, keepdim=True).clamp(min=_SCALE))
        cut_BD, rest_BD = _two_pieces(y_BD, top_B1, bits)
        # -|y - k|^2 / 2 but for |y|^2 / 2, which all images share: y k - |k|^2 / 2.
        near, more = [], []
        for _, k_cD in self._chunks():
            near.append(cut_BD @ k_cD.T - k_cD.square().sum(1) / 2)
            more.append(rest_BD @ k_cD.T)
        near_Bn, more_Bn = torch.cat(near, dim=1), torch.cat(more, dim=1)
        others_Bn = (labels_B[:, None] >= 0) & (labels_B[:, None] != self.labels_n)
        near_Bn = near_Bn.masked_fill(others_Bn, -torch.inf)
        # What the nearest image leads by is exact; only then are numbers of its size rounded.
        lead_Bn = near_Bn - near_Bn.amax(1, keepdim=True) + more_Bn
        lead_Bn = lead_Bn - lead_Bn.amax(1, keepdim=True)
        return (lead_Bn / sigma_B1.square()).exp()

    def _mean(self, weights_Bn: Tensor) -> Tensor:
        """The images' mean [B, D] by these weights, of which a row's largest is 1."""
        bits = _EXACT_BITS - _FACTOR_BITS - len(self.pixels_nD).bit_length()
        cut_Bn, rest_Bn = _two_pieces(weights_Bn, torch.ones_like(weights_Bn[:, :1]), bits)
        cut_BD = rest_BD = weights_Bn.new_zeros(())
        for chunk, k_cD in self._chunks():
            cut_BD = cut_BD + cut_Bn[:, chunk] @ k_cD
            rest_BD = rest_BD + rest_Bn[:, chunk] @ k_cD
        total_B1 = cut_Bn.sum(1, keepdim=True) + rest_Bn.sum(1, keepdim=True)
        return (cut_BD + rest_BD) / (total_B1 * _SCALE)

    def _chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """The dataset as k [c, D] in float64, a bounded number of images at a time."""
        count, size = self.pixels_nD.shape
        step = max(1, CHUNK_BYTES // (8 * size))
        for first in range(0, count, step):
            chunk = slice(first, min(first + step, count))
            yield chunk, self.pixels_nD[chunk].double() * 2 - _SCALE

    def _check_call(self, x_BCHW: Tensor, labels_B: Tensor | None) -> None:
        if x_BCHW.shape[1:] != self.shape:
            raise SamplingError(
                f"the dataset's images have shape {tuple(self.shape)}, the state's have "
                f"{tuple(x_BCHW.shape[1:])}",
                "draw latents of the dataset's shape",
            )
        if labels_B is not None and bool((labels_B >= self.classes).any()):
            raise SamplingError(
                f"class ids must be below {self.classes}, the classes of the dataset, got "
                f"{int(labels_B.max())}",
                "give -1, or no labels, for the whole dataset",
            )


def _two_pieces(values: Tensor, top: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """`values`, none larger in size than the power of two `top`, as a sum: whole multiples of
    top 2^-bits, and what is left in those of top 2^-2bits.
    """
    unit, fine = top * 2.0**-bits, top * 2.0 ** (-2 * bits)
    cut = (values / unit).round() * unit
    return cut, ((values - cut) / fine).round() * fine


def _power_above(values: Tensor) -> Tensor:
    """The smallest power of two above each positive value."""
    # Divided by its mantissa: a power by `pow` or `ldexp` may miss by a bit.
    return values / values.frexp().mantissa


def _check_data(images: int, labels_n: npt.NDArray[np.int64], classes: int) -> None:
    if images == 0:
        raise SamplingError("an exact denoiser needs at least one image", "name a larger dataset")
    if classes == 0:
        return
    counts = np.bincount(labels_n, minlength=classes)
    if not counts.all():
        raise SamplingError(
            f"class {int(counts.argmin())} of {classes} has no image among the {images} used",
            "use more images of the dataset, so that every class has one",
        )
