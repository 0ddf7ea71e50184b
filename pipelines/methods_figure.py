"""What each training method changes, drawn: writes docs/images/methods.png."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from torch import Tensor

from fleetstep.diffusion.objective import Objective, build_objective
from fleetstep.diffusion.process import Ddpm
from fleetstep.diffusion.spec import (
    CltsSpec,
    DdpmSpec,
    EdmSpec,
    FdmSpec,
    LogitNormalSpec,
    LogNormalSpec,
    MinSnrSpec,
    P2Spec,
    ProcessSpec,
    SpeedSpec,
    StepsThreshold,
    StrategySpec,
    VpSpec,
)

TARGET = Path(__file__).parent.parent / "docs" / "images" / "methods.png"
_DDPM = DdpmSpec()
_SPEED = SpeedSpec(threshold=StepsThreshold(count=700))
_STEPS = 10_000
# Okabe and Ito's colours, which also colour-blind readers can tell apart.
_COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")


def _objective(process: ProcessSpec, *strategies: StrategySpec) -> Objective:
    return build_objective(process, strategies, budget_images=100 * _STEPS, global_batch=100)


def _pmf(*strategies: StrategySpec, step: int = 0) -> Tensor:
    """Probability of every step of DDPM, times T."""
    objective = _objective(_DDPM, *strategies)
    assert isinstance(objective.process, Ddpm)
    share = objective.law(step).cdf(objective.process.table)
    return torch.diff(share, prepend=share.new_zeros(1)) * objective.process.steps


def _eps_weight(*strategies: StrategySpec) -> Tensor:
    """Weight of the eps-loss at every step of DDPM."""
    objective = _objective(_DDPM, *strategies)
    assert isinstance(objective.process, Ddpm)
    levels = objective.process.table
    return objective.weight(levels, _STEPS) * levels.square()


def _lines(axes: Axes, title: str, x: Tensor, lines: Sequence[tuple[str, Tensor]]) -> None:
    for (label, y), colour in zip(lines, _COLOURS, strict=False):
        axes.plot(x, y, label=label, color=colour, linewidth=1.6)
    axes.set_title(title, loc="left", fontsize=11)
    axes.legend(fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def draw(target: Path) -> None:
    """Input scales, laws of noise levels, loss weights and the clamp, a panel each."""
    figure, ((scale, law), (weight, clamp)) = plt.subplots(2, 2, figsize=(11, 7))
    sigma, steps = torch.logspace(-2.7, 1.9, 400, dtype=torch.float64), torch.arange(1000)
    inputs: tuple[tuple[str, ProcessSpec, tuple[StrategySpec, ...]], ...] = (
        ("edm", EdmSpec(), ()),
        ("edm + fdm, m = 1", EdmSpec(), (FdmSpec(),)),
        ("edm + fdm, m = 2", EdmSpec(), (FdmSpec(multiplier=2),)),
        ("vp", VpSpec(), ()),
        ("vp + fdm, m = 2", VpSpec(), (FdmSpec(multiplier=2),)),
    )
    scales = [(name, _objective(p, *s).coefficients(sigma).c_in) for name, p, s in inputs]
    _lines(scale, "Input scale c_in over the noise level", sigma, scales)
    scale.set_xscale("log")
    scale.set_xlabel("sigma")

    laws = [
        ("uniform", _pmf()),
        ("speed, k = 5", _pmf(_SPEED)),
        ("log_normal", _pmf(LogNormalSpec())),
        ("logit_normal", _pmf(LogitNormalSpec())),
        ("clts, at its end", _pmf(CltsSpec(), step=_STEPS)),
    ]
    _lines(law, "Law of DDPM's steps (times T)", steps, laws)
    law.set_xlabel("step i")

    weights = [
        ("uniform", _eps_weight()),
        ("speed, lam = 0.6", _eps_weight(_SPEED)),
        ("speed, released", _eps_weight(_SPEED.model_copy(update={"tail_weight": 1.0}))),
        ("p2", _eps_weight(P2Spec())),
        ("min_snr", _eps_weight(MinSnrSpec())),
    ]
    _lines(weight, "Weight of the eps-loss", steps, weights)
    weight.set_xlabel("step i")

    warm = build_objective(EdmSpec(), [FdmSpec()], budget_images=200_000, global_batch=512)
    caps = [
        (f"step {k}", warm.weight(sigma, k) * warm.coefficients(sigma).c_out.square())
        for k in (0, 50, 100, 150, 199, 200)
    ]
    _lines(clamp, "Warm-up of EDM's weight, relative to the full one", sigma, caps)
    clamp.set_xscale("log")
    clamp.set_xlabel("sigma")
    figure.tight_layout()
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    draw(TARGET)
    print(f"wrote {TARGET}")
