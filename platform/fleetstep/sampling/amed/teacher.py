"""What the student of a distillation is shown.

Legend: B batch, C channels, H W pixels, N points, M teacher levels between two of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fleetstep.errors import SamplingError
from fleetstep.sampling.denoiser import FeatureDenoiser, shared_range
from fleetstep.sampling.schedules import sigmas
from fleetstep.sampling.spec.amed_training import AmedTrainingSpec
from fleetstep.sampling.trajectory import sample

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
        low, high = shared_range(denoiser)
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
