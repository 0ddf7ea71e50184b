"""What every training strategy promises. A strategy gets these tests by naming its spec."""

import itertools
import pickle
from typing import ClassVar

import pytest
import torch
from pydantic import TypeAdapter

from fleetstep.diffusion.loss import held_out_levels
from fleetstep.diffusion.objective import Objective, build_objective
from fleetstep.diffusion.spec import (
    EdmSpec,
    FdmSpec,
    SpeedSpec,
    StrategySpec,
    WarmupSpec,
    check_strategies,
)
from fleetstep.errors import ConfigError
from fleetstep.sampling.spec import HeunSpec
from fleetstep.sampling.trajectory import levels_for

BATCH = 512
EDM = EdmSpec()
SIGMAS = torch.logspace(-4, 3, 141, dtype=torch.float64)
# One strategy of each kind, such that all of them can be combined.
OTHERS = (FdmSpec(warmup=None), WarmupSpec(), SpeedSpec())


def build(*specs: StrategySpec, process: EdmSpec = EDM) -> Objective:
    return build_objective(process, specs, budget_images=1_000_000, global_batch=BATCH)


class StrategyContract:
    """Inherit as Test..., give `spec` and the names of the fields of `Objective` it may change."""

    changes: ClassVar[set[str]]

    @pytest.fixture
    def spec(self) -> StrategySpec:
        raise NotImplementedError

    def test_its_config_survives_json(self, spec):
        adapter = TypeAdapter(StrategySpec)
        assert adapter.validate_json(adapter.dump_json(spec)) == spec

    def test_it_changes_exactly_what_it_declares(self, spec):
        plain, changed = build(), build(spec)
        names = Objective.__dataclass_fields__
        assert {n for n in names if getattr(plain, n) != getattr(changed, n)} == self.changes

    def test_the_order_in_the_list_does_not_matter(self, spec):
        mates = [other for other in OTHERS if not check_strategies(EdmSpec(), [spec, other])]
        assert mates
        for order in itertools.permutations([spec, *mates]):
            if not check_strategies(EdmSpec(), order):
                assert build(*order) == build(spec, *mates)

    def test_it_is_refused_twice(self, spec):
        with pytest.raises(ConfigError, match=r"strategies\[0\] and strategies\[1\]"):
            build(spec, spec)

    def test_its_law_is_a_law(self, spec):
        law = build(spec).noise_levels
        u = torch.linspace(1e-6, 1 - 1e-6, 2001, dtype=torch.float64)
        sigma = law.icdf(u)
        assert (sigma[1:] > sigma[:-1]).all()
        assert torch.allclose(law.cdf(sigma), u, rtol=0, atol=1e-9)

    def test_its_quantile_density_is_the_slope_of_its_icdf(self, spec):
        law = build(spec).noise_levels
        u, h = torch.linspace(0.011, 0.989, 400, dtype=torch.float64), 1e-6
        slope = (law.icdf(u + h) - law.icdf(u - h)) / (2 * h)
        assert torch.allclose(law.quantile_density(u), slope, rtol=1e-6)

    def test_no_single_uniform_gives_an_impossible_level(self, spec):
        extremes = torch.tensor([2.0**-54, 1 - 2.0**-53], dtype=torch.float64)
        assert build(spec).noise_levels.icdf(extremes).isfinite().all()

    def test_weights_are_finite_and_not_negative(self, spec):
        objective = build(spec)
        for step in (0, 1, 199, 200, 10_000_000):
            weight = objective.weight(SIGMAS, step)
            assert weight.isfinite().all()
            assert (weight >= 0).all()

    def test_weights_depend_on_the_step_and_not_on_the_calls_before(self, spec):
        objective = build(spec)
        before = objective.weight(SIGMAS, 57)
        for step in range(100):
            objective.weight(SIGMAS, step)
        assert torch.equal(objective.weight(SIGMAS, 57), before)
        assert torch.equal(build(spec).weight(SIGMAS, 57), before)

    def test_skip_output_and_noise_condition_are_the_process_s(self, spec):
        plain, changed = build().coefficients(SIGMAS), build(spec).coefficients(SIGMAS)
        for name in ("c_skip", "c_out", "c_noise"):
            assert torch.equal(getattr(plain, name), getattr(changed, name))

    def test_the_held_out_levels_stay(self, spec):
        changed, plain = (held_out_levels(o, 8, 0, 3, 5) for o in (build(spec), build()))
        assert torch.equal(changed, plain)

    def test_the_objective_crosses_processes(self, spec):
        objective = build(spec)
        assert pickle.loads(pickle.dumps(objective)) == objective

    @pytest.mark.parametrize(("low", "high"), [(0.002, 80), (0.01, 40), (1e-4, 1e3)])
    def test_it_is_sampled_on_the_levels_of_the_plain_process(self, spec, low, high):
        process = EdmSpec(sigma_min=low, sigma_max=high)
        walked = [
            levels_for(build(*specs, process=process).denoiser(torch.nn.Identity()), HeunSpec(), 9)
            for specs in ((), (spec,))
        ]
        assert torch.equal(*walked)
        assert (walked[0][0].item(), walked[0][-1].item()) == (min(high, 80), max(low, 0.002))

    def test_training_levels_are_not_cut_to_the_sampled_range(self, spec):
        narrow = build(spec, process=EdmSpec(sigma_min=0.2, sigma_max=0.4))
        extremes = torch.tensor([1e-3, 1 - 1e-3], dtype=torch.float64)
        low, high = narrow.noise_levels.icdf(extremes).tolist()
        assert low < 0.2
        assert high > 0.4
        images = torch.ones(2, 1, 1, 1)
        skip, out, _, _ = narrow.coefficients(torch.tensor([low, high], dtype=torch.float64))
        denoised = narrow.denoiser(lambda x, c_noise, labels: torch.ones_like(x))(
            images, torch.tensor([low, high])
        )
        assert torch.allclose(denoised.flatten().double(), skip + out, rtol=1e-6)
