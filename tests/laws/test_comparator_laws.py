"""What the comparators draw and learn: laws of samples, resume, and any split of the work."""

import json
import pickle
from itertools import pairwise

import pytest
import torch
from scipy import stats

from fleetstep.diffusion.coupling import Strata
from fleetstep.diffusion.objective import build_objective
from fleetstep.diffusion.spec import (
    AntUwSpec,
    CltsSpec,
    DdpmSpec,
    EdmSpec,
    LogitNormalSpec,
    LogNormalSpec,
    TskDifCurSpec,
    UniformSpec,
    VeSpec,
    VpSpec,
    ddpm_sigmas,
)

SEED, DRAWS, BATCH = 11, 50_000, 100
STEPS = 1000
SCHEDULES = ["linear", "quadratic", "cosine"]


def objective(*strategies, process=None):
    return build_objective(
        process or DdpmSpec(), strategies, budget_images=1_000_000, global_batch=BATCH
    )


def drawn(built, first, count, step=0, state=None):
    u_B = built.coupling.uniforms(SEED, first, count)
    return built.levels(u_B, first, step, state)


def pmf_of(law, sigmas):
    table = torch.tensor(sigmas, dtype=torch.float64)
    return torch.diff(law.cdf(table), prepend=torch.zeros(1, dtype=torch.float64))


def pooled(expected, observed):
    """Neighbouring steps joined until each expects 20 draws: what chi-square asks for."""
    bins, e, o = [], 0.0, 0
    for one, other in zip(expected, observed, strict=True):
        e, o = e + one, o + other
        if e >= 20:
            bins.append((e, o))
            e, o = 0.0, 0
    last = bins.pop()
    return [*bins, (last[0] + e, last[1] + o)]


LAWS = [
    (UniformSpec(), 0),
    (LogNormalSpec(), 0),
    (LogNormalSpec(mean=2.0, std=0.7), 0),
    (LogitNormalSpec(), 0),
    (LogitNormalSpec(mean=-0.5, std=1.5), 0),
    (CltsSpec(), 2_500),
    (CltsSpec(), 10_000),
    (AntUwSpec(), 0),
    (TskDifCurSpec(clusters=7), 0),
]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("spec", "step"), LAWS, ids=lambda v: getattr(v, "kind", v))
def test_drawn_steps_follow_their_pmf(spec, step, schedule):
    built = objective(spec, process=DdpmSpec(schedule=schedule))
    sigmas = ddpm_sigmas(schedule, STEPS)
    probability = pmf_of(built.law(step), sigmas)
    assert probability.min() >= 0
    assert probability.sum().item() == pytest.approx(1, abs=1e-14)
    sigma = drawn(built, 300, DRAWS, step)
    index = built.process.index_of(sigma)
    assert torch.equal(built.process.table[index], sigma)
    observed = torch.bincount(index, minlength=STEPS)
    bins = pooled((probability * DRAWS).tolist(), observed.tolist())
    chi2 = sum((o - e) ** 2 / e for e, o in bins)
    assert stats.chi2.sf(chi2, len(bins) - 1) > 1e-3


@pytest.mark.parametrize(
    ("spec", "process"),
    [
        (LogNormalSpec(), VpSpec()),
        (LogNormalSpec(), VeSpec()),
        (LogitNormalSpec(), VpSpec()),
        (UniformSpec(), VpSpec()),
        (TskDifCurSpec(), EdmSpec()),
        (TskDifCurSpec(), VeSpec()),
    ],
    ids=lambda v: v.kind,
)
def test_drawn_levels_follow_their_continuous_law(spec, process):
    built = objective(spec, process=process)
    shares = built.law(0).cdf(drawn(built, 0, DRAWS))
    assert stats.kstest(shares.numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("clusters", [2, 5, 10])
@pytest.mark.parametrize("process", [DdpmSpec(), EdmSpec(), VpSpec(), VeSpec()], ids=str)
def test_every_global_batch_has_as_many_of_each_cluster(process, clusters):
    built = objective(AntUwSpec(clusters=clusters), process=process)
    for batch in (0, 1, 77):
        sigma = drawn(built, batch * BATCH, BATCH)
        # A discrete law's quantile of a drawn step is at its upper end.
        share = built.noise_levels.cdf(sigma) - (0.5 / STEPS if process == DdpmSpec() else 0)
        cluster = (share * clusters).floor().long()
        assert torch.bincount(cluster).tolist() == [BATCH // clusters] * clusters
        assert torch.equal(cluster, torch.arange(batch * BATCH, (batch + 1) * BATCH) % clusters)


@pytest.mark.parametrize(
    "spec", [LogNormalSpec(), LogitNormalSpec(), CltsSpec(), AntUwSpec(), TskDifCurSpec()]
)
def test_draws_depend_on_positions_alone(spec):
    built, step = objective(spec), 321
    whole = drawn(built, 700, 200, step)
    for cuts in ([0, 200], [0, 13, 14, 101, 200], [0, 100, 200]):
        parts = [
            drawn(pickle.loads(pickle.dumps(built)), 700 + a, b - a, step)
            for a, b in pairwise(cuts)
        ]
        assert torch.equal(torch.cat(parts), whole)


def losses(step, first=0, count=BATCH):
    """Losses that fall, stop and differ by position, float32 as a network's."""
    generator = torch.Generator().manual_seed(step)
    floor = 1 / (1 + step) + 0.3
    whole = torch.rand(BATCH, generator=generator) * (1 + torch.arange(BATCH) % 5) + floor
    return whole[first : first + count]


ADAPTIVE = [AntUwSpec(), AntUwSpec(clusters=2, lr=0.3), TskDifCurSpec(clusters=4, patience=3)]


@pytest.mark.parametrize("spec", ADAPTIVE, ids=lambda s: s.kind)
def test_a_run_resumed_from_its_state_goes_on_as_if_uninterrupted(spec):
    """The state crosses JSON to the last bit, and nothing else is remembered."""

    def run(adaptive, state, steps):
        states = []
        for step in steps:
            state = adaptive.update(state, adaptive.sums(losses(step), step * BATCH))
            states.append(state)
        return states

    adaptive = objective(spec).adaptive
    whole = run(adaptive, adaptive.start(), range(40))
    for cut in (1, 7, 20):
        kept = json.loads(json.dumps(whole[cut - 1], allow_nan=False))
        assert kept == whole[cut - 1]
        tail = run(objective(spec).adaptive, kept, range(cut, 40))
        assert tail == whole[cut:]
        # What was handed in is not changed.
        assert kept == whole[cut - 1]
    assert whole[0] != whole[-1]


@pytest.mark.parametrize("spec", ADAPTIVE, ids=lambda s: s.kind)
@pytest.mark.parametrize("cuts", [[0, 50, 100], [0, 25, 50, 75, 100], [0, 1, 33, 100]])
def test_sums_add_up_over_workers_and_micro_batches(spec, cuts):
    adaptive, step, first = objective(spec).adaptive, 3, 3 * BATCH
    whole = adaptive.sums(losses(step), first)
    parts = sum(adaptive.sums(losses(step, a, b - a), first + a) for a, b in pairwise(cuts))
    assert whole.dtype == torch.float64
    assert torch.allclose(parts, whole, rtol=1e-15)
    state = {**adaptive.start()}
    weights = [adaptive.weights(first + a, b - a, state) for a, b in pairwise(cuts)]
    assert torch.equal(torch.cat(weights), adaptive.weights(first, BATCH, state))


def test_clusters_of_draws_weights_and_sums_are_the_same():
    adaptive, k, first = objective(AntUwSpec()).adaptive, 5, 1203
    u = Strata(k).uniforms(SEED, first, 40)
    cluster = (u * k).floor().long()
    state = {**adaptive.start(), "a": [0.0, 1.0, 2.0, 3.0, 4.0]}
    expected = torch.exp(-cluster.double()) / 2
    assert torch.allclose(adaptive.weights(first, 40, state), expected, rtol=1e-15)
    sums = adaptive.sums(cluster.float(), first)
    assert sums.tolist() == [c * 8.0 for c in range(k)] + [8.0] * k


def test_the_curriculum_ends_with_all_noise_levels():
    """Whatever the losses do, patience (N - 1) (steps without progress) opens everything."""
    spec = TskDifCurSpec(clusters=4, patience=3)
    built = objective(spec)
    state, opened = built.adaptive.start(), []
    for _ in range(13):
        opened.append(state["shares"])
        state = built.adaptive.update(state, torch.tensor([50.0, BATCH], dtype=torch.float64))
    # The first step of each stage sets its best, then three do not improve it.
    assert opened == [1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4]
    plain = objective()
    assert torch.equal(drawn(built, 0, 500, 0, state), drawn(plain, 0, 500))


def test_the_curriculum_moves_down_through_noise():
    built = objective(TskDifCurSpec(clusters=4))
    lowest = [
        drawn(built, 0, 2000, 0, {**built.adaptive.start(), "shares": n}).min().item()
        for n in (1, 2, 3, 4)
    ]
    sigmas = ddpm_sigmas("linear", STEPS)
    for n, level in zip((1, 2, 3, 4), lowest, strict=True):
        floor = 1000 - 250 * n
        assert sigmas[floor] <= level <= sigmas[floor + 10]


def test_clts_moves_mass_to_the_middle_steps_and_stays():
    built, sigmas = objective(CltsSpec()), ddpm_sigmas("linear", STEPS)
    middle = [
        pmf_of(built.law(step), sigmas)[200:400].sum().item() for step in range(0, 12_000, 1000)
    ]
    rises = [b - a for a, b in pairwise(middle)]
    assert middle[0] == pytest.approx(0.2, abs=1e-12)
    # Linear in the step until the window of 10,000 steps ends.
    assert rises[:10] == pytest.approx([rises[0]] * 10, rel=1e-9)
    assert rises[0] > 0.01
    assert rises[10] == 0
