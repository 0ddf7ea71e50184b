"""Strategies as closed configs: each is a named change to what is trained."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import (
    Field,
    FiniteFloat,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from fleetstep.spec import Span, Spec


class Strategy(Spec):
    """What every strategy declares about itself.

    Facts:
        reconstruction: whether parameters of the published method could not be recovered, so that
            results under its name are ours; wherever such a strategy appears it is labelled so.
    """

    reconstruction: ClassVar[bool] = False
    kind: str

    @property
    def label(self) -> str:
        """The strategy's name for people."""
        return f"{self.kind} (reconstruction)" if self.reconstruction else self.kind


class WarmupSpec(Strategy):
    """Weight warm-up: a cap on the loss weight that grows from `start` to `stop` over `window`.

    Attributes:
        window: images, or a share of the budget, after which the cap reaches `stop`.
        release: "drop" removes the cap at the end of the window (FDM as released), "never" lets it
            grow on (paper).
    """

    kind: Literal["warmup"] = "warmup"
    start: PositiveFloat = 5.0
    stop: PositiveFloat = 500.0
    window: Span = 102_400
    release: Literal["drop", "never"] = "drop"

    @model_validator(mode="after")
    def _grows(self) -> Self:
        if self.stop < self.start:
            raise ValueError(
                f"the cap cannot shrink: start is {self.start}, stop {self.stop}; raise stop"
            )
        return self


class FdmSpec(Strategy):
    """FDM: a critically damped mean in place of c_in (FDM, eq. 5 and table 1).

    Attributes:
        multiplier: m of mu(m B(t')); 1 in the paper, 2 for EDM on CIFAR-10 and AFHQv2 as released.
        beta_min, beta_d: B(t') = beta_min t' + beta_d t'^2 / 2.
        time_map: t' is linear in sigma over the process's range (FDM, eq. 16, and as released),
            or the process's own time t(sigma), for VP only.
        clamp_t: keep t' within [0, 1]; released code lets noise levels beyond the process's range
            extrapolate.
        kernel: "multiplicative" is x_t = mu (x0 + sigma eps), as released (eq. 5, table 1);
            "additive" is x_t = mu x0 + sigma eps, as printed (eq. 14), for VP's eps-prediction
            only: its weights in x0-space would explode.
        warmup: FDM's weight warm-up; None switches it off.
    """

    kind: Literal["fdm"] = "fdm"
    multiplier: NonNegativeFloat = 1.0
    beta_min: NonNegativeFloat = 0.1
    beta_d: NonNegativeFloat = 19.9
    time_map: Literal["linear", "process_time"] = "linear"
    clamp_t: bool = False
    kernel: Literal["multiplicative", "additive"] = "multiplicative"
    warmup: WarmupSpec | None = WarmupSpec()


class StepsThreshold(Spec):
    """The threshold lies after `count` of DDPM's T steps: SpeeD's released 700 of 1000."""

    kind: Literal["steps"] = "steps"
    count: PositiveInt = 700


class QuantileThreshold(Spec):
    """The threshold lies where the base law's cumulative probability is `q`."""

    kind: Literal["quantile"] = "quantile"
    q: Annotated[float, Field(gt=0, lt=1)]


class MagnitudeThreshold(Spec):
    """The threshold lies where 1 + (sigma / sd_ref)^2 = 1 / abar = r; 700 of 1000 is r = 138.6.

    Attributes:
        rule: "exact" uses the process's own noise levels; "closed_form" SpeeD's tau(r) for the
            linear schedule, where abar is bounded by an exponential (theorem 1).
    """

    kind: Literal["magnitude"] = "magnitude"
    r: Annotated[float, Field(gt=1)] = 138.6
    rule: Literal["exact", "closed_form"] = "exact"


class SlopeThreshold(Spec):
    """The threshold lies where sqrt(1 - abar) grows by less than `slope` a DDPM step.

    SpeeD's first public version: 642, 829 and 959 of 1000 steps of the linear, quadratic and
    cosine schedules.
    """

    kind: Literal["slope"] = "slope"
    slope: PositiveFloat = 1e-4


Threshold = Annotated[
    StepsThreshold | QuantileThreshold | MagnitudeThreshold | SlopeThreshold,
    Field(discriminator="kind"),
]


class SpeedSpec(Strategy):
    """SpeeD: asymmetric noise levels and change-aware weights (SpeeD, eq. 3 and section 2.6).

    Attributes:
        k: how many times denser levels below the threshold are drawn, relative to the base law,
            than those above.
        lam: change-aware weights lie in [1 - lam, lam].
        threshold: where suppression begins. It is a noise level of the process: it stays there
            where another strategy has replaced the law.
        sampling, weighting: the two halves of the method, each of which can be switched off.
        sd_ref: standard deviation that measures a noise level; None takes the process's
            (sigma_data for EDM).
        change: how the change g of the process is measured. "closed_form" is the paper's formula
            (ddpm, linear schedule); "finite_difference" that of 1 - abar (ddpm, as released);
            "quantile" d Psi / du over quantiles of the base law (any process); "sigma_dot" the
            paper's Sigma-dot = 2 d(s^2 sigma^2)/dt with its anchors (any process; depends on the
            unit of time). None is closed_form, finite_difference or quantile, the first that
            applies.
        reflected_pairs: every second level is the reflection of the one before it, i -> |M - i|:
            in SpeeD's released code and not in the paper; worth about 1.7 FID there.
        reflect_at: M as a quantile of the base law; None is the released rule, for ddpm only
            (642, 829, 959 of 1000 steps).
        tail_weight: weight of all levels above the threshold in place of the change-aware one; the
            released code has 1.
        normalize: "mean_one" divides the weights by their mean over the base law, so that SpeeD
            does not change their ratio to the variance bound.
    """

    kind: Literal["speed"] = "speed"
    k: Annotated[float, Field(ge=1)] = 5.0
    lam: Annotated[float, Field(ge=0.5, le=1)] = 0.6
    threshold: Threshold = MagnitudeThreshold()
    sampling: bool = True
    weighting: bool = True
    sd_ref: PositiveFloat | None = None
    change: Literal["closed_form", "finite_difference", "quantile", "sigma_dot"] | None = None
    reflected_pairs: bool = False
    reflect_at: Annotated[float, Field(gt=0, lt=1)] | None = None
    tail_weight: PositiveFloat | None = None
    normalize: Literal["none", "mean_one"] = "none"


class UniformSpec(Strategy):
    """Uniform steps (Ho et al. 2020): the baseline that samplers of noise levels are held to."""

    kind: Literal["uniform"] = "uniform"


class P2Spec(Strategy):
    """P2: the eps-loss weighted by (k + SNR)^-gamma (Choi et al. 2022, eq. 8)."""

    kind: Literal["p2"] = "p2"
    k: PositiveFloat = 1.0
    gamma: NonNegativeFloat = 1.0


class MinSnrSpec(Strategy):
    """Min-SNR: the x0-loss weighted by min(SNR, gamma) (Hang et al. 2023, section 3.4)."""

    kind: Literal["min_snr"] = "min_snr"
    gamma: PositiveFloat = 5.0


class LogNormalSpec(Strategy):
    """Noise levels ln sigma ~ N(mean, std^2) on any process (Karras et al. 2022, table 1)."""

    kind: Literal["log_normal"] = "log_normal"
    mean: FiniteFloat = -1.2
    std: PositiveFloat = 1.2


class LogitNormalSpec(Strategy):
    """Times u = sigmoid(mean + std z) of a process with uniform time (Esser et al. 2024, 3.1)."""

    kind: Literal["logit_normal"] = "logit_normal"
    mean: FiniteFloat = 0.0
    std: PositiveFloat = 1.0


class CltsSpec(Strategy):
    """CLTS: from uniform steps to a Gaussian around `mean` T, over `window` (Xu et al. 2024).

    A reconstruction: the width of the Gaussian could not be recovered.

    Attributes:
        mean, std: of the Gaussian, as shares of T; 0.3 is the authors', 0.2 ours.
        window: images, or a share of the budget, after which only the Gaussian is left.
    """

    reconstruction: ClassVar[bool] = True
    kind: Literal["clts"] = "clts"
    mean: Annotated[float, Field(ge=0, le=1)] = 0.3
    std: PositiveFloat = 0.2
    window: Span = "100%"


class AntUwSpec(Strategy):
    """ANT-UW: noise levels in clusters, weighted by learned uncertainty (Go et al. 2023).

    A reconstruction: clusters are equal shares of the law that is drawn from; the paper also
    clusters by SNR and by gradients.

    Attributes:
        clusters: K; each gets as many samples of every global batch.
        lr: AdamW learning rate of the K uncertainties.
    """

    reconstruction: ClassVar[bool] = True
    kind: Literal["ant_uw"] = "ant_uw"
    clusters: Annotated[int, Field(ge=2)] = 5
    lr: Annotated[float, Field(gt=0, le=1)] = 0.025


class TskDifCurSpec(Strategy):
    """TskDif-Cur: a curriculum from high noise to all of it (Kim et al. 2024).

    A reconstruction: `clusters` and `patience` are from memory.

    Attributes:
        clusters: N equal shares of the base law, of which the noisiest is trained first.
        patience: optimiser steps without a lower loss after which the next share is added.
    """

    reconstruction: ClassVar[bool] = True
    kind: Literal["tskdif_cur"] = "tskdif_cur"
    clusters: Annotated[int, Field(ge=2)] = 20
    patience: PositiveInt = 200


StrategySpec = Annotated[
    WarmupSpec
    | FdmSpec
    | SpeedSpec
    | UniformSpec
    | P2Spec
    | MinSnrSpec
    | LogNormalSpec
    | LogitNormalSpec
    | CltsSpec
    | AntUwSpec
    | TskDifCurSpec,
    Field(discriminator="kind"),
]
"""Every strategy a config can name, told apart by `kind`."""
