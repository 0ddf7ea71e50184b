"""Solvers of the reverse SDE, and the provably accelerated samplers."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from fleetstep.sampling.spec.facts import SolverFacts
from fleetstep.sampling.spec.schedules import PolynomialSpec


class DdpmSolverSpec(SolverFacts):
    """DDPM's ancestral sampler (Ho et al. 2020, eq. 11); no noise in a step to zero.

    Attributes:
        variance: of the noise that is added: the posterior's ("fixed_small") or beta
            ("fixed_large").
    """

    kind: Literal["ddpm"] = "ddpm"
    variance: Literal["fixed_small", "fixed_large"] = "fixed_small"
    default_schedule: ClassVar = PolynomialSpec()
    shown: ClassVar = ("variance",)

    @property
    def stochastic(self) -> bool:
        """Every step draws noise."""
        return True

    @property
    def global_order(self) -> int:
        """First order, in law."""
        return 1


class DpmppSdeSpec(SolverFacts):
    """DPM-Solver++ for the reverse SDE, multistep (Lu et al. 2022b, section 5; k-diffusion's "2M
    SDE" and "3M SDE").

    Attributes:
        order: 2 or 3.
        eta: 0 is the flow, 1 the reverse SDE.
        variant: the second-order term at order 2, see `DpmppSpec`.
    """

    kind: Literal["dpmpp_sde"] = "dpmpp_sde"
    order: int = Field(2, ge=2, le=3)
    eta: float = Field(1.0, ge=0)
    variant: Literal["dpmsolver", "taylor"] = "dpmsolver"
    default_schedule: ClassVar = PolynomialSpec()
    shown: ClassVar = ("order",)

    @property
    def stochastic(self) -> bool:
        """Unless eta is zero."""
        return self.eta > 0

    @property
    def global_order(self) -> int:
        """Two at eta = 0 (order 3 omits a factor, as `DpmppSpec` explains); one, in law, above."""
        return 1 if self.stochastic else 2


class AcceleratedDdimSpec(SolverFacts):
    """The accelerated deterministic samplers of Li et al. 2024, and what they accelerate.

    Attributes:
        equation: 30, the practical one; 15 (two evaluations a step) and 22 accelerate the plain
            sampler 8; 28 is DDIM.
        first: the first step of 15, which has no level before it: "plain" takes 8's step,
            "extend" continues a schedule (13) by one level.
    """

    kind: Literal["accelerated_ddim"] = "accelerated_ddim"
    equation: Literal[8, 15, 22, 28, 30] = 30
    first: Literal["plain", "extend"] = "plain"
    default_schedule: ClassVar = PolynomialSpec()
    shown: ClassVar = ("equation",)

    @model_validator(mode="after")
    def _extends_what_can_be(self) -> Self:
        if self.first == "extend" and (
            self.equation != 15 or self.chosen_schedule.label.split("(")[0] != "accelerated"
        ):
            raise ValueError(
                "first: extend needs equation 15 and the schedule kind accelerated, which says "
                "what the next level would be; use first: plain"
            )
        return self

    def evaluations(self, points: int, to_zero: bool) -> int:
        """One a step; equation 15 makes two, but for a plain first step."""
        steps = points - 1
        if self.equation != 15:
            return steps + to_zero
        return 2 * steps - (self.first == "plain") + to_zero

    @property
    def global_order(self) -> int:
        """Two where accelerated."""
        return 1 if self.equation in (8, 28) else 2


class AcceleratedDdpmSpec(SolverFacts):
    """The accelerated stochastic sampler of Li et al. 2024 (eq. 23), or the plain one (eq. 10).

    Attributes:
        equation: 23 draws two noises a step and calls the network once between them.
        noise: where the last noise stands: "inside" the bracket as the proof needs it, or as
            "printed" in the paper.
    """

    kind: Literal["accelerated_ddpm"] = "accelerated_ddpm"
    equation: Literal[10, 23] = 23
    noise: Literal["inside", "printed"] = "inside"
    default_schedule: ClassVar = PolynomialSpec()
    shown: ClassVar = ("equation",)

    @property
    def stochastic(self) -> bool:
        """Every step draws noise."""
        return True

    @property
    def global_order(self) -> int:
        """In law on Gaussian data: two for eq. 23 with the noise inside, else one."""
        return 2 if self.equation == 23 and self.noise == "inside" else 1
