"""What every solver promises; a new one gets these tests by naming itself (test_solvers.py)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from contracts.exact_denoisers import (
    SCHEDULES,
    PointMass,
    golden,
    golden_latents,
    images,
    mixture,
)
from fleetstep.errors import SamplingError
from fleetstep.sampling.schedules import sigmas
from fleetstep.sampling.spec import SIGMA_MAX, SIGMA_MIN, SolverSpec
from fleetstep.sampling.trajectory import Result, levels_for, sample

# The order is read between these numbers of steps: the golden rows are within 0.05 of their limit
# there.
COARSE, FINE = 128, 256


class SolverContract:
    """Subclass as `Test<Name>`, give `solver`, and add its rows to tests/golden/sampling.json."""

    solver: SolverSpec
    has_golden_runs = True
    order_tolerance = 0.06

    @pytest.fixture(params=sorted(SCHEDULES.keys() - {"polynomial"}))
    def schedule(self, request: pytest.FixtureRequest) -> str:
        name: str = request.param
        return name

    def run(self, points: int, schedule: str, **options: object) -> Result:
        """The golden problem on `points` levels."""
        levels = sigmas(SCHEDULES[schedule], points, SIGMA_MIN, SIGMA_MAX)
        return sample(mixture(), self.solver, levels, golden_latents(), **options)

    def error(self, points: int, schedule: str) -> float:
        """Largest error over the golden latents against the flow integrated to 1e-13."""
        end = "denoised" if self.solver.ends_at_zero else "x_at_sigma_min"
        truth = images(golden()["truth"][end])
        return (self.run(points, schedule).x_BCHW - truth).abs().max().item()

    def test_the_global_order_is_the_declared_one(self, schedule: str):
        coarse, fine = self.error(COARSE + 1, schedule), self.error(FINE + 1, schedule)
        order = math.log(coarse / fine) / math.log(FINE / COARSE)
        assert order == pytest.approx(self.solver.global_order, abs=self.order_tolerance)

    def test_golden_runs(self):
        runs = [run for run in golden()["runs"] if run["solver"] == self.solver.model_dump()]
        assert bool(runs) == self.has_golden_runs
        for run in runs:
            result = self.run(run["points"], run["schedule"])
            torch.testing.assert_close(result.x_BCHW, images(run["x"]), rtol=1e-9, atol=1e-9)
            assert result.nfe == run["nfe"]

    def test_a_point_mass_is_a_fixed_point(self, schedule: str):
        mu = torch.tensor([0.3, -0.7], dtype=torch.float64)[:, None, None]
        levels = sigmas(SCHEDULES[schedule], 9, SIGMA_MIN, SIGMA_MAX)
        stayed = sample(PointMass(mu), self.solver, levels, mu.expand(3, 2, 1, 1)).x_BCHW
        torch.testing.assert_close(stayed, mu.expand(3, 2, 1, 1), rtol=0, atol=1e-12)

    def test_the_flow_to_a_point_mass_is_exact(self, schedule: str):
        # eps is constant along it, so every consistent method follows it with no error, however
        # few steps.
        mu = torch.tensor([0.3, -0.7], dtype=torch.float64)[:, None, None]
        levels = sigmas(SCHEDULES[schedule], 5, SIGMA_MIN, SIGMA_MAX)
        z = golden_latents() / SIGMA_MAX
        result = sample(PointMass(mu), self.solver, levels, mu + SIGMA_MAX * z, trace=True)
        assert result.trace is not None
        for x, sigma in zip(result.trace, result.sigmas, strict=True):
            torch.testing.assert_close(x, mu + sigma * z, rtol=0, atol=1e-11)

    @pytest.mark.parametrize("sizes", [(1, 6), (3, 4), (2, 2, 2, 1)])
    def test_the_split_into_batches_does_not_matter(self, sizes: tuple[int, ...]):
        z = torch.randn(7, 2, 1, 1, dtype=torch.float64, generator=torch.manual_seed(0))
        levels = sigmas(self.solver.default_schedule, 7, SIGMA_MIN, SIGMA_MAX)

        def drawn(z: Tensor) -> Tensor:
            return sample(mixture(), self.solver, levels, SIGMA_MAX * z).x_BCHW

        assert torch.equal(drawn(z), torch.cat([drawn(part) for part in z.split(sizes)]))

    def test_nothing_is_kept_between_calls(self):
        first, second = (self.run(6, "polynomial_rho7").x_BCHW for _ in range(2))
        assert torch.equal(first, second)

    @pytest.mark.parametrize("points", [2, 3, 4, 5, 6, 19])
    def test_counted_nfe_is_the_declared_one(self, points: int):
        denoiser = mixture()
        denoiser.nfe = 1000  # the count starts anywhere: only the difference is the solver's
        levels = sigmas(self.solver.default_schedule, points, SIGMA_MIN, SIGMA_MAX)
        result = sample(denoiser, self.solver, levels, golden_latents())
        assert result.nfe == denoiser.nfe - 1000 == self.solver.nfe_for(points)

    def test_points_and_nfe_are_inverse_or_refused_with_neighbours(self):
        reachable = {self.solver.nfe_for(points): points for points in range(2, 60)}
        for nfe in range(-1, max(reachable)):
            if nfe in reachable:
                assert self.solver.points_for(nfe) == reachable[nfe]
                assert len(levels_for(mixture(), self.solver, nfe)) == reachable[nfe]
                continue
            with pytest.raises(SamplingError) as refusal:
                self.solver.points_for(nfe)
            below = [n for n in reachable if n < nfe]
            nearest = [*below[-1:], min(n for n in reachable if n > nfe)]
            assert f"exactly {nfe} network calls" in refusal.value.message
            assert refusal.value.remedy.endswith(" or ".join(f"nfe={n}" for n in nearest))

    def test_the_trace_is_the_path_and_costs_nothing(self):
        levels = sigmas(self.solver.default_schedule, 6, SIGMA_MIN, SIGMA_MAX)
        plain = sample(mixture(), self.solver, levels, golden_latents())
        traced = sample(mixture(), self.solver, levels, golden_latents(), trace=True)
        assert plain.trace is None
        assert traced.trace is not None
        assert len(traced.trace) == len(traced.sigmas)
        assert torch.equal(traced.trace[0], golden_latents())
        assert torch.equal(traced.trace[-1], plain.x_BCHW)
        assert traced.nfe == plain.nfe
        assert traced.sigmas[-1].item() == (0.0 if self.solver.ends_at_zero else SIGMA_MIN)

    def test_a_float32_state_stays_close_to_float64(self, schedule: str):
        exact = self.run(19, schedule).x_BCHW
        rounded = self.run(19, schedule, dtype=torch.float32).x_BCHW
        assert rounded.dtype == torch.float32
        torch.testing.assert_close(rounded.double(), exact, rtol=0, atol=1e-4)

    def test_gradients_pass_when_the_caller_wants_them(self):
        x_T = golden_latents().requires_grad_()
        levels = sigmas(self.solver.default_schedule, 5, SIGMA_MIN, SIGMA_MAX)
        end = sample(mixture(), self.solver, levels, x_T).x_BCHW
        (slope,) = torch.autograd.grad(end.sum(), x_T)
        h = 1e-4
        ahead, behind = (
            sample(mixture(), self.solver, levels, golden_latents() + d).x_BCHW for d in (h, -h)
        )
        difference = (ahead - behind).sum((1, 2, 3)) / (2 * h)
        torch.testing.assert_close(slope.sum((1, 2, 3)), difference, rtol=1e-4, atol=1e-8)
