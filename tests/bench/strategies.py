"""What a strategy costs: a step of its objective over a step of its process's plain objective.

The network's forward and backward (DDPM++ of CIFAR-10, narrower so that it runs on two cores) and
the rest of the step (draws, levels, coefficients, weights, loss, its backward, what is learned)
are measured one after the other. A ratio takes the same network time above and below the line, so
that a difference of a thousandth is not lost in the noise of the convolutions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from pairs import PAIRS, Ratio, cpu_seconds
from torch import Tensor, nn

from fleetstep.diffusion.loss import DiffusionLoss, noise_at
from fleetstep.diffusion.objective import build_objective
from fleetstep.diffusion.spec import (
    AntUwSpec,
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
    TskDifCurSpec,
    VeSpec,
    VpSpec,
    WarmupSpec,
)
from fleetstep.networks.build import build_network
from fleetstep.networks.spec import DdpmppSpec
from fleetstep.training.adaptation import Adaptation
from fleetstep.training.group import current_group

SHAPE, BATCH = (3, 32, 32), 20
_TIMES = 20  # how often the rest of a step, some milliseconds, is repeated
_SPEED_700 = SpeedSpec(threshold=StepsThreshold(count=700))
_EDM, _VP, _VE, _DDPM = EdmSpec(), VpSpec(), VeSpec(), DdpmSpec()

CASES: tuple[tuple[str, ProcessSpec, tuple[StrategySpec, ...]], ...] = (
    ("edm + warmup", _EDM, (WarmupSpec(),)),
    ("edm + fdm", _EDM, (FdmSpec(multiplier=2),)),
    ("edm + speed", _EDM, (SpeedSpec(),)),
    ("edm + fdm + speed", _EDM, (FdmSpec(multiplier=2), SpeedSpec())),
    ("edm + p2", _EDM, (P2Spec(),)),
    ("edm + min_snr", _EDM, (MinSnrSpec(),)),
    ("vp + fdm", _VP, (FdmSpec(multiplier=2),)),
    ("ve + fdm", _VE, (FdmSpec(),)),
    ("ddpm + speed", _DDPM, (_SPEED_700,)),
    ("ddpm + speed, released", _DDPM, (
        _SPEED_700.model_copy(update={"reflected_pairs": True, "tail_weight": 1.0}),
    )),
    ("ddpm + p2", _DDPM, (P2Spec(),)),
    ("ddpm + min_snr", _DDPM, (MinSnrSpec(),)),
    ("ddpm + log_normal", _DDPM, (LogNormalSpec(),)),
    ("ddpm + logit_normal", _DDPM, (LogitNormalSpec(),)),
    ("ddpm + clts", _DDPM, (CltsSpec(),)),
    ("ddpm + ant_uw", _DDPM, (AntUwSpec(),)),
    ("ddpm + tskdif_cur", _DDPM, (TskDifCurSpec(),)),
)  # fmt: skip


def strategies() -> list[Ratio]:
    """Every strategy over its plain process."""
    network_step = _network_step()
    network_step()
    return [_ratio(name, process, specs, network_step) for name, process, specs in CASES]


def _ratio(
    name: str,
    process: ProcessSpec,
    specs: Sequence[StrategySpec],
    network_step: Callable[[], None],
) -> Ratio:
    plain, changed = _rest_of_step(process, ()), _rest_of_step(process, specs)
    pairs = []
    for _ in range(PAIRS):
        network_s = cpu_seconds(network_step)
        # The convolutions have emptied the caches: warm both up, then share the cost of many.
        plain(), changed()
        rests = [
            cpu_seconds(lambda run=run: [run() for _ in range(_TIMES)]) for run in (plain, changed)
        ]
        pairs.append((network_s + rests[0] / _TIMES, network_s + rests[1] / _TIMES))
    return Ratio(f"a step of {name}", process.kind, name, tuple(pairs))


def _network_step() -> Callable[[], None]:
    """Forward and backward of the bare network."""
    spec = DdpmppSpec(channels=32, blocks=2)
    network = build_network(spec, resolution=SHAPE[1], channels=SHAPE[0], classes=10, seed=0)
    x_BCHW = torch.from_numpy(noise_at(0, 0, BATCH, SHAPE).numpy())
    c_noise_B, labels_B = torch.linspace(-1, 1, BATCH), torch.arange(BATCH) % 10

    def step() -> None:
        network(x_BCHW, c_noise_B, labels_B).square().mean().backward()

    return step


class _Stub(nn.Module):
    """A network that costs next to nothing and has a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.1))

    def forward(self, x_BCHW: Tensor, c_noise_B: Tensor, labels_B: Tensor) -> Tensor:
        return self.gain * x_BCHW


def _rest_of_step(process: ProcessSpec, specs: Sequence[StrategySpec]) -> Callable[[], None]:
    """All of a step but the network; noise is drawn ahead, as in training."""
    objective = build_objective(process, specs, budget_images=200_000, global_batch=BATCH)
    denoise, loss_of = objective.denoiser(_Stub()), DiffusionLoss(objective)
    adaptation = Adaptation(objective, current_group(torch.device("cpu")), None)
    x0_BCHW = noise_at(1, 0, BATCH, SHAPE).clamp(-1, 1)
    eps_BCHW, labels_B = noise_at(2, 0, BATCH, SHAPE), torch.arange(BATCH) % 10
    step = 0

    def rest() -> None:
        nonlocal step
        first = step * BATCH
        u_B = objective.coupling.uniforms(0, first, BATCH)
        sigma_B = objective.levels(u_B, first, step, adaptation.state)
        losses = loss_of.parts(denoise, x0_BCHW, labels_B, sigma_B, eps_BCHW, step)
        adaptation.weighted(losses.denoising_B, first).mean().backward()
        adaptation.advance()
        step += 1

    return rest
