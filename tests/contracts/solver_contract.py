"""What every solver promises; a new one gets these tests by naming itself (test_solvers.py)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from contracts.exact_denoisers import Mixture, PointMass, golden_latents, mixture
from fleetstep.errors import NonFiniteError, SamplingError
from fleetstep.sampling.denoiser import per_image
from fleetstep.sampling.nodes import nodes
from fleetstep.sampling.solvers.build import build_step
from fleetstep.sampling.solvers.step import State
from fleetstep.sampling.spec import SIGMA_MAX, SIGMA_MIN, LogSnrSpec, SolverSpec
from fleetstep.sampling.trajectory import Result, first_call_of, levels_for, sample
from fleetstep.sampling.walk import analytical
from solver_goldens import truth

IMAGES = 7
NOISES = torch.randn(64, IMAGES, 2, 1, 1, dtype=torch.float64, generator=torch.manual_seed(1))
MU = torch.tensor([0.3, -0.7], dtype=torch.float64)[:, None, None]


class Slice:
    """The noise of images first, first + 1, ...: every batch reads one table by sample.

    It is float64, whatever the state is.
    """

    def __init__(self, first: int, count: int) -> None:
        self.noises, self.asked = NOISES[:, first : first + count], set[int]()

    def __call__(self, k: int) -> Tensor:
        self.asked.add(k)
        return self.noises[k % len(self.noises)]


class Alone:
    """A denoiser as the problem of one trajectory."""

    def __init__(self, denoiser: Mixture, noise: Slice) -> None:
        self.denoiser, self.noise = denoiser, noise

    def denoise(self, x_BCHW: Tensor, sigma: float) -> Tensor:
        return self.denoiser(x_BCHW, per_image(sigma, x_BCHW), None)

    def denoise_with_features(self, x_BCHW: Tensor, sigma: float) -> tuple[Tensor, None]:
        return self.denoise(x_BCHW, sigma), None


class Analytic(Mixture):
    """The golden mixture, but that its first call is the analytical one of AFS."""

    def __call__(self, x_BCHW: Tensor, sigma_B: Tensor, labels_B: Tensor | None = None) -> Tensor:
        denoised_BCHW = super().__call__(x_BCHW, sigma_B, labels_B)
        return analytical(x_BCHW, float(sigma_B[0])) if self.nfe == 1 else denoised_BCHW


class BrokenBelow(Mixture):
    """The golden mixture, and not a number below level one."""

    def __call__(self, x_BCHW: Tensor, sigma_B: Tensor, labels_B: Tensor | None = None) -> Tensor:
        denoised_BCHW = super().__call__(x_BCHW, sigma_B, labels_B)
        return denoised_BCHW * (torch.nan if float(sigma_B[0]) < 1 else 1.0)


def like_the_golden(kind: type[Mixture]) -> Mixture:
    plain = mixture()
    return kind(plain.weights_K, plain.means_KD, plain.variances_KD)


class SolverContract:
    """What deterministic and stochastic solvers share; subclass one of the two below.

    Attributes:
        ends_on_image: whether a step to zero gives D: not where steps are straight in another
            variable than sigma.
    """

    solver: SolverSpec
    ends_on_image = True

    @property
    def least(self) -> int:
        return self.solver.least_points

    def levels(self, points: int) -> Tensor:
        """Positive levels, with those that the solver puts between the schedule's."""
        return nodes(self.solver, points, SIGMA_MIN, SIGMA_MAX)

    def drawn(self, points: int, x_T: Tensor | None = None, first: int = 0, **options) -> Result:
        """The golden problem on `points` levels."""
        x_T = golden_latents() if x_T is None else x_T
        noise = Slice(first, len(x_T))
        denoiser = options.pop("denoiser", None) or mixture()
        return sample(denoiser, self.solver, self.levels(points), x_T, noise=noise, **options)

    @pytest.mark.parametrize("sizes", [(1, 6), (2, 4, 1)])
    def test_the_split_into_batches_does_not_matter(self, sizes: tuple[int, ...]):
        points = self.least + 5
        z = torch.randn(IMAGES, 2, 1, 1, dtype=torch.float64, generator=torch.manual_seed(0))
        whole = self.drawn(points, SIGMA_MAX * z).x_BCHW
        firsts = (sum(sizes[:i]) for i in range(len(sizes)))
        parts = [
            self.drawn(points, SIGMA_MAX * part, first).x_BCHW
            for first, part in zip(firsts, z.split(sizes), strict=True)
        ]
        assert torch.equal(whole, torch.cat(parts))

    def test_one_step_function_serves_interleaved_trajectories(self):
        levels = self.levels(self.least + 4).tolist()
        levels += [0.0] * self.solver.goes_to_zero
        step = build_step(self.solver, levels)

        def walk(x_T: Tensor, first: int) -> Iterator[Tensor]:
            problem, state = Alone(mixture(), Slice(first, len(x_T))), State(0, x_T)
            for _ in levels[1:]:
                state = step(problem, state)
                yield state.x_BCHW

        starts = (golden_latents(), 0), (golden_latents().flip(0), 3)
        alone = [list(walk(*start)) for start in starts]
        together = zip(*(walk(*start) for start in starts), strict=True)
        for i, pair in enumerate(together):
            assert torch.equal(pair[0], alone[0][i])
            assert torch.equal(pair[1], alone[1][i])

    def test_the_same_noise_gives_the_same_bits(self):
        first, again = (self.drawn(self.least + 4).x_BCHW for _ in range(2))
        assert torch.equal(first, again)

    def test_counted_nfe_is_the_declared_one(self):
        for points in (*range(self.least, self.least + 5), 19):
            denoiser = mixture()
            denoiser.nfe = 1000  # the count starts anywhere: only the difference is the solver's
            result = self.drawn(points, denoiser=denoiser)
            assert result.nfe == denoiser.nfe - 1000 == self.solver.nfe_for(points)

    def test_points_and_nfe_are_inverse_or_refused_with_neighbours(self):
        reachable = {self.solver.nfe_for(points): points for points in range(self.least, 40)}
        for nfe in range(-1, max(reachable)):
            if nfe in reachable:
                assert self.solver.points_for(nfe) == reachable[nfe]
                levels = levels_for(mixture(), self.solver, nfe)
                assert len(levels) == reachable[nfe] + self.solver.ends_at_zero
                continue
            with pytest.raises(SamplingError) as refusal:
                self.solver.points_for(nfe)
            below = [n for n in reachable if n < nfe]
            nearest = [*below[-1:], min(n for n in reachable if n > nfe)]
            assert f"exactly {nfe} network calls" in refusal.value.message
            assert refusal.value.remedy.endswith(" or ".join(f"nfe={n}" for n in nearest))

    def test_the_trace_is_the_path_and_costs_nothing(self):
        points = self.least + 4
        plain, traced = self.drawn(points), self.drawn(points, trace=True)
        assert plain.trace is None
        assert traced.trace is not None
        assert len(traced.trace) == len(traced.sigmas)
        assert torch.equal(traced.trace[0], golden_latents())
        assert torch.equal(traced.trace[-1], plain.x_BCHW)
        assert traced.nfe == plain.nfe
        assert traced.sigmas[-1].item() == (0.0 if self.solver.goes_to_zero else SIGMA_MIN)

    def test_a_float32_state_stays_close_to_float64(self):
        exact = self.drawn(19).x_BCHW
        rounded = self.drawn(19, dtype=torch.float32).x_BCHW
        assert rounded.dtype == torch.float32
        torch.testing.assert_close(rounded.double(), exact, rtol=0, atol=1e-4)

    @pytest.mark.parametrize("levels", [[80.0], [80.0, 0.0]])
    def test_one_level_is_refused_before_any_call(self, levels: list[float]):
        denoiser = mixture()
        with pytest.raises(SamplingError, match="at least"):
            sample(
                denoiser, self.solver, torch.tensor(levels), golden_latents(), noise=Slice(0, 4)
            )
        assert denoiser.nfe == 0

    def test_gradients_pass_when_the_caller_wants_them(self):
        points, x_T = self.least + 3, golden_latents().requires_grad_()
        (slope,) = torch.autograd.grad(self.drawn(points, x_T).x_BCHW.sum(), x_T)
        h = 1e-4
        ahead, behind = (self.drawn(points, golden_latents() + d).x_BCHW for d in (h, -h))
        difference = (ahead - behind).sum((1, 2, 3)) / (2 * h)
        torch.testing.assert_close(slope.sum((1, 2, 3)), difference, rtol=1e-4, atol=1e-8)

    def test_a_step_to_zero_ends_on_the_image(self):
        levels = torch.cat((self.levels(self.least + 2), torch.zeros(1, dtype=torch.float64)))
        denoiser = PointMass(MU)
        result = sample(denoiser, self.solver, levels, golden_latents(), noise=Slice(0, 4))
        # Rounding is that of x_T, of size 160.
        assert ((result.x_BCHW - MU).abs().max() < 1e-9) == self.ends_on_image
        assert result.nfe == self.solver.nfe_for(self.least + 2, to_zero=True)

    def test_an_analytical_first_step_saves_one_call(self):
        points = self.least + 3
        levels, options = self.levels(points), {"noise": Slice(0, 4)}
        with_afs = self.solver.model_copy(update={"afs": True})
        shorter = sample(mixture(), with_afs, levels, golden_latents(), **options)
        plain = self.drawn(points, denoiser=like_the_golden(Analytic))
        assert shorter.nfe == plain.nfe - 1 == with_afs.nfe_for(points)
        assert torch.equal(shorter.x_BCHW, plain.x_BCHW)

    def test_an_output_that_is_not_finite_is_named(self):
        points = self.least + 5
        with pytest.raises(NonFiniteError) as refusal:
            self.drawn(points, denoiser=like_the_golden(BrokenBelow))
        found = re.search(
            r"at sigma = ([\d.e-]+), in step (\d+) of \d+ \(([\d.e-]+) to", str(refusal.value)
        )
        assert found is not None
        level, step, start = float(found[1]), int(found[2]), float(found[3])
        assert level < 1
        assert start == pytest.approx(self.levels(points)[step - 1].item(), rel=1e-4)

    @pytest.mark.parametrize(
        ("levels", "rule"),
        [
            ([80.0, 1.0, 1.0, 0.002], "strictly descending"),
            ([81.0, 10.0, 5.0, 1.0, 0.5, 0.2, 0.1, 0.002], "leave the range"),
            ([80.0, 10.0, 5.0, 1.0, 0.5, 0.2, 0.1, 0.001], "leave the range"),
        ],
    )
    def test_levels_that_cannot_be_walked_are_refused(self, levels: list[float], rule: str):
        with pytest.raises(SamplingError, match=rule):
            sample(
                mixture(), self.solver, torch.tensor(levels), golden_latents(), noise=Slice(0, 4)
            )


class DeterministicContract(SolverContract):
    """A solver of the flow: its order is measured, and it follows straight flows exactly.

    Attributes:
        order_solver: the setting whose order is measured, where it is not `solver`.
        steps: between which numbers of steps; more where the limit is reached later.
        graded: whether the first step is cut finely: a rising start costs h^2 at the top, which
            hides orders above two.
        straight: whether a flow on which eps is constant is followed with no error.
        unscaled: whether x itself is what moves: a clean image then stays where it is.
    """

    order_solver: SolverSpec | None = None
    steps = (128, 256)
    graded = False
    straight = True
    unscaled = True

    def error(self, steps: int) -> float:
        """Largest error at 0.002 on equal steps of log sigma; the truth is integrated to 1e-13."""
        solver = self.order_solver or self.solver
        chosen = solver.model_copy(update={"schedule": LogSnrSpec()})
        levels = nodes(chosen, steps + 1, SIGMA_MIN, SIGMA_MAX)
        if self.graded:
            parts = torch.tensor([2.0**-k for k in range(8, 0, -1)], dtype=torch.float64)
            levels = torch.cat(
                (levels[:1], levels[0] * (levels[1] / levels[0]) ** parts, levels[1:])
            )
        trace = sample(mixture(), chosen, levels, golden_latents(), trace=True).trace
        assert trace is not None
        return (trace[len(levels) - 1] - truth()).abs().max().item()

    def test_the_global_order_is_the_declared_one(self):
        coarse, fine = (self.error(steps) for steps in self.steps)
        order = math.log(coarse / fine) / math.log(self.steps[1] / self.steps[0])
        declared = (self.order_solver or self.solver).global_order
        assert order == pytest.approx(declared, abs=0.06)

    def test_a_point_mass_is_a_fixed_point(self):
        stayed = self.drawn(self.least + 5, MU.expand(3, 2, 1, 1), denoiser=PointMass(MU)).x_BCHW
        assert ((stayed - MU).abs().max() < 1e-12) == self.unscaled

    def test_the_flow_to_a_point_mass_is_exact(self):
        # eps is constant along it, so a method that is straight in sigma follows it with no
        # error, however few steps.
        z = golden_latents() / SIGMA_MAX
        path = self.drawn(self.least + 3, MU + SIGMA_MAX * z, denoiser=PointMass(MU), trace=True)
        assert path.trace is not None
        missed = max(
            (x - (MU + sigma * z)).abs().max().item()
            for x, sigma in zip(path.trace, path.sigmas, strict=True)
        )
        assert (missed < 1e-11) == self.straight

    def test_a_shared_first_call_changes_no_bit(self):
        points, denoiser = self.least + 3, mixture()
        plain = self.drawn(points)
        first = first_call_of(mixture(), self.solver, SIGMA_MAX, golden_latents())
        shared = self.drawn(points, denoiser=denoiser, first_call=first)
        assert torch.equal(shared.x_BCHW, plain.x_BCHW)
        assert (shared.nfe, denoiser.nfe) == (plain.nfe, plain.nfe - 1)

    def test_a_first_call_of_another_state_is_refused(self):
        first = first_call_of(mixture(), self.solver, SIGMA_MAX, golden_latents())
        with pytest.raises(SamplingError, match=r"first call given is torch\.float64"):
            self.drawn(self.least, first_call=first, dtype=torch.float32)

    def test_no_noise_is_asked_for(self):
        levels = self.levels(self.least + 3)
        without = sample(mixture(), self.solver, levels, golden_latents()).x_BCHW
        assert torch.equal(without, self.drawn(self.least + 3).x_BCHW)


class StochasticContract(SolverContract):
    """A solver that draws noise: the noise, and nothing else, decides what is drawn."""

    def test_noises_are_asked_for_by_consecutive_numbers(self):
        noise = Slice(0, 4)
        sample(mixture(), self.solver, self.levels(8), golden_latents(), noise=noise)
        assert noise.asked == set(range(len(noise.asked)))
        assert len(noise.asked) >= 7

    def test_another_noise_gives_another_image(self):
        one, other = (self.drawn(self.least + 3, first=first).x_BCHW for first in (0, 3))
        assert (one - other).abs().max() > 1e-3

    def test_noise_of_another_shape_is_refused(self):
        with pytest.raises(SamplingError, match=r"noise \d+ has shape \(1, 2, 1, 1\)"):
            sample(
                mixture(),
                self.solver,
                self.levels(self.least),
                golden_latents(),
                noise=Slice(0, 1),
            )

    def test_no_noise_is_an_error(self):
        with pytest.raises(SamplingError, match="draws noise"):
            sample(mixture(), self.solver, self.levels(self.least), golden_latents())

    def test_a_first_call_cannot_be_shared(self):
        first = first_call_of(mixture(), self.solver, SIGMA_MAX, golden_latents())
        with pytest.raises(SamplingError, match="cannot be shared"):
            self.drawn(self.least, first_call=first)
