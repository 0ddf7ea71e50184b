"""What every training strategy promises. A strategy gets these tests by naming its spec.

Each test runs on every process that the strategy accepts.
"""

import itertools
import pickle
from typing import ClassVar

import pytest
import torch
from pydantic import TypeAdapter

from fleetstep.diffusion.loss import held_out_levels, noise_levels_at
from fleetstep.diffusion.objective import Objective, build_objective
from fleetstep.diffusion.spec import (
    DdpmSpec,
    EdmSpec,
    FdmSpec,
    ProcessSpec,
    SpeedSpec,
    StrategySpec,
    VeSpec,
    VpSpec,
    WarmupSpec,
    check_strategies,
)
from fleetstep.errors import ConfigError
from fleetstep.sampling.spec import HeunSpec
from fleetstep.sampling.trajectory import levels_for

BATCH = 520
PROCESSES = (EdmSpec(), VpSpec(), VeSpec(), DdpmSpec())
STEPS = (0, 1, 57, 199, 200, 10_000_000)
SIGMAS = torch.logspace(-4, 3, 141, dtype=torch.float64)
# One strategy of each kind, such that all of them can be combined.
OTHERS = (FdmSpec(warmup=None), WarmupSpec(), SpeedSpec())


def build(process: ProcessSpec, *specs: StrategySpec) -> Objective:
    return build_objective(process, specs, budget_images=1_000_000, global_batch=BATCH)


class StrategyContract:
    """Inherit as Test..., give `spec` and the names of the fields of `Objective` it may change.

    `processes` are those that it accepts; it is to refuse the others of PROCESSES.
    """

    changes: ClassVar[set[str]]
    processes: ClassVar[tuple[ProcessSpec, ...]] = PROCESSES

    def pytest_generate_tests(self, metafunc):
        if "process" in metafunc.fixturenames:
            kinds = [process.kind for process in self.processes]
            metafunc.parametrize("process", self.processes, ids=kinds)

    @pytest.fixture
    def spec(self) -> StrategySpec:
        raise NotImplementedError

    def test_its_config_survives_json(self, spec):
        adapter = TypeAdapter(StrategySpec)
        assert adapter.validate_json(adapter.dump_json(spec)) == spec

    def test_it_is_refused_where_it_does_not_fit(self, spec):
        accepted = [p.kind for p in PROCESSES if not check_strategies(p, [spec], BATCH)]
        assert accepted == [p.kind for p in PROCESSES if p in self.processes]
        for other in PROCESSES:
            if other.kind not in accepted:
                with pytest.raises(ConfigError, match=rf"strategies\[0\] \({spec.kind}\)"):
                    build(other, spec)

    def test_it_changes_exactly_what_it_declares(self, spec, process):
        plain, changed = build(process), build(process, spec)
        names = Objective.__dataclass_fields__
        assert {n for n in names if getattr(plain, n) != getattr(changed, n)} == self.changes

    def test_the_order_in_the_list_does_not_matter(self, spec, process):
        mates = [o for o in OTHERS if not check_strategies(process, [spec, o], BATCH)]
        assert mates
        for order in itertools.permutations([spec, *mates]):
            if not check_strategies(process, order, BATCH):
                assert build(process, *order) == build(process, spec, *mates)

    def test_it_is_refused_twice(self, spec, process):
        with pytest.raises(ConfigError, match=r"strategies\[0\] and strategies\[1\]"):
            build(process, spec, spec)

    def test_its_law_is_a_law(self, spec, process):
        objective = build(process, spec)
        u = torch.linspace(1e-6, 1 - 1e-6, 2001, dtype=torch.float64)
        for step in STEPS:
            law = objective.law(step)
            sigma = law.icdf(u)
            if not isinstance(process, DdpmSpec):
                assert (sigma[1:] > sigma[:-1]).all()
                assert torch.allclose(law.cdf(sigma), u, rtol=0, atol=1e-9)
                continue
            table = objective.process.table
            index = torch.searchsorted(table, sigma)
            assert torch.equal(table[index], sigma)
            cumulative = torch.cat([torch.zeros(1, dtype=torch.float64), law.cdf(table)])
            assert cumulative[-1].item() == pytest.approx(1, abs=1e-12)
            assert (cumulative.diff() >= 0).all()
            # the first step at which the cumulative probability reaches u
            assert (cumulative[index + 1] >= u - 1e-12).all()
            assert (cumulative[index] <= u + 1e-12).all()

    def test_no_single_uniform_gives_an_impossible_level(self, spec, process):
        objective = build(process, spec)
        extremes = torch.tensor([2.0**-53, 2.0**-53, 0.5, 0.5, 1 - 2.0**-53, 1 - 2.0**-53])
        for first in (0, 1):
            sigma = objective.levels(extremes.double(), first, 0)
            assert sigma.isfinite().all()
            assert (sigma > 0).all()

    @pytest.mark.parametrize("cuts", [(0, 64), (0, 7, 20, 33, 64), tuple(range(65))])
    def test_a_draw_belongs_to_its_position_on_any_number_of_workers(self, spec, process, cuts):
        objective = build(process, spec)
        whole = noise_levels_at(objective, 7, 101, 64, step=3)
        parts = [
            noise_levels_at(objective, 7, 101 + low, high - low, step=3)
            for low, high in itertools.pairwise(cuts)
        ]
        assert torch.equal(torch.cat(parts), whole)
        assert not torch.equal(noise_levels_at(objective, 8, 101, 64, step=3), whole)

    def test_weights_are_finite_and_not_negative(self, spec, process):
        objective = build(process, spec)
        for step in STEPS:
            weight = objective.weight(SIGMAS, step)
            assert weight.dtype == torch.float64
            assert weight.isfinite().all()
            assert (weight >= 0).all()

    def test_weights_depend_on_the_step_and_not_on_the_calls_before(self, spec, process):
        objective = build(process, spec)
        before = objective.weight(SIGMAS, 57)
        for step in range(100):
            objective.weight(SIGMAS, step)
        assert torch.equal(objective.weight(SIGMAS, 57), before)
        assert torch.equal(build(process, spec).weight(SIGMAS, 57), before)

    def test_skip_output_and_noise_condition_are_the_process_s(self, spec, process):
        plain = build(process).coefficients(SIGMAS)
        changed = build(process, spec).coefficients(SIGMAS)
        for name in ("c_skip", "c_out", "c_noise"):
            assert torch.equal(getattr(plain, name), getattr(changed, name))

    def test_the_held_out_levels_stay(self, spec, process):
        built = build(process, spec), build(process)
        changed, plain = (held_out_levels(objective, 8, 0, 3, 5) for objective in built)
        assert torch.equal(changed, plain)

    def test_the_objective_crosses_processes(self, spec, process):
        objective = build(process, spec)
        copy = pickle.loads(pickle.dumps(objective))
        assert copy == objective
        assert torch.equal(copy.weight(SIGMAS, 57), objective.weight(SIGMAS, 57))
        # as it is after use too, when it keeps tables
        assert pickle.loads(pickle.dumps(objective)) == objective

    def test_it_is_sampled_on_the_levels_of_the_plain_process(self, spec, process):
        walked = [
            levels_for(build(process, *specs).denoiser(torch.nn.Identity()), HeunSpec(), 9)
            for specs in ((), (spec,))
        ]
        assert torch.equal(*walked)

    @pytest.mark.parametrize(("low", "high"), [(0.01, 40), (1e-4, 1e3), (0.2, 0.4)])
    def test_the_sampled_range_is_edm_s_and_does_not_cut_the_law(self, spec, low, high):
        if EdmSpec() not in self.processes:
            return
        narrow = build(EdmSpec(sigma_min=low, sigma_max=high), spec)
        *walked, zero = levels_for(narrow.denoiser(torch.nn.Identity()), HeunSpec(), 9).tolist()
        assert (walked[0], walked[-1], zero) == (min(high, 80), max(low, 0.002), 0)
        u = torch.tensor([1e-3, 0.5, 1 - 1e-3], dtype=torch.float64)
        wide = build(EdmSpec(), spec)
        assert torch.equal(narrow.levels(u, 0, 0), wide.levels(u, 0, 0))
