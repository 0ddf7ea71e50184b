"""Solvers that remember earlier evaluations: one call a step."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from fleetstep.sampling.spec.facts import SolverFacts
from fleetstep.sampling.spec.schedules import (
    LogSnrSpec,
    PolynomialSpec,
    TimeUniformSpec,
)

Prediction = Literal["data", "noise"]
"""What is interpolated over a step: the denoised image D, or eps = (x - D) / sigma."""


class IpndmSpec(SolverFacts):
    """Adams-Bashforth on the last `order` slopes, with a rising start (Zhang and Chen 2023)."""

    kind: Literal["ipndm"] = "ipndm"
    order: int = Field(4, ge=1, le=4, description="slopes combined in a step")
    default_schedule: ClassVar = PolynomialSpec()
    shown: ClassVar = ("order",)

    @property
    def global_order(self) -> int:
        """Two for any `order` above one: weights of equal steps are applied to unequal ones."""
        return min(self.order, 2)


class IpndmVSpec(SolverFacts):
    """Adams-Bashforth with the weights of the steps as they are, also known as LMS: the polynomial
    through the last `order` slopes, integrated exactly.
    """

    kind: Literal["ipndm_v"] = "ipndm_v"
    order: int = Field(4, ge=1, le=4, description="slopes combined in a step")
    default_schedule: ClassVar = PolynomialSpec()
    shown: ClassVar = ("order",)

    @property
    def global_order(self) -> int:
        """The order asked for."""
        return self.order


class DeisSpec(SolverFacts):
    """tAB-DEIS: as `ipndm_v`, the polynomial being one in VP time (Zhang and Chen 2023).

    Attributes:
        order: slopes combined in a step; the paper's tAB(k) has order k + 1.
        basis: the variable of the polynomial: VP "time", or "log_sigma" as diffusers has it.
        lower_order_final: the last steps fall back to orders 2 and 1, as diffusers has it below 15
            steps.
    """

    kind: Literal["deis"] = "deis"
    order: int = Field(3, ge=1, le=4)
    basis: Literal["time", "log_sigma"] = "time"
    lower_order_final: bool = False
    default_schedule: ClassVar = TimeUniformSpec(rho=2.0)
    shown: ClassVar = ("order",)

    @property
    def global_order(self) -> int:
        """The order asked for."""
        return self.order


class PlmsSpec(SolverFacts):
    """Pseudo linear multistep: AB4, started by one improved Euler step (Liu et al. 2022, as latent
    diffusion uses it); one call more than steps.
    """

    kind: Literal["plms"] = "plms"
    default_schedule: ClassVar = PolynomialSpec()

    def evaluations(self, points: int, to_zero: bool) -> int:
        """One a step, and one more in the first."""
        return points - 1 + to_zero + 1

    @property
    def global_order(self) -> int:
        """Two: the weights are those of equal steps."""
        return 2


class PndmSpec(SolverFacts):
    """Pseudo numerical method: AB4, started by three pseudo Runge-Kutta steps of four calls each
    (Liu et al. 2022, Algorithm 2).

    Its points are the schedule's with the middle of each of the first three steps between them.
    """

    kind: Literal["pndm"] = "pndm"
    default_schedule: ClassVar = PolynomialSpec()

    @property
    def least_points(self) -> int:
        """Three started steps, each with a middle."""
        return 7

    def evaluations(self, points: int, to_zero: bool) -> int:
        """Twelve in the three steps that start it, then one a step: S + 9 for S steps."""
        return points - 4 + 9 + to_zero

    @property
    def global_order(self) -> int:
        """Two: the weights are those of equal steps."""
        return 2


class DpmppSpec(SolverFacts):
    """DPM-Solver(++) multistep (Lu et al. 2022b, Algorithm 2 and appendix).

    Attributes:
        order: evaluations combined in a step.
        prediction: "data" is DPM-Solver++, "noise" DPM-Solver.
        lower_order_final: the last steps fall back to orders 2 and 1, where extrapolation harms.
        d2_factor: of the second difference at order 3. 1 is the official code's, which makes the
            order 2 and is often better at few calls; 2 is the derivation's, and of order 3.
        variant: the second-order term: "dpmsolver" (midpoint), or "taylor" (k-diffusion's "heun").
    """

    kind: Literal["dpmpp"] = "dpmpp"
    order: int = Field(2, ge=1, le=3)
    prediction: Prediction = "data"
    lower_order_final: bool = True
    d2_factor: Literal[1, 2] = 1
    variant: Literal["dpmsolver", "taylor"] = "dpmsolver"
    default_schedule: ClassVar = LogSnrSpec()
    shown: ClassVar = ("order",)

    @property
    def global_order(self) -> int:
        """Two at order 3 as well, unless d2_factor is 2 and the last steps stay of order 3."""
        if self.order < 3:
            return self.order
        return 3 if self.d2_factor == 2 else 2


class UnipcSpec(SolverFacts):
    """UniPC: a predictor, corrected by the next step's evaluation (Zhao et al. 2023).

    Attributes:
        order: p of UniPC-p.
        variant: B(h) is h ("bh1") or exp(h) - 1 ("bh2").
        prediction: "data" or "noise".
        lower_order_final: the last steps fall back to lower orders.
    """

    kind: Literal["unipc"] = "unipc"
    order: int = Field(3, ge=1, le=3)
    variant: Literal["bh1", "bh2"] = "bh2"
    prediction: Prediction = "data"
    lower_order_final: bool = True
    default_schedule: ClassVar = LogSnrSpec()
    shown: ClassVar = ("order",)

    @property
    def global_order(self) -> int:
        """One more than the predictor's: the corrector adds it."""
        return self.order + 1
