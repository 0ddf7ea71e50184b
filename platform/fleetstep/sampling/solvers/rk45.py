"""Dormand and Prince's adaptive pair over the whole batch (Song et al. 2021b).

Legend: B batch, C channels, H W pixels, S = B C H W numbers of the flattened system, N levels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fleetstep.errors import NonFiniteError, SamplingError
from fleetstep.sampling.schedules import VpTime
from fleetstep.sampling.solvers.step import Levels, Problem
from fleetstep.sampling.spec import Rk45Spec

Float64 = npt.NDArray[np.float64]

MOST_CALLS: Final = 100_000
"""Network calls after which an integration is given up; on mixtures of Gaussians a tolerance of
1e-13 needs 4000."""

# beta from 0.1 to 20 (Song et al. 2021b, appendix C).
_VP: Final = VpTime(beta_d=19.9, beta_min=0.1)


def integrate(problem: Problem, spec: Rk45Spec, levels: Levels, x_T: Tensor) -> list[Tensor]:
    """The image at each of `levels`, the first being x_T; in x_T's dtype, on its device.

    The batch is one float64 system on the host, so step sizes, and with them the calls, depend on
    all its images; inner levels are read from the interpolant and cost no call. The network sees
    float64 images on x_T's device, all at one level. No gradients pass.

    Args:
        problem: its denoise is called once per evaluation of the slope.
        spec: tolerances and the variable of integration. In "vp_time" the system is VP's: state
            y = x / sqrt(1 + sigma^2), beta from 0.1 to 20; score_sde's range t from 1 to 1e-3 is
            sigma from 152.167 to 0.0104860.
        levels: strictly descending and positive.
        x_T: [B, C, H, W] at levels[0].

    Raises:
        SamplingError: a level is zero, or the tolerance cannot be met.
        NonFiniteError: an output of the network is not finite.
    """
    if levels[-1] <= 0:
        raise SamplingError(
            f"{spec.label} cannot integrate to sigma = 0, where the slope has no value",
            "end at a positive level, and denoise with denoise_to_zero: true",
        )
    # Half a second to import, and no other solver needs it.
    from scipy.integrate import solve_ivp

    variable = _variable(spec)
    times_N = [variable.time(level) for level in levels]
    first_S = x_T.detach().double().flatten().cpu().numpy() * variable.scale(levels[0])
    slopes = _Slopes(problem, spec, variable, levels, x_T)
    solution = solve_ivp(
        slopes,
        (times_N[0], times_N[-1]),
        first_S,
        method="RK45",
        t_eval=times_N,
        rtol=spec.rtol,
        atol=spec.atol,
    )
    if not solution.success:
        raise slopes.unmet(f"its smallest step ({solution.message.rstrip('.')})")
    images = [
        _image(solution.y[:, i] / variable.scale(level), x_T).to(x_T.dtype)
        for i, level in enumerate(levels[1:], start=1)
    ]
    return [x_T, *images]


class _Scaled(NamedTuple):
    """The slope of the system's state y from x and D: rate y + gain (x - D)."""

    rate: float
    gain: float


class _Variable(Protocol):
    """What is integrated over, and the scale of the state: y = scale(sigma) x."""

    def time(self, sigma: float) -> float: ...

    def sigma(self, time: float) -> float: ...

    def scale(self, sigma: float) -> float: ...

    def slope(self, time: float, sigma: float) -> _Scaled: ...


class _Sigma:
    """dx/dsigma = (x - D) / sigma."""

    def time(self, sigma: float) -> float:
        return sigma

    def sigma(self, time: float) -> float:
        return time

    def scale(self, sigma: float) -> float:
        return 1.0

    def slope(self, time: float, sigma: float) -> _Scaled:
        return _Scaled(0.0, 1 / sigma)


class _LogSigma:
    """dx/dlog(sigma) = x - D."""

    def time(self, sigma: float) -> float:
        return math.log(sigma)

    def sigma(self, time: float) -> float:
        return math.exp(time)

    def scale(self, sigma: float) -> float:
        return 1.0

    def slope(self, time: float, sigma: float) -> _Scaled:
        return _Scaled(0.0, 1.0)


class _VpTime:
    """dy/dt = b/2 (eps sqrt(1 + sigma^2) / sigma - y), b = beta(t): VP's flow (Song et al. 2021b,
    eq. 13).
    """

    def time(self, sigma: float) -> float:
        return _VP.time(sigma)

    def sigma(self, time: float) -> float:
        return _VP.sigma(time)

    def scale(self, sigma: float) -> float:
        return 1 / math.sqrt(1 + sigma * sigma)

    def slope(self, time: float, sigma: float) -> _Scaled:
        half_b = 0.5 * (_VP.beta_min + _VP.beta_d * time)
        # eps = (x - D) / sigma.
        return _Scaled(-half_b, half_b * math.sqrt(1 + sigma * sigma) / (sigma * sigma))


def _variable(spec: Rk45Spec) -> _Variable:
    match spec.variable:
        case "sigma":
            return _Sigma()
        case "log_sigma":
            return _LogSigma()
        case "vp_time":
            return _VpTime()


@dataclass
class _Slopes:
    """dy/dt of the flattened system, as scipy asks for it."""

    problem: Problem
    spec: Rk45Spec
    variable: _Variable
    levels: Levels
    like: Tensor
    calls: int = field(default=0, init=False)
    sigma: float = field(default=math.nan, init=False)

    @torch.no_grad()
    def __call__(self, time: float, y_S: Float64) -> Float64:
        if self.calls >= MOST_CALLS:
            raise self.unmet(f"{MOST_CALLS} network calls")
        self.calls += 1
        # exp(log(80)) is not 80: the ends stay within the range that the network knows.
        sigma = min(max(self.variable.sigma(time), self.levels[-1]), self.levels[0])
        self.sigma = sigma
        x_BCHW = _image(y_S / self.variable.scale(sigma), self.like)
        pull_BCHW = x_BCHW - self.problem.denoise(x_BCHW, sigma)
        pull_S: Float64 = pull_BCHW.flatten().cpu().numpy()
        # scipy would halve a step for ever: no comparison with NaN is true.
        if not np.isfinite(pull_S).all():
            raise NonFiniteError(
                f"the network's output is not finite at sigma = {sigma:g}, in call {self.calls} "
                f"of {self.spec.label}",
                "suspect weights or precision: look at the run's losses, or use a float32 network",
            )
        rate, gain = self.variable.slope(time, sigma)
        slope_S = gain * pull_S
        return slope_S if rate == 0 else slope_S + rate * y_S

    def unmet(self, limit: str) -> SamplingError:
        """The refusal to go on from the level asked for last."""
        return SamplingError(
            f"{self.spec.label} cannot meet its tolerance near sigma = {self.sigma:g}: it reached "
            f"{limit}",
            "use larger rtol and atol, or a network that is trained further: an untrained one "
            "need not have a smooth flow",
        )


def _image(values_S: Float64, like: Tensor) -> Tensor:
    """The flattened system as float64 images, on the device of `like`."""
    return torch.from_numpy(values_S).reshape(like.shape).to(like.device)
