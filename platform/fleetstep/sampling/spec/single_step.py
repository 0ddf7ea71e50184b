"""Solvers that remember nothing, or only within a step: Euler, the Runge-Kutta family, RK45."""

from __future__ import annotations

from typing import ClassVar, Literal, NoReturn, Self

from pydantic import Field, model_validator

from fleetstep.errors import SamplingError
from fleetstep.sampling.spec.facts import SolverFacts
from fleetstep.sampling.spec.schedules import LogSnrSpec, PolynomialSpec


class EulerSpec(SolverFacts):
    """Euler's method on dx/dsigma, the same as DDIM (Song et al. 2021, eq. 13): first order."""

    kind: Literal["euler"] = "euler"
    default_schedule: ClassVar = PolynomialSpec()

    @property
    def global_order(self) -> int:
        """First order."""
        return 1


class HeunSpec(SolverFacts):
    """EDM's sampler, ends at zero: NFE 2N - 1 (Karras et al. 2022, Algorithms 1 and 2).

    Attributes:
        s_churn, s_min, s_max, s_noise: Algorithm 2's stochasticity: between s_min and s_max each
            step first adds noise, of s_noise times the standard deviation that is due. s_max None
            is no upper limit; no level above the network's highest is ever reached.
    """

    kind: Literal["heun"] = "heun"
    s_churn: float = Field(0.0, ge=0)
    s_min: float = Field(0.0, ge=0)
    s_max: float | None = Field(None, gt=0)
    s_noise: float = Field(1.0, gt=0)
    evals_per_step: ClassVar = 2
    goes_to_zero: ClassVar = True
    default_schedule: ClassVar = PolynomialSpec()

    @model_validator(mode="after")
    def _churns_somewhere(self) -> Self:
        if self.s_max is not None and self.s_max < self.s_min:
            raise ValueError(f"s_max must not be below s_min, got {self.s_max:g}, {self.s_min:g}")
        return self

    @property
    def stochastic(self) -> bool:
        """Whether there is churn."""
        return self.s_churn > 0

    @property
    def global_order(self) -> int:
        """Second order, without churn."""
        return 2


class HeunAbSpec(SolverFacts):
    """Heun's method from a to b: N points, and no step to zero; DPM-Solver-2's form with r = 1."""

    kind: Literal["heun_ab"] = "heun_ab"
    evals_per_step: ClassVar = 2
    default_schedule: ClassVar = PolynomialSpec()

    @property
    def global_order(self) -> int:
        """Second order."""
        return 2


class Dpm2Spec(SolverFacts):
    """DPM-Solver-2 with a free intermediate level s'^r s^(1-r) (Lu et al. 2022; Karras et al.
    2022, Algorithm 3).

    Attributes:
        r: 1/2 is the geometric mean (DPM-Solver-2), 1 Heun's method.
    """

    kind: Literal["dpm2"] = "dpm2"
    r: float = Field(0.5, gt=0, le=1)
    evals_per_step: ClassVar = 2
    default_schedule: ClassVar = PolynomialSpec()
    shown: ClassVar = ("r",)

    @property
    def global_order(self) -> int:
        """Second order for any r."""
        return 2


class EdmAblationSpec(SolverFacts):
    """EDM's general form: any time, scaling and intermediate fraction (Karras et al. 2022,
    Algorithm 3 and Table 1); ends at zero.

    Attributes:
        method: "euler", or "heun" with the fraction `alpha`.
        alpha: where in a step the second slope is taken, as a fraction in time: 1 is Heun, 1/2 the
            midpoint.
        coordinates: in what time and scaling the steps are straight: "sigma" (EDM), "ve" (t =
            sigma^2), or "vp" (the time and scaling of the VP process on this range).
    """

    kind: Literal["edm_ablation"] = "edm_ablation"
    method: Literal["euler", "heun"] = "heun"
    alpha: float = Field(1.0, gt=0, le=1)
    coordinates: Literal["sigma", "ve", "vp"] = "sigma"
    goes_to_zero: ClassVar = True
    default_schedule: ClassVar = PolynomialSpec()
    shown: ClassVar = ("method", "coordinates")

    @model_validator(mode="after")
    def _has_a_second_slope(self) -> Self:
        if self.method == "euler" and self.alpha != 1:
            raise ValueError(
                f"alpha is where Heun's second slope is taken, and method: euler has none; got "
                f"{self.alpha:g}, leave it out"
            )
        return self

    def evaluations(self, points: int, to_zero: bool) -> int:
        """One in a step of Euler's method, two in one of Heun's."""
        return (1 if self.method == "euler" else 2) * (points - 1) + to_zero

    @property
    def global_order(self) -> int:
        """That of the method."""
        return 1 if self.method == "euler" else 2


class DpmppSinglestepSpec(SolverFacts):
    """DPM-Solver(++) in single steps of `order` evaluations, the last ones of lower order so that
    every number of calls is reached (Lu et al. 2022, section 3.4; 2022b).

    Its points are the schedule's with each step's intermediate levels between them, equally spaced
    in log sigma: one call a point. With denoise_to_zero, order 3 is FDM's sampler of Table 4.

    Attributes:
        order: evaluations of a full step.
        prediction: "data" is DPM-Solver++, "noise" DPM-Solver.
    """

    kind: Literal["dpmpp_singlestep"] = "dpmpp_singlestep"
    order: int = Field(3, ge=2, le=3)
    prediction: Literal["data", "noise"] = "data"
    default_schedule: ClassVar = LogSnrSpec()
    shown: ClassVar = ("order",)

    @property
    def global_order(self) -> int:
        """That of the full steps, measured where all but the last two are full."""
        return self.order


class Rk45Spec(SolverFacts):
    """Dormand and Prince's adaptive pair over the whole batch as one system, as score_sde uses it
    (Song et al. 2021b); its calls are counted, and depend on what is in the batch.

    Attributes:
        rtol, atol: relative and absolute tolerance of a step; float64 can keep no rtol below
            1e-13.
        variable: what is integrated over: log sigma is the cheapest.
    """

    kind: Literal["rk45"] = "rk45"
    rtol: float = Field(1e-5, ge=1e-13)
    atol: float = Field(1e-5, gt=0)
    variable: Literal["log_sigma", "sigma", "vp_time"] = "log_sigma"
    adaptive: ClassVar = True
    default_schedule: ClassVar = PolynomialSpec()
    shown: ClassVar = ("rtol", "atol", "variable")

    @model_validator(mode="after")
    def _has_no_schedule(self) -> Self:
        if self.schedule is not None or self.afs:
            raise ValueError("rk45 chooses its own levels: leave out schedule and afs")
        return self

    @property
    def global_order(self) -> int:
        """Of the pair; the tolerance sets the error."""
        return 5

    def nfe_for(self, points: int, calls: int = 1, *, to_zero: bool | None = None) -> NoReturn:
        """Always refused: the calls follow from the tolerance and the batch.

        Raises:
            SamplingError: always.
        """
        self._refuse()

    def points_for(self, nfe: int, calls: int = 1) -> NoReturn:
        """Always refused, see `nfe_for`.

        Raises:
            SamplingError: always.
        """
        self._refuse()

    def refuse_steps(self) -> NoReturn:
        """Refuse to be walked step by step.

        Raises:
            SamplingError: always.
        """
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise SamplingError(
            "rk45 chooses its own number of network calls, and no budget can be set",
            "leave the number of calls out; larger rtol and atol make fewer",
        )
