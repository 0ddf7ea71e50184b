"""The two sides of distillation: what the student may ask for, and what the teacher shows.

Legend: B batch, C channels, H W pixels, N points, M teacher levels between two of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fleetstep.errors import SamplingError
from fleetstep.sampling.denoiser import FeatureDenoiser, per_image
from fleetstep.sampling.schedules import sigmas
from fleetstep.sampling.solvers.step import Level
from fleetstep.sampling.spec import SIGMA_MAX, SIGMA_MIN
from fleetstep.sampling.spec.amed_training import AmedTrainingSpec
from fleetstep.sampling.thresholding import thresholded
from fleetstep.sampling.trajectory import sample
from fleetstep.sampling.walk import analytical

# How far a level of the finer grid may be from the student's own by rounding.
_ROUNDING = 1e-9


class Teacher:
    """Shows trajectories of more steps on the same schedule.

    Args:
        denoiser: frozen, with guidance if there is any.
        spec: of the training.

    Attributes:
        levels: the student's N levels.

    Raises:
        SamplingError: the schedule's finer grid does not hold the student's levels.
    """

    def __init__(self, denoiser: FeatureDenoiser, spec: AmedTrainingSpec) -> None:
        self.denoiser = denoiser
        self._solver = spec.chosen_teacher.model_copy(update={"thresholding": spec.thresholding})
        self._stride = spec.chosen_intermediate + 1
        self._dtype: torch.dtype = getattr(torch, spec.dtype)
        low, high = max(SIGMA_MIN, denoiser.sigma_min), min(SIGMA_MAX, denoiser.sigma_max)
        schedule, points = spec.chosen_schedule, spec.chosen_points
        coarse = sigmas(schedule, points, low, high)
        self._fine = sigmas(schedule, self._stride * (points - 1) + 1, low, high)
        if not torch.allclose(self._fine[:: self._stride], coarse, rtol=_ROUNDING, atol=0):
            raise SamplingError(
                f"{schedule.label} with {self._stride - 1} levels between each two of {points} "
                "does not keep those: the teacher would stop elsewhere than the student",
                "use another schedule, such as polynomial",
            )
        self._fine[:: self._stride] = coarse
        self.levels: tuple[float, ...] = tuple(coarse.tolist())

    @torch.no_grad()
    def trajectory(self, x_T: Tensor, labels_B: Tensor | None) -> tuple[Tensor, ...]:
        """The teacher's images at the student's N levels, [B, C, H, W] each."""
        result = sample(
            self.denoiser, self._solver, self._fine, x_T, labels_B, dtype=self._dtype, trace=True
        )
        assert result.trace is not None
        return result.trace[:: self._stride]


class Lesson:
    """What a student may ask for in one loop; gradients pass through the network."""

    def __init__(
        self, denoiser: FeatureDenoiser, spec: AmedTrainingSpec, labels_B: Tensor | None
    ) -> None:
        self._denoiser, self._labels_B = denoiser, labels_B
        self._thresholding, self._analytical_is_due = spec.thresholding, spec.afs

    def denoise(self, x_BCHW: Tensor, sigma: Level) -> Tensor:
        """D at (x, sigma)."""
        return self._done(self._denoiser(x_BCHW, per_image(sigma, x_BCHW), self._labels_B))

    def denoise_with_features(self, x_BCHW: Tensor, sigma: Level) -> tuple[Tensor, Tensor | None]:
        """D and the features; the first D of a loop is analytical under AFS, without features."""
        if self._analytical_is_due:
            self._analytical_is_due = False
            return self._done(analytical(x_BCHW, sigma)), None
        denoised_BCHW, features = self._denoiser.with_features(
            x_BCHW, per_image(sigma, x_BCHW), self._labels_B
        )
        return self._done(denoised_BCHW), features

    def noise(self, k: int) -> Tensor:
        """Never asked for."""
        raise AssertionError(f"no student draws noise, asked for noise {k}")

    def _done(self, denoised_BCHW: Tensor) -> Tensor:
        if self._thresholding is None:
            return denoised_BCHW
        return thresholded(denoised_BCHW, self._thresholding)
