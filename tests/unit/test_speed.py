"""SpeeD's draws and thresholds against reference figures, and what it refuses.

Where paper and released code differ, the tests here and in `test_speed_weights.py` say S1-S13.
Four of those are not of this method: S9 (networks), S10 (batch sizes), S11 (contradictory
tables), S12 (the log-normal comparator).
"""

import math

import pytest
import torch

from fleetstep.diffusion.coupling import Independent, ReflectedPairs, StepReflection
from fleetstep.diffusion.noise_levels import LogNormal
from fleetstep.diffusion.objective import build_objective
from fleetstep.diffusion.process import build_process
from fleetstep.diffusion.spec import (
    DdpmSpec,
    EdmSpec,
    LogitNormalSpec,
    LogNormalSpec,
    MagnitudeThreshold,
    QuantileThreshold,
    SlopeThreshold,
    SpeedSpec,
    StepsThreshold,
    VeSpec,
    VpSpec,
    check_strategies,
    closed_form_tau,
    nearly_inert,
    slope_count,
    suppressed_mass,
    threshold_quantile,
)
from fleetstep.diffusion.spec.thresholds import reflection_step, threshold_sigma
from fleetstep.diffusion.strategies.speed import ChangeAware
from fleetstep.errors import ConfigError
from speed_figures import (
    CONTINUOUS,
    COSINE,
    GOLDEN,
    LINEAR,
    QUADRATIC,
    QUANTILE,
    SCHEDULES,
    TAU,
    f64,
    multiplier,
    objective,
    pmf,
    with_reflection,
)


def check_pmf(p, row):
    for key, expected in row.items():
        match key:
            case "mass_t_ge_700":
                value = p[700:].sum().item()
            case "mass_t_ge_M" | "max_index_of_reflected":
                continue
            case _:
                value = p[int(key)].item()
        assert value == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert p.sum().item() == pytest.approx(1, abs=1e-12)


# Asymmetric sampling


@pytest.mark.parametrize("case", GOLDEN["P_paper_eq3"])
def test_probabilities_are_eq_3(case):
    """S1: without reflected pairs, which are off, levels are independent draws of eq. 3."""
    k = float(case.split(",")[0].removeprefix("k="))
    spec = SpeedSpec(k=k, threshold=TAU)
    check_pmf(pmf(LINEAR, spec), GOLDEN["P_paper_eq3"][case])
    assert objective(LINEAR, spec).coupling == Independent()


@pytest.mark.parametrize("case", GOLDEN["P_released_effective_with_dual_sampling"])
def test_reflected_pairs_have_the_released_probabilities(case):
    """S1: what the released code draws, as an option."""
    schedule, *rest = case.split(",")
    k, tau, at = (int(part.split("=")[1]) for part in rest)
    process = SCHEDULES[schedule]
    spec = SpeedSpec(k=k, threshold=StepsThreshold(count=tau), reflected_pairs=True)
    coupling = objective(process, spec).coupling
    assert coupling == ReflectedPairs(StepReflection(build_process(process), at))
    row = GOLDEN["P_released_effective_with_dual_sampling"][case]
    p = with_reflection(pmf(process, spec), process, at)
    check_pmf(p, row)
    assert p[at:].sum().item() == pytest.approx(row["mass_t_ge_M"], rel=1e-12)


def test_the_released_reflection():
    """i' = M - i below M, i - M from M on; never beyond the last step."""
    ddpm = build_process(LINEAR)
    index = torch.tensor([0, 1, 641, 642, 643, 999])

    def mirrored(at):
        return ddpm.index_of(StepReflection(ddpm, at)(ddpm.table[index])).tolist()

    assert mirrored(642) == [642, 641, 1, 0, 1, 357]
    assert mirrored(1000) == [999, 999, 359, 358, 357, 1]
    assert reflection_step(LINEAR, SpeedSpec(reflected_pairs=True, reflect_at=0.6)) == 600


@pytest.mark.parametrize("process", [LINEAR, *CONTINUOUS], ids=lambda p: p.kind)
def test_without_suppression_the_law_is_the_base_law_to_the_last_bit(process):
    plain, changed = objective(process), objective(process, SpeedSpec(k=1))
    assert changed.noise_levels == plain.noise_levels
    u = torch.linspace(1e-9, 1 - 1e-9, 997, dtype=torch.float64)
    assert torch.equal(changed.levels(u, 0, 0), plain.levels(u, 0, 0))


def test_the_paper_s_suppression_is_the_default():
    """S5: k = 5; the released FFHQ config has 2, which is k = 2 here."""
    assert SpeedSpec().k == 5
    assert SpeedSpec(k=2).k == 2


# Thresholds


def test_the_closed_form_of_the_threshold():
    for r, tau in GOLDEN["tau_of_r"].items():
        assert closed_form_tau(float(r), LINEAR) == pytest.approx(tau, rel=1e-9)
    for tau, r in GOLDEN["r_of_tau"].items():
        assert closed_form_tau(r, LINEAR) == pytest.approx(float(tau), rel=1e-9)
        rule = SpeedSpec(threshold=MagnitudeThreshold(r=r, rule="closed_form"))
        assert threshold_quantile(LINEAR, rule) == int(tau) / 1000


@pytest.mark.parametrize(
    ("process", "exact", "slope"), [(LINEAR, 697, 642), (QUADRATIC, 872, 829), (COSINE, 945, 959)]
)
def test_thresholds_of_every_rule(process, exact, slope):
    """S3: by count (the released 700), by magnitude on exact levels, by slope."""
    rules = {TAU: 700, MagnitudeThreshold(): exact, SlopeThreshold(): slope, QUANTILE: 700}
    table = build_process(process).table
    for threshold, count in rules.items():
        spec = SpeedSpec(threshold=threshold)
        assert threshold_quantile(process, spec) == count / 1000
        level = threshold_sigma(process, spec)
        assert (table <= level).sum() == count
        p = pmf(process, spec)
        assert torch.allclose(p[:count], 5 * p[-1], rtol=1e-9, atol=0)
        assert torch.allclose(p[count:], p[-1], rtol=1e-9, atol=0)
    assert slope_count(process.schedule, 1000, 1e-4) == slope


def test_the_magnitude_of_700_steps():
    """S3: r of tau = 700 is 138.6 by the closed form."""
    closed = SpeedSpec(threshold=MagnitudeThreshold(r=138.6, rule="closed_form"))
    assert threshold_quantile(LINEAR, closed) == 0.7


@pytest.mark.parametrize(
    ("process", "sd_ref", "mass", "inert"),
    [
        (VpSpec(), None, 0.301, False),
        (VeSpec(), None, 0.252, False),
        (EdmSpec(), None, 0.0067, True),
        (EdmSpec(), 1.0, 0.0011, True),
    ],
)
def test_the_magnitude_rule_suppresses_a_share_of_each_law(process, sd_ref, mass, inert):
    spec = SpeedSpec(sd_ref=sd_ref)
    assert suppressed_mass(process, spec) == pytest.approx(mass, abs=5e-4)
    warning = nearly_inert(process, spec)
    assert (warning is not None) == inert
    if warning is not None:
        assert f"{suppressed_mass(process, spec):.3g}" in warning
        assert "quantile" in warning
    assert nearly_inert(process, SpeedSpec(threshold=QUANTILE)) is None


def test_threshold_levels():
    assert threshold_sigma(VpSpec(), SpeedSpec()) == pytest.approx(math.sqrt(137.6))
    assert threshold_sigma(EdmSpec(), SpeedSpec()) == pytest.approx(math.sqrt(137.6) / 2)
    first = SpeedSpec(threshold=QuantileThreshold(q=1e-4))
    assert threshold_sigma(LINEAR, first) == build_process(LINEAR).sigmas[0]
    level = threshold_sigma(EdmSpec(), SpeedSpec(threshold=QUANTILE))
    assert level == pytest.approx(math.exp(-1.2 + 1.2 * 0.524400512708041), rel=1e-12)


def test_the_threshold_stays_at_its_level_under_another_law():
    """A log-normal law on VP has another share above the level that suppression begins at."""
    built, vp = objective(VpSpec(), LogNormalSpec(), SpeedSpec()), build_process(VpSpec())
    levels = f64(vp.sigma_min, math.sqrt(137.6), vp.sigma_max)
    low, at, high = LogNormal(-1.2, 1.2).cdf(levels).tolist()
    assert built.noise_levels.a == pytest.approx((at - low) / (high - low), rel=1e-12)
    assert objective(VpSpec(), SpeedSpec()).noise_levels.a == pytest.approx(0.699, abs=1e-3)


# Refusals


@pytest.mark.parametrize(
    ("process", "spec", "texts"),
    [
        (LINEAR, {"threshold": {"kind": "steps", "count": 1001}}, ["tau = 1001", "T = 1000"]),
        (
            LINEAR,
            {"threshold": {"kind": "magnitude", "r": 1e9}},
            ["magnitude rule r = 1e+09", "outside the support", "steps, count: 700"],
        ),
        (
            LINEAR,
            {"threshold": {"kind": "magnitude", "r": 1e9, "rule": "closed_form"}},
            ["closed form", "1 .. T = 1000"],
        ),
        (LINEAR, {"threshold": {"kind": "slope", "slope": 1e-9}}, ["no step"]),
        (
            COSINE,
            {"threshold": {"kind": "magnitude", "rule": "closed_form"}},
            ["linear schedule", "cosine", "rule: exact"],
        ),
        (VpSpec(), {"threshold": {"kind": "magnitude", "r": 1e9}}, ["sigma = 3.162e+04", "vp"]),
        (VeSpec(), {"threshold": {"kind": "magnitude", "r": 1.0001}}, ["sigma = 0.01", "ve"]),
        (EdmSpec(), {"threshold": {"kind": "steps"}}, ["steps", "edm", "quantile, q: 0.7"]),
        (VpSpec(), {"change": "closed_form"}, ["closed_form", "linear schedule"]),
        (COSINE, {"change": "closed_form"}, ["closed_form", "linear schedule"]),
        (EdmSpec(), {"change": "finite_difference"}, ["finite_difference", "not edm"]),
        (EdmSpec(), {"reflected_pairs": True}, ["reflect_at"]),
        (LINEAR, {"reflect_at": 0.6}, ["reflect_at", "reflected_pairs: false"]),
        (
            LINEAR,
            {"reflected_pairs": True, "reflect_at": 1e-5},
            ["reflect_at = 1e-05", "step 0", "at least 0.001"],
        ),
        (
            DdpmSpec(steps=100),
            {"reflected_pairs": True, "threshold": {"kind": "steps", "count": 70}},
            ["T = 100", "give reflect_at"],
        ),
        (LINEAR, {"weighting": False, "tail_weight": 1}, ["tail_weight", "weighting: false"]),
        (
            LINEAR,
            {"weighting": False, "change": "quantile", "normalize": "mean_one"},
            ["change and normalize", "weighting: false"],
        ),
        (LINEAR, {"sampling": False, "weighting": False}, ["changes nothing"]),
    ],
)
def test_what_does_not_fit_is_refused_with_rule_and_value(process, spec, texts):
    strategy = SpeedSpec.model_validate(spec)
    (problem,) = check_strategies(process, [strategy])
    for text in ("strategies[0] (speed)", *texts):
        assert text in problem
    with pytest.raises(ConfigError):
        objective(process, strategy)


@pytest.mark.parametrize(
    "field", [{"k": 0.99}, {"lam": 0.49}, {"lam": 5}, {"reflect_at": 1}, {"tail_weight": 0}]
)
def test_values_outside_their_range_are_refused(field):
    """S2: lam = 5, a released default, gives weights from -3.68 to 5."""
    with pytest.raises(ValueError, match=next(iter(field))):
        SpeedSpec(**field)


def test_a_threshold_that_nothing_uses_is_not_checked():
    weighting_only = SpeedSpec(sampling=False, threshold=MagnitudeThreshold(r=1e9))
    assert check_strategies(VpSpec(), [weighting_only]) == []
    assert isinstance(multiplier(VpSpec(), weighting_only), ChangeAware)


def test_a_replaced_law_has_its_own_suppressed_mass():
    """The threshold stays at its noise level, and the warning knows the law that is in use."""
    for process, other in (
        (VpSpec(), LogNormalSpec()),
        (VeSpec(), LogNormalSpec()),
        (VpSpec(), LogitNormalSpec(mean=-0.5)),
        (LINEAR, LogitNormalSpec()),
        (LINEAR, LogNormalSpec()),
        (LINEAR, LogNormalSpec(mean=5, std=3)),
    ):
        speed = SpeedSpec()
        built = build_objective(process, [other], budget_images=10_000, global_batch=100)
        level = torch.tensor([threshold_sigma(process, speed)], dtype=torch.float64)
        mass = 1 - built.noise_levels.cdf(level).item()
        assert suppressed_mass(process, speed, [speed, other]) == pytest.approx(mass, rel=1e-6)
    assert nearly_inert(VpSpec(), SpeedSpec()) is None
    assert "0.0011" in str(nearly_inert(VpSpec(), SpeedSpec(), [LogNormalSpec()]))
