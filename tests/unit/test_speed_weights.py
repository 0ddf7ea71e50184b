"""SpeeD's change-aware weights against reference figures, and how they compose with FDM."""

import math

import numpy as np
import pytest
import torch

from fleetstep.diffusion.change import (
    QuantileChange,
    SigmaDot,
    closed_form_change,
    step_change,
)
from fleetstep.diffusion.noise_levels import build_law
from fleetstep.diffusion.process import build_process
from fleetstep.diffusion.spec import (
    DdpmSpec,
    EdmSpec,
    FdmSpec,
    SpeedSpec,
    VeSpec,
    VpSpec,
    check_strategies,
)
from fleetstep.diffusion.spec.thresholds import threshold_sigma
from fleetstep.diffusion.strategies.speed import min_max_weight
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
    step_weights,
    with_reflection,
)

# Change-aware weights


def test_the_paper_s_rate_of_change():
    """S8, S13: b0 from spacing dbeta / T, and the variance of independent noises, as printed."""
    g = closed_form_change(LINEAR)
    for i, row in GOLDEN["bounds"].items():
        assert g[int(i)].item() == pytest.approx(row["dPsi_hat"], rel=1e-9)
    assert g.argmax().item() == GOLDEN["argmax_index_of_dPsi"]
    assert g.max().item() == pytest.approx(GOLDEN["max_dPsi"], rel=1e-9)
    assert g.min().item() == pytest.approx(GOLDEN["min_dPsi"], rel=1e-9)
    # the peak between acceleration and deceleration, t = i + 1
    assert abs(GOLDEN["t_accel_decel"] - (g.argmax().item() + 1)) < 0.5


def test_the_finite_difference_is_of_one_minus_abar():
    g = step_change(build_process(LINEAR), 1.0)
    for i, row in GOLDEN["bounds"].items():
        # differences of numbers near 1, of which the reference lost some digits
        assert g[int(i)].item() / 2 == pytest.approx(row["grad_1_minus_abar_fd"], rel=1e-9)


@pytest.mark.parametrize("name", GOLDEN["weights"])
def test_weights_of_ddpm_are_the_reference_s(name):
    """S2: weights in [1-lam, lam] everywhere; the released 1 above tau is tail_weight=1."""
    lam = float(name.split("=")[1])
    specs = {
        "paper_closed_form": SpeedSpec(lam=lam),
        "paper_finite_difference": SpeedSpec(lam=lam, change="finite_difference"),
        "released": SpeedSpec(lam=lam, change="finite_difference", threshold=TAU, tail_weight=1),
    }
    weights = {key: step_weights(LINEAR, spec) for key, spec in specs.items()}
    rows = dict(GOLDEN["weights"][name])
    expected = rows.pop("expected_weight")
    for i, row in rows.items():
        for key, value in row.items():
            assert weights[key][int(i)].item() == pytest.approx(value, rel=1e-9, abs=1e-15)
    closed, released = weights["paper_closed_form"], weights["released"]
    assert (closed >= 1 - lam - 1e-15).all()
    assert (closed <= lam + 1e-15).all()
    paper = pmf(LINEAR, SpeedSpec(k=5, threshold=TAU))
    means = {
        "paper_P_paper_w": closed @ paper,
        "released_P_released_w": released @ with_reflection(paper, LINEAR, 642),
        "uniform_P_paper_w": closed.mean(),
        "max_abs_closed_vs_fd": (closed - weights["paper_finite_difference"]).abs().max(),
    }
    for key, value in means.items():
        assert value.item() == pytest.approx(expected[key], rel=1e-9, abs=1e-15)


@pytest.mark.parametrize(
    ("process", "form"),
    [(LINEAR, "closed_form"), (QUADRATIC, "finite_difference"), (COSINE, "finite_difference")]
    + [(process, "quantile") for process in CONTINUOUS],
)
def test_the_default_measure_of_change(process, form):
    """S4: the paper's formula where it holds, else the released difference, else quantiles."""
    explicit = SpeedSpec(change=form)
    assert objective(process, SpeedSpec()) == objective(process, explicit)


@pytest.mark.parametrize("process", SCHEDULES.values(), ids=lambda p: p.schedule)
def test_quantiles_of_uniform_steps_are_the_released_difference(process):
    quantile, difference = (
        step_weights(process, SpeedSpec(change=change))
        for change in ("quantile", "finite_difference")
    )
    assert torch.allclose(quantile, difference, rtol=1e-12, atol=0)


def test_steps_are_measured_by_the_data_s_deviation():
    """Psi = 2 s^2 / (1 + s^2), s = sigma / sd_ref; only the released difference is at 1."""
    s2 = (build_process(LINEAR).table.numpy() / 0.5) ** 2
    g = torch.from_numpy(np.gradient(2 * s2 / (1 + s2)))
    expected = min_max_weight(g, g.min().item(), g.max().item(), 0.6)
    weight = step_weights(LINEAR, SpeedSpec(change="quantile", sd_ref=0.5))
    assert torch.allclose(weight, expected, rtol=1e-12, atol=0)
    released, plain = (
        step_weights(LINEAR, SpeedSpec(change="finite_difference", sd_ref=sd))
        for sd in (0.5, None)
    )
    assert torch.equal(released, plain)


def test_uniform_time_gives_the_paper_s_weights():
    """VP with SpeeD's b0 and dbeta in units of T: quantiles of its law are the paper's times."""
    beta_min, beta_d = 1000 * GOLDEN["beta_0"], 1000 * GOLDEN["delta_beta"]
    process = VpSpec(beta_min=beta_min, beta_d=beta_d)
    weight = multiplier(process, SpeedSpec(lam=1.0))
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    paper = step_weights(LINEAR, SpeedSpec(lam=1.0))
    # the paper measures its extremes on 1000 steps, we on 1024 quantiles
    sigma = build_process(process).sigma(t)
    assert torch.allclose(weight(sigma), paper, rtol=0, atol=1e-2)
    assert torch.allclose(weight(sigma)[10:], paper[10:], rtol=0, atol=2e-3)


@pytest.mark.parametrize("process", CONTINUOUS, ids=lambda p: p.kind)
def test_change_by_level_is_the_change_by_quantile(process):
    """g = dPsi / du, by central differences over quantiles."""
    law = build_law(process)
    u = torch.linspace(1e-4, 1 - 1e-4, 1001, dtype=torch.float64)
    sigma = law.icdf(u)
    sd = 0.5 if process.kind == "edm" else 1.0

    def psi(u):
        square = (law.icdf(u) / sd).square()
        return 2 * square / (1 + square)

    h, inner = 1e-6, u[5:-5]
    slope = (psi(inner + h) - psi(inner - h)) / (2 * h)
    assert torch.allclose(QuantileChange.of(law, sd)(sigma[5:-5]), slope, rtol=1e-6, atol=0)


@pytest.mark.parametrize("process", CONTINUOUS, ids=lambda p: p.kind)
def test_weights_fill_their_range_and_no_more(process):
    weight, law = multiplier(process, SpeedSpec(lam=0.8)), build_law(process)
    u = torch.linspace(1e-7, 1 - 1e-7, 50_001, dtype=torch.float64)
    values = weight(law.icdf(u))
    assert values.min().item() == pytest.approx(0.2, abs=1e-6)
    assert values.max().item() == pytest.approx(0.8, abs=1e-5)
    assert (values >= 0.2 - 1e-15).all()
    assert (values <= 0.8 + 1e-15).all()
    # beyond the outer quantiles, where a density may vanish, the weight is the one at the edge
    edges = weight(law.icdf(f64(1e-4, 1 - 1e-4)))
    assert torch.allclose(weight(f64(1e-12, 1e12)), edges, rtol=1e-12)


@pytest.mark.parametrize("change", [None, "sigma_dot"])
@pytest.mark.parametrize("process", [*SCHEDULES.values(), *CONTINUOUS], ids=str)
def test_lam_one_half_weighs_nothing(process, change):
    sigma = torch.logspace(-4, 3, 100, dtype=torch.float64)
    weight = multiplier(process, SpeedSpec(lam=0.5, change=change))(sigma)
    assert torch.equal(weight, torch.full_like(sigma, 0.5))


def test_a_constant_change_weighs_one_half():
    flat = torch.full((9,), 0.3, dtype=torch.float64)
    rounding = flat * (1 + 1e-15 * torch.arange(9))
    for g in (flat, rounding, torch.zeros_like(flat)):
        low, high = g.min().item(), g.max().item()
        assert torch.equal(min_max_weight(g, low, high, 0.8), torch.full_like(flat, 0.5))


@pytest.mark.parametrize("process", [LINEAR, *CONTINUOUS], ids=lambda p: p.kind)
def test_the_tail_overrides_levels_above_the_threshold_only(process):
    plain, tailed = SpeedSpec(), SpeedSpec(tail_weight=1.25)
    level = threshold_sigma(process, tailed)
    sigma = f64(level * 0.999999, level, level * 1.02, 1e3 * level)
    before, after = (multiplier(process, spec)(sigma) for spec in (plain, tailed))
    assert torch.equal(after[:2], before[:2])
    assert after[2:].tolist() == [1.25, 1.25]


# Sigma-dot


def test_sigma_dot_of_the_processes():
    """S6: 2 d(s^2 sigma^2)/dt. Table 1 of the paper tabulates d(sigma^2)/dt for VE and EDM."""
    t = torch.linspace(1e-3, 1, 50, dtype=torch.float64)
    expected = {
        VpSpec(): 2 * (0.1 + 19.9 * t) * torch.exp(-(0.1 * t + 19.9 * t**2 / 2)),
        VeSpec(): torch.full_like(t, 2.0),
        EdmSpec(): 4 * t,
    }
    for spec, dot in expected.items():
        process = build_process(spec)
        assert torch.allclose(SigmaDot(process)(process.sigma(t)), dot, rtol=1e-9, atol=0)
    # of a step, that of the interval above it: half a step off the central difference
    steps = build_process(LINEAR)
    dot, central = SigmaDot(steps)(steps.table), step_change(steps, 1.0)
    assert torch.allclose(dot[50:], central[50:], rtol=0.02, atol=0)


@pytest.mark.parametrize("time_map", ["linear", "process_time"])
@pytest.mark.parametrize("multiplier_", [1, 2])
@pytest.mark.parametrize("process", CONTINUOUS, ids=lambda p: p.kind)
def test_sigma_dot_of_fdm_is_a_finite_difference(process, multiplier_, time_map):
    fdm = FdmSpec(multiplier=multiplier_, time_map=time_map, warmup=None)
    if check_strategies(process, [fdm]):
        return
    speed = SpeedSpec(change="sigma_dot")
    built = objective(process, fdm, speed)
    sigma = torch.logspace(-2, 1.5, 60, dtype=torch.float64)
    h = 1e-5 * sigma

    def variance(level):
        return (built.coefficients(level).c_in * level).square()

    slope = 2 * (variance(sigma + h) - variance(sigma - h)) / (2 * h)
    dot = built.multipliers[0].change(sigma)
    scale = slope.abs().max().item()
    assert torch.allclose(dot, slope, rtol=1e-6, atol=1e-8 * scale)
    assert not dot.requires_grad


def test_sigma_dot_of_fdm_falls_below_zero_above_the_peak_of_its_input():
    built = objective(EdmSpec(), FdmSpec(multiplier=2), SpeedSpec(change="sigma_dot"))
    # the network's input is widest at sigma = 17.66
    below, above = built.multipliers[0].change(f64(17.5, 17.8)).tolist()
    assert below > 0 > above


def test_sigma_dot_is_anchored_as_the_paper_says():
    """The weight of EDM is 1-lam at sigma_min and lam wherever 4 t >= 1; VE's never changes."""
    edm = multiplier(EdmSpec(), SpeedSpec(change="sigma_dot"))
    assert edm(f64(0.002, 0.25, 3, 80)).tolist() == pytest.approx([0.4, 0.6, 0.6, 0.6], rel=1e-12)
    middle = 0.4 + 0.2 * (0.4 - 0.008) / (1 - 0.008)
    assert edm(f64(0.1)).item() == pytest.approx(middle, rel=1e-12)
    ve = multiplier(VeSpec(), SpeedSpec(change="sigma_dot"))
    assert ve(f64(0.02, 1, 100)).tolist() == [0.5, 0.5, 0.5]
    # four steps are few enough for a change above 1, where lam is reached
    steps = DdpmSpec(schedule="cosine", steps=4)
    dot = SigmaDot(build_process(steps))(build_process(steps).table)
    assert dot.max() > 1
    expected = 0.4 + 0.2 * (dot.clamp(max=1) - dot.min()) / (1 - dot.min())
    weight = step_weights(steps, SpeedSpec(change="sigma_dot", threshold=QUANTILE))
    assert torch.allclose(weight, expected, rtol=1e-12, atol=0)
    fdm = multiplier(EdmSpec(), FdmSpec(), SpeedSpec(change="sigma_dot"))
    # its minimum is below 0, where the anchor is 0
    assert (fdm.low, fdm.high) == (0.0, 1.0)


# Composition


@pytest.mark.parametrize("process", CONTINUOUS, ids=lambda p: p.kind)
def test_fdm_and_speed_compose_on_every_process(process):
    """w = clamp(base) * change-aware, over the asymmetric law of the process's levels."""
    fdm, speed = FdmSpec(multiplier=2), SpeedSpec(k=5, lam=0.6, threshold=QUANTILE)
    both = objective(process, fdm, speed)
    sigma = torch.logspace(-2.5, 2, 50, dtype=torch.float64)
    for step, cap in ((0, 5.0), (100, 50.0), (200, math.inf)):
        base = objective(process).weight(sigma, 0).clamp(max=cap * (1 + 1e-15))
        expected = base * multiplier(process, speed)(sigma)
        assert torch.allclose(both.weight(sigma, step), expected, rtol=1e-12, atol=0)
    assert both.noise_levels == objective(process, speed).noise_levels
    assert both.coefficients == objective(process, fdm).coefficients


@pytest.mark.parametrize("change", [None, "quantile"])
def test_the_measure_is_the_process_s_own_whatever_is_drawn(change):
    """No correction by importance: suppression and another law leave the weights alone."""
    for process in (LINEAR, *CONTINUOUS):
        without = multiplier(process, SpeedSpec(sampling=False, change=change))
        assert multiplier(process, SpeedSpec(k=25, change=change)) == without


def test_edm_s_own_weight_leaves_its_network_s_loss_unweighted():
    """S7: c_out^2 w = 1, not c_out w = 1."""
    sigma = torch.logspace(-2, 2, 20, dtype=torch.float64)
    built = objective(EdmSpec(), SpeedSpec())
    unit = built.coefficients(sigma).c_out.square() * built.base_weight(sigma)
    assert torch.allclose(unit, torch.ones_like(unit), rtol=1e-12)
