"""Where in a step the second slope is best taken: a search over r (AMED, section 3.3 and Fig. 5).

Legend: B images, C channels, H W pixels, N levels of the coarse trajectory, R ratios.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fleetstep.sampling.amed.plugin import plugin_step
from fleetstep.sampling.amed.predictor import Learned
from fleetstep.sampling.denoiser import Denoiser, per_image
from fleetstep.sampling.solvers.step import Level, State
from fleetstep.sampling.spec import StudentSpec


@dataclass(frozen=True)
class Alignment:
    """How the intermediate level of each step decides where the step ends (AMED, Fig. 5).

    Args:
        student: kind of the solver.
        levels: N levels.
        ratios: values of r that were tried; the intermediate level is s'^r s^(1 - r).
        distances: [N - 1][R]: root of the mean over images of ||x' - y||^2 to the reference y.
        best: the r chosen at each step.
        baseline, searched: [N - 1]: the same distance along the trajectory of r = 1/2, and along
            the one that takes each step's best r.
    """

    student: str
    levels: tuple[float, ...]
    ratios: tuple[float, ...]
    distances: tuple[tuple[float, ...], ...]
    best: tuple[float, ...]
    baseline: tuple[float, ...]
    searched: tuple[float, ...]


def align(
    denoiser: Denoiser,
    student: StudentSpec,
    levels: tuple[float, ...],
    reference: tuple[Tensor, ...],
    ratios: tuple[float, ...],
    labels: Tensor | None = None,
) -> Alignment:
    """Search greedily, step by step, the r whose step ends nearest; c and a stay one.

    A step's first call is made once for all ratios.

    Args:
        denoiser: see `sample`.
        student: AMED-Solver or `dpm2`, which remember nothing between steps.
        levels: those of the coarse trajectory.
        reference: the fine trajectory's images [B, C, H, W] at these levels.
        ratios: r to try, in (0, 1].
        labels: class ids [B], or None.
    """
    searched = baseline = reference[0]
    best, distances, kept, plain = [], [], [], []
    for i, target in enumerate(reference[1:]):
        problem = _Step(denoiser, labels)
        ends = [_moved(student, levels, i, problem, searched, r) for r in ratios]
        row = [_distance(end, target) for end in ends]
        chosen = min(range(len(ratios)), key=row.__getitem__)
        baseline = _moved(student, levels, i, _Step(denoiser, labels), baseline, 0.5)
        searched = ends[chosen]
        best.append(ratios[chosen])
        distances.append(tuple(row))
        kept.append(row[chosen])
        plain.append(_distance(baseline, target))
    return Alignment(
        student.kind, levels, ratios, tuple(distances), tuple(best), tuple(plain), tuple(kept)
    )


def _moved(
    student: StudentSpec,
    levels: tuple[float, ...],
    i: int,
    problem: _Step,
    x_BCHW: Tensor,
    r: float,
) -> Tensor:
    """The image after the i-th step with this r."""
    ratio_B111 = torch.full((1, 1, 1, 1), r, dtype=torch.float64, device=x_BCHW.device)
    learned = Learned(ratio_B111, torch.ones_like(ratio_B111), torch.ones_like(ratio_B111))
    step = plugin_step(student, levels, lambda features, before, after: learned)
    return step(problem, State(i, x_BCHW)).x_BCHW


class _Step:
    """The problem of one step from one image: its first evaluation, the one that asks for
    features, is made once.
    """

    def __init__(self, denoiser: Denoiser, labels_B: Tensor | None) -> None:
        self._denoiser, self._labels_B = denoiser, labels_B
        self._first: Tensor | None = None

    def denoise(self, x_BCHW: Tensor, sigma: Level) -> Tensor:
        return self._denoiser(x_BCHW, per_image(sigma, x_BCHW), self._labels_B)

    def denoise_with_features(self, x_BCHW: Tensor, sigma: Level) -> tuple[Tensor, None]:
        if self._first is None:
            self._first = self.denoise(x_BCHW, sigma)
        return self._first, None

    def noise(self, k: int) -> Tensor:
        raise NotImplementedError("no student draws noise")


def _distance(x_BCHW: Tensor, y_BCHW: Tensor) -> float:
    return float((x_BCHW - y_BCHW).flatten(1).double().square().sum(1).mean().sqrt())
