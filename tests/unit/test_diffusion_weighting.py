"""Loss weights: warm-up clamp, SpeeD's change-aware weights, and the order of composition."""

import json
import math
from pathlib import Path

import pytest
import torch

from fleetstep.diffusion.noise_levels import Asymmetric, LogNormal
from fleetstep.diffusion.objective import build_objective
from fleetstep.diffusion.spec import EdmSpec, FdmSpec, QuantileThreshold, SpeedSpec, WarmupSpec
from fleetstep.diffusion.strategies.speed import ChangeAware, min_max_weight
from fleetstep.diffusion.weighting import WarmupClamp

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "training.json").read_text())
QUANTILE = QuantileThreshold(q=0.7)


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def objective(*strategies, budget_images=1_000_000, global_batch=512):
    return build_objective(
        EdmSpec(), strategies, budget_images=budget_images, global_batch=global_batch
    )


@pytest.mark.parametrize("steps", [200, 400, 800])
def test_the_cap_follows_the_released_one(steps):
    clamp = WarmupClamp(5.0, 500.0, steps, "drop")
    reference = GOLDEN["loss_weight_warmup"][f"warmup_ite={steps}"]["clamp_by_step"]
    for step, cap in reference.items():
        # At step == steps the released product has drifted to 499.99..., under the 500 at which
        # it would stop; in closed form the window is over.
        if int(step) != steps:
            assert clamp.cap(int(step)) == pytest.approx(cap or math.inf, rel=1e-9)
    assert clamp.cap(steps) == math.inf


def test_a_cap_that_is_never_released_is_the_paper_s():
    """tau = 1.023 a step, from 5: with a window of 200 steps, `stop` is what it reaches there."""
    clamp = WarmupClamp(5.0, 5.0 * 1.023**200, 200, "never")
    for step, cap in GOLDEN["paper_warmup"]["tau=1.023"].items():
        assert clamp.cap(int(step)) == pytest.approx(cap, rel=1e-9)
    assert clamp.cap(10**9) == math.inf


def test_clamped_weights():
    for name, row in GOLDEN["clamped_weight_examples"].items():
        sigma = float(name.split("=")[1])
        for cap, weight in row.items():
            flat = WarmupSpec(start=float(cap.split("=")[1]), stop=500)
            assert objective(flat).weight(f64(sigma), 0).item() == pytest.approx(weight, rel=1e-9)


@pytest.mark.parametrize(
    ("window", "budget", "batch", "steps"),
    [
        (102_400, 10**9, 512, 200),
        (102_400, 10**9, 256, 400),
        (1000, 10**6, 512, 2),
        ("5%", 96_000, 96, 50),
        (0, 1000, 10, 0),
    ],
)
def test_a_window_of_images_becomes_optimiser_steps(window, budget, batch, steps):
    built = objective(WarmupSpec(window=window), budget_images=budget, global_batch=batch)
    assert built.clamps == (WarmupClamp(5.0, 500.0, steps, "drop"),)


@pytest.mark.parametrize("release", ["drop", "never"])
def test_a_window_of_nothing_is_no_warm_up(release):
    sigma = f64(0.002, 0.5, 80)
    none = objective(WarmupSpec(window=0, release=release))
    assert torch.equal(none.weight(sigma, 0), objective().weight(sigma, 0))


def test_fdm_s_warm_up_is_the_strategy_warm_up():
    inside = objective(FdmSpec())
    beside = objective(FdmSpec(warmup=None), WarmupSpec())
    assert inside == beside
    assert objective(FdmSpec(warmup=None)).clamps == ()


def d_psi_hat(i):
    """The paper's rate of change at step i of DDPM's linear schedule (SpeeD, theorem 1)."""
    steps, beta_0, delta = 1000, GOLDEN["speed_dPsi"]["beta_0"], GOLDEN["speed_dPsi"]["delta_beta"]
    t = i + 1
    return 2 * (beta_0 + delta * t / steps) * math.exp(-(beta_0 + delta * t / (2 * steps)) * t)


@pytest.mark.parametrize("lam", [0.5, 0.6, 0.8, 1.0])
def test_change_aware_weights_of_ddpm_are_the_paper_s(lam):
    for i, value in GOLDEN["speed_dPsi"]["at"].items():
        assert d_psi_hat(int(i)) == pytest.approx(value, rel=1e-9)
    g = f64(*map(d_psi_hat, range(1000)))
    weight = min_max_weight(g, g.min().item(), g.max().item(), lam)
    for i, expected in GOLDEN["speed_change_aware"][f"lambda={lam}"].items():
        assert weight[int(i)].item() == pytest.approx(expected, abs=1e-9)


def test_a_uniform_law_in_time_gives_the_paper_s_curve():
    """Change per quantile of VP's law (uniform time) is DDPM's dPsi per step, up to a factor."""

    class UniformTime:
        """sigma^2 = exp(B(t)) - 1, B(t) = 0.08 t + 19.9 t^2 / 2 (SpeeD's beta_0 and delta)."""

        beta_0, delta = 1000 * 8.01e-05, 1000 * 0.0199

        def icdf(self, u):
            return torch.expm1(self.beta_0 * u + self.delta * u**2 / 2).sqrt()

        def quantile_density(self, u):
            sigma = self.icdf(u)
            return (self.beta_0 + self.delta * u) * (1 + sigma**2) / (2 * sigma)

        def cdf(self, sigma):
            b = torch.log1p(sigma**2)
            return ((self.beta_0**2 + 2 * self.delta * b).sqrt() - self.beta_0) / self.delta

    weight = ChangeAware.of(UniformTime(), sd_ref=1.0, lam=0.6)
    for i, expected in GOLDEN["speed_change_aware"]["lambda=0.6"].items():
        level = UniformTime().icdf(f64((int(i) + 1) / 1000))
        # the paper measures its extremes on 1000 steps, we on 1024 quantiles
        assert weight(level).item() == pytest.approx(expected, abs=2e-3)


def test_lam_one_half_weighs_nothing():
    sigma = torch.logspace(-4, 3, 100, dtype=torch.float64)
    (multiplier,) = objective(SpeedSpec(lam=0.5)).multipliers
    assert torch.equal(multiplier(sigma), torch.full_like(sigma, 0.5))


def test_a_constant_change_weighs_one_half():
    flat = torch.full((9,), 0.3, dtype=torch.float64)
    rounding = flat * (1 + 1e-15 * torch.arange(9))
    for g in (flat, rounding, torch.zeros_like(flat)):
        assert torch.equal(min_max_weight(g, g.min(), g.max(), 0.8), torch.full_like(flat, 0.5))


def test_weights_fill_their_range_and_no_more():
    law = LogNormal(-1.2, 1.2)
    weight = ChangeAware.of(law, 0.5, 0.8)
    u = torch.linspace(1e-7, 1 - 1e-7, 50_001, dtype=torch.float64)
    values = weight(law.icdf(u))
    assert values.min().item() == pytest.approx(0.2, abs=1e-6)
    assert values.max().item() == pytest.approx(0.8, abs=1e-6)
    assert (values >= 0.2 - 1e-15).all()
    assert (values <= 0.8 + 1e-15).all()
    # beyond the outer quantiles, where the density vanishes, the weight is the one at the edge
    assert weight(f64(1e-12, 1e12)).tolist() == weight(law.icdf(f64(1e-4, 1 - 1e-4))).tolist()


def test_weights_are_measured_on_the_law_before_suppression():
    (with_sampling,) = objective(SpeedSpec(threshold=QUANTILE)).multipliers
    (without,) = objective(SpeedSpec(threshold=QUANTILE, sampling=False)).multipliers
    assert with_sampling == without


FDM_SPEED = (
    FdmSpec(multiplier=2),
    SpeedSpec(k=5, lam=0.6, threshold=QUANTILE),
)


def test_fdm_and_speed_compose_the_same_in_any_order():
    assert objective(*FDM_SPEED) == objective(*reversed(FDM_SPEED))


def test_fdm_and_speed_compose_as_pinned():
    """Clamp first, then multiply; and SpeeD wraps the process's law. Figures from plain math."""
    built = objective(*FDM_SPEED)
    golden = GOLDEN["composition"]
    for name, row in golden["rows"].items():
        sigma = f64(float(name))
        (multiplier,) = built.multipliers
        assert built.coefficients(sigma).c_in.item() == pytest.approx(row["c_in"], rel=1e-9)
        assert multiplier(sigma).item() == pytest.approx(row["change_aware"], rel=1e-9)
        for step in (0, 100, 200):
            expected = row[f"weight_step_{step}"]
            assert built.weight(sigma, step).item() == pytest.approx(expected, rel=1e-9)
    for u, sigma in golden["icdf"].items():
        assert built.noise_levels.icdf(f64(float(u))).item() == pytest.approx(sigma, rel=1e-9)
    assert isinstance(built.noise_levels, Asymmetric)
    assert built.base_noise_levels == LogNormal(-1.2, 1.2)


def test_reference_law_figures():
    law = LogNormal(-1.2, 1.2)
    for sigma, cdf in GOLDEN["lognormal_cdf"].items():
        level = f64(float(sigma))
        assert law.cdf(level).item() == pytest.approx(cdf, rel=1e-9)
        density = 1 / law.quantile_density(law.cdf(level)).item()
        assert density == pytest.approx(GOLDEN["lognormal_pdf"][sigma], rel=1e-8)


@pytest.mark.parametrize("case", GOLDEN["speed_P"], ids=str)
def test_reference_step_probabilities(case):
    """SpeeD's eq. 3 at every step, through the wrapper over a uniform law."""

    class Uniform:
        def cdf(self, level):
            return level

    k, tau = (int(part.split("=")[1]) for part in case.split(","))
    law = Asymmetric(Uniform(), k, tau / 1000)
    for i, expected in GOLDEN["speed_P"][case].items():
        if i == "mass_t_ge_700":
            assert 1 - law.cdf(f64(0.7)).item() == pytest.approx(expected, rel=1e-9)
        else:
            edges = f64(int(i) / 1000, (int(i) + 1) / 1000)
            assert law.cdf(edges).diff().item() == pytest.approx(expected, rel=1e-9)
