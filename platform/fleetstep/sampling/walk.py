"""The problem that a solver meets on one trajectory: labels, noise, and what the first evaluation
is.

Legend: B batch, C channels, H W pixels, c h w bottleneck.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fleetstep.errors import SamplingError
from fleetstep.sampling.denoiser import Denoiser, FeatureDenoiser, per_image
from fleetstep.sampling.guidance import calls_per_evaluation
from fleetstep.sampling.solvers.step import Level
from fleetstep.sampling.spec import ThresholdingSpec
from fleetstep.sampling.thresholding import thresholded

Noise = Callable[[int], Tensor]
"""k -> the trajectory's k-th standard normal noise, [B, C, H, W]."""


@dataclass(frozen=True)
class FirstCall:
    """D(x_T; sigma_T) of a batch, made once for all deterministic cells that start there.

    Args:
        sigma: the level sigma_T.
        denoised_BCHW: D, in the dtype of the state.
        features: bottleneck features of the same call; None unless they were asked for.
    """

    sigma: float
    denoised_BCHW: Tensor
    features: Tensor | None = None


class Walk:
    """The problem of one trajectory; gradients are left as the caller has them.

    Args:
        denoiser: with guidance, if there is any.
        labels_B: class ids, or None.
        noise: for solvers that draw.
        starts_analytically: the first evaluation calls no network (AFS).
        thresholding: of every D.
        first_call: the first evaluation, if it was made already.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        labels_B: Tensor | None,
        noise: Noise | None = None,
        *,
        starts_analytically: bool = False,
        thresholding: ThresholdingSpec | None = None,
        first_call: FirstCall | None = None,
    ) -> None:
        self.denoiser, self._labels_B, self._noise = denoiser, labels_B, noise
        self._analytical, self._thresholding = starts_analytically, thresholding
        self._given, self._first_is_due = first_call, True
        self.calls_given = 0
        """Calls per image that the first call stands for and this walk did not make."""

    def again(self) -> Walk:
        """The same problem from its beginning."""
        return Walk(
            self.denoiser,
            self._labels_B,
            self._noise,
            starts_analytically=self._analytical,
            thresholding=self._thresholding,
            first_call=self._given,
        )

    def denoise(self, x_BCHW: Tensor, sigma: Level) -> Tensor:
        """D, thresholded; no network call where the first evaluation is analytical or given."""
        return self._evaluate(x_BCHW, sigma, features=False)[0]

    def denoise_with_features(self, x_BCHW: Tensor, sigma: Level) -> tuple[Tensor, Tensor | None]:
        """D as `denoise` has it, and the features; None where the evaluation was analytical."""
        return self._evaluate(x_BCHW, sigma, features=True)

    def noise(self, k: int) -> Tensor:
        """The k-th noise of the trajectory."""
        assert self._noise is not None, "checked before the walk"
        return self._noise(k)

    def _evaluate(
        self, x_BCHW: Tensor, sigma: Level, *, features: bool
    ) -> tuple[Tensor, Tensor | None]:
        first, self._first_is_due = self._first_is_due, False
        if first and self._analytical:
            denoised_BCHW, found = analytical(x_BCHW, sigma), None
        elif first and self._given is not None and not (features and self._given.features is None):
            denoised_BCHW, found = self._given.denoised_BCHW, self._given.features
            self.calls_given = calls_per_evaluation(self.denoiser)
        else:
            denoised_BCHW, found = self._call(x_BCHW, sigma, features)
        if self._thresholding is not None:
            denoised_BCHW = thresholded(denoised_BCHW, self._thresholding)
        return denoised_BCHW, found

    def _call(self, x_BCHW: Tensor, sigma: Level, features: bool) -> tuple[Tensor, Tensor | None]:
        sigma_B = per_image(sigma, x_BCHW)
        if not features:
            return self.denoiser(x_BCHW, sigma_B, self._labels_B), None
        if not isinstance(self.denoiser, FeatureDenoiser):
            raise SamplingError(
                "a learned solver reads the network's bottleneck features, and this denoiser "
                "declares none",
                "use a network of this package, or give the denoiser a method with_features",
            )
        return self.denoiser.with_features(x_BCHW, sigma_B, self._labels_B)


def analytical(x_BCHW: Tensor, sigma: Level) -> Tensor:
    """D from eps = x / sqrt(1 + sigma^2): exact for data of unit variance (AFS)."""
    if isinstance(sigma, Tensor):
        ratio: Level = (sigma / torch.hypot(sigma, torch.ones_like(sigma))).to(x_BCHW.dtype)
    else:
        ratio = sigma / math.hypot(1.0, sigma)
    return x_BCHW - ratio * x_BCHW
