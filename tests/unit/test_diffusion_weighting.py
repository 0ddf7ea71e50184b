"""Loss weights: the warm-up clamp, and the order in which strategies compose."""

import json
import math
from pathlib import Path

import pytest
import torch

from fleetstep.diffusion.change import inverse_density
from fleetstep.diffusion.noise_levels import Asymmetric, LogNormal
from fleetstep.diffusion.objective import build_objective
from fleetstep.diffusion.spec import EdmSpec, FdmSpec, QuantileThreshold, SpeedSpec, WarmupSpec
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
        density = 1 / inverse_density(law, level).item()
        assert density == pytest.approx(GOLDEN["lognormal_pdf"][sigma], rel=1e-9)
