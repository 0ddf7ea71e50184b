"""Processes as closed configs: how data is noised and what the network predicts."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, FiniteFloat, PositiveFloat, model_validator

from fleetstep.spec import Spec

HIGHEST_LEVEL = 1e15
"""Highest noise level that a beta may lead to: its squared error, summed over a million values, is
1e36, and float32 ends at 3e38."""

# No draw lies further from the mean: uniform numbers have 52 bits.
_MOST_DEVIATIONS = 8.3

Prediction = Literal["eps", "x0", "v", "F"]
"""What the network's output stands for: the noise, the clean image, the velocity alpha eps -
sigma_t x0 (Salimans and Ho 2022), or EDM's F (Karras et al. 2022, eq. 7)."""


class VpSpec(Spec):
    """Variance preserving: beta(t) = beta_min + beta_d t on t in (0, 1] (Song et al. 2021).

    Attributes:
        beta_min, beta_d: beta at t = 0, and its slope.
        beta_scale: multiplies beta everywhere, in process and conditioning: the step size of FDM,
            table 6 ("VP 2x", "VP 3x").
        t_min: smallest time of training.
        prediction: what the network predicts; Song et al. predict eps.
    """

    kind: Literal["vp"] = "vp"
    beta_min: PositiveFloat = 0.1
    beta_d: PositiveFloat = 19.9
    beta_scale: PositiveFloat = 1.0
    t_min: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    prediction: Prediction = "eps"

    @model_validator(mode="after")
    def _reach(self) -> Self:
        b = self.beta_scale * (self.beta_min + self.beta_d / 2)
        if b > 2 * math.log(HIGHEST_LEVEL):
            raise ValueError(
                f"beta_scale (beta_min + beta_d / 2) = {b:g} puts the highest noise level at "
                f"exp({b / 2:g}), above {HIGHEST_LEVEL:.0e}: use a smaller beta_scale, beta_min "
                "or beta_d"
            )
        return self


class VeSpec(Spec):
    """Variance exploding: noise added, signal untouched (Song et al. 2021).

    Training noise levels are log-uniform on [sigma_min, sigma_max].

    Attributes:
        sigma_min, sigma_max: range of noise levels, for training and sampling.
        prediction: what the network predicts. "eps" is Song et al.'s, whose network gives -eps
            (c_out = +sigma).
    """

    kind: Literal["ve"] = "ve"
    sigma_min: PositiveFloat = 0.02
    sigma_max: PositiveFloat = 100.0
    prediction: Prediction = "eps"

    @model_validator(mode="after")
    def _range(self) -> Self:
        _check_range(self.sigma_min, self.sigma_max)
        return self


class EdmSpec(Spec):
    """The EDM process: sigma(t) = t, no signal scaling (Karras et al. 2022, table 1).

    Attributes:
        sigma_data: standard deviation of the data, in units of images in [-1, 1].
        p_mean, p_std: training noise levels, ln sigma ~ N(p_mean, p_std^2).
        sigma_min, sigma_max: the range that samplers walk, within [0.002, 80], and the one FDM
            maps to its clock. Training levels are not cut to it.
        prediction: what the network predicts; EDM's own is F.
    """

    kind: Literal["edm"] = "edm"
    sigma_data: Annotated[float, Field(ge=1e-3, le=1e3)] = 0.5
    p_mean: FiniteFloat = -1.2
    p_std: PositiveFloat = 1.2
    sigma_min: PositiveFloat = 0.002
    sigma_max: PositiveFloat = 80.0
    prediction: Prediction = "F"

    @model_validator(mode="after")
    def _range(self) -> Self:
        _check_range(self.sigma_min, self.sigma_max)
        furthest = abs(self.p_mean) + _MOST_DEVIATIONS * self.p_std
        if furthest > math.log(HIGHEST_LEVEL):
            raise ValueError(
                f"|p_mean| + {_MOST_DEVIATIONS} p_std = {furthest:g} draws noise levels beyond "
                f"{HIGHEST_LEVEL:.0e} or its inverse: keep it below {math.log(HIGHEST_LEVEL):.1f}"
            )
        return self


class DdpmSpec(Spec):
    """The discrete process of Ho et al. (2020): steps i = 0 .. T-1, each as likely in training.

    Attributes:
        schedule: "linear" (beta from 1e-4 to 0.02), "quadratic" (linear in sqrt(beta), the same
            ends) or "cosine" (Nichol and Dhariwal 2021, eq. 17, beta at most 0.999).
        steps: T, at most 5000: the ends of the schedules do not depend on T, so that the highest
            noise level of the linear one grows as exp(T / 198).
        prediction: what the network predicts.
        learned_variance: the network also gives the variance of the reverse step, trained by its
            likelihood bound (Nichol and Dhariwal 2021, section 3.1; DiT's recipe). Its output has
            twice the image's channels.
    """

    kind: Literal["ddpm"] = "ddpm"
    schedule: Literal["linear", "quadratic", "cosine"] = "linear"
    steps: Annotated[int, Field(ge=2, le=5000)] = 1000
    prediction: Prediction = "eps"
    learned_variance: bool = False


ProcessSpec = Annotated[VpSpec | VeSpec | EdmSpec | DdpmSpec, Field(discriminator="kind")]
"""Every process a config can name, told apart by `kind`."""


def sigma_data_of(process: ProcessSpec) -> float:
    """Standard deviation of the data that the process assumes: 1, or EDM's sigma_data."""
    return process.sigma_data if isinstance(process, EdmSpec) else 1.0


def output_channels(process: ProcessSpec, channels: int) -> int:
    """Channels the network gives for images of `channels`: twice as many if it learns variance."""
    learns = isinstance(process, DdpmSpec) and process.learned_variance
    return 2 * channels if learns else channels


def _check_range(sigma_min: float, sigma_max: float) -> None:
    if sigma_min >= sigma_max:
        raise ValueError(
            f"sigma_min must lie below sigma_max, got {sigma_min} and {sigma_max}: change one"
        )
    if sigma_max > HIGHEST_LEVEL:
        raise ValueError(f"sigma_max must be at most {HIGHEST_LEVEL:.0e}, got {sigma_max}")
