"""Where a trajectory stopped being finite: it is walked again, and every output looked at.

Legend: B batch, C channels, H W pixels.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from fleetstep.errors import NonFiniteError
from fleetstep.sampling.denoiser import per_image
from fleetstep.sampling.solvers.step import Level, Problem, State, Step


def not_finite(x_BCHW: Tensor) -> Tensor:
    """Which images hold a number that is not finite: bool [B]."""
    return ~torch.isfinite(x_BCHW).flatten(1).all(dim=1)


class _Checked:
    """A problem that says where an output is not finite."""

    def __init__(self, problem: Problem, where: str) -> None:
        self._problem, self._where = problem, where

    def denoise(self, x_BCHW: Tensor, sigma: Level) -> Tensor:
        return self._sound(self._problem.denoise(x_BCHW, sigma), sigma)

    def denoise_with_features(self, x_BCHW: Tensor, sigma: Level) -> tuple[Tensor, Tensor | None]:
        denoised_BCHW, features = self._problem.denoise_with_features(x_BCHW, sigma)
        return self._sound(denoised_BCHW, sigma), features

    def noise(self, k: int) -> Tensor:
        return self._problem.noise(k)

    def _sound(self, denoised_BCHW: Tensor, sigma: Level) -> Tensor:
        bad_B = not_finite(denoised_BCHW)
        if bool(bad_B.any()):
            image = int(bad_B.nonzero()[0, 0])
            level = float(per_image(sigma, denoised_BCHW)[image])
            raise NonFiniteError(
                f"the network's output is not finite at sigma = {level:g}, in {self._where}, for "
                f"{int(bad_B.sum())} of {len(denoised_BCHW)} images of the batch (first: {image})",
                "suspect weights or precision: look at the run's losses, or use a float32 network",
                image,
            )
        return denoised_BCHW


def raise_where(
    step: Step, problem: Problem, state: State, levels: list[float], end_BCHW: Tensor
) -> None:
    """Walk again, looking at every output: looking each time would wait for the device.

    Raises:
        NonFiniteError: always; if all outputs are finite, it names the step that overflowed.
    """
    for i, (before, after) in enumerate(pairwise(levels)):
        where = f"step {i + 1} of {len(levels) - 1} ({before:g} to {after:g})"
        state = step(_Checked(problem, where), state)
        if not bool(torch.isfinite(state.x_BCHW).all()):
            raise NonFiniteError(
                f"the image is not finite after {where}, and the network's outputs are",
                "use more network calls or a schedule with smaller steps",
                int(not_finite(state.x_BCHW).nonzero()[0, 0]),
            )
    raise NonFiniteError(
        f"the image is not finite after the last of {len(levels) - 1} steps, at sigma = "
        f"{levels[-1]:g}; every step is finite when walked again",
        "suspect the call that denoises at the end, or a network that is not deterministic",
        int(not_finite(end_BCHW).nonzero()[0, 0]),
    )
