"""FDM: its mean coefficient, clock, kernels and warm-up, against reference figures and theory."""

import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from fleetstep.diffusion.loss import (
    DiffusionLoss,
    held_out_errors,
    held_out_levels,
    noise_at,
    noise_levels_at,
)
from fleetstep.diffusion.objective import build_objective
from fleetstep.diffusion.process import build_process
from fleetstep.diffusion.spec import (
    EdmSpec,
    FdmSpec,
    SpeedSpec,
    VeSpec,
    VpSpec,
    WarmupSpec,
    check_strategies,
)
from fleetstep.diffusion.strategies.fdm import damped_mean

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "processes.json").read_text())
PROCESSES = {"EDM": EdmSpec(), "VP": VpSpec(), "VE": VeSpec()}
SIGMAS = torch.logspace(-3, 2.5, 221, dtype=torch.float64)
ADDITIVE = FdmSpec(kernel="additive")


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def near(value, rel=1e-9):
    return pytest.approx(value, rel=rel, abs=0)


def objective(process, *strategies, batch=512):
    return build_objective(process, strategies, budget_images=1_000_000, global_batch=batch)


def c_in(process, sigma, **changes):
    return objective(process, FdmSpec(**changes)).coefficients(sigma).c_in


def clock(t):
    """Beta and B of FDM's clock."""
    return 0.1 + 19.9 * t, 0.1 * t + 19.9 * t**2 / 2


# --- the mean coefficient ---


def test_the_mean_at_values_of_the_clock():
    for b, row in GOLDEN["fdm_mean_coefficient_of_B"].items():
        point = f64(float(b)).requires_grad_()
        mu = damped_mean(point)
        assert mu.item() == near(row["mu"])
        assert torch.autograd.grad(mu, point)[0].item() == near(row["dmu_dB"])


def test_one_minus_the_mean_does_not_lose_its_digits_to_the_exponential():
    """1 - mu = -expm1(-B) - B exp(-B): mu itself is right to the last bits of float64."""
    for b, row in GOLDEN["fdm_mean_coefficient_of_B"].items():
        assert -math.expm1(-float(b)) - float(b) * math.exp(-float(b)) == near(row["one_minus_mu"])
    b = torch.logspace(-9, 2, 300, dtype=torch.float64)
    exact = -torch.expm1(-b) - b * torch.exp(-b)
    assert (1 - damped_mean(b) - exact).abs().max().item() < 4 * 2.0**-53


def test_the_mean_is_critical_damping_in_the_clock_b():
    """x'' + 2 x' + x = 0 in B, from x = 1 at rest."""
    b = f64(0, 0.1, 1, 5, 20).requires_grad_()
    x = damped_mean(b)
    (first,) = torch.autograd.grad(x.sum(), b, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), b)
    assert (second + 2 * first + x).abs().max().item() < 1e-14
    assert (x[0].item(), first[0].item()) == (1, 0)


def test_in_time_the_paper_s_equation_leaves_a_residual():
    """FDM, eq. 12: x'' + 2 beta x' + beta^2 x = -beta' B exp(-B) for this x, which is 0 only if
    beta is constant; with 2 beta - beta'/beta in place of 2 beta it is solved.
    """
    for name, row in GOLDEN["fdm_ode_check"].items():
        t = f64(float(name)).requires_grad_()
        beta, b = clock(t)
        x = damped_mean(b)
        (first,) = torch.autograd.grad(x, t, create_graph=True)
        (second,) = torch.autograd.grad(first, t)
        residual = second + 2 * beta * first + beta**2 * x
        assert x.item() == near(row["mu"])
        assert first.item() == pytest.approx(row["mu_dot"], rel=1e-9, abs=1e-15)
        assert second.item() == near(row["mu_ddot"])
        assert residual.item() == pytest.approx(row["ode12_residual"], rel=1e-9, abs=1e-14)
        assert residual.item() == pytest.approx((-19.9 * b * torch.exp(-b)).item(), abs=1e-12)
        assert (residual - 19.9 / beta * first).abs().item() < 1e-12


@pytest.mark.parametrize("m", [1, 2])
def test_the_paper_s_equation_solved_numerically_is_another_curve(m):
    def slopes(correction):
        def of(t, y):
            beta = m * (0.1 + 19.9 * t)
            friction = 2 * beta - (m * 19.9 / beta if correction else 0)
            return [y[1], -friction * y[1] - beta**2 * y[0]]

        return of

    rows = GOLDEN["fdm_ode_numeric"][f"m={m}"]
    times = [float(t) for t in rows]
    paper, corrected = (
        solve_ivp(slopes(c), (0, 1), [1, 0], "DOP853", times, rtol=1e-11, atol=1e-14).y[0]
        for c in (False, True)
    )
    closed = damped_mean(m * clock(f64(*times))[1]).numpy()
    assert closed.tolist() == [near(row["closed_form"]) for row in rows.values()]
    assert paper.tolist() == [pytest.approx(r["ode12"], rel=1e-6) for r in rows.values()]
    assert np.abs(corrected - closed).max() < 1e-9
    assert (np.abs(paper / closed - 1) > 1e-4).all()


def test_the_mean_decays_faster_than_vp_s_only_in_late_clock_time():
    """Mu(B) < exp(-B/2) for B > 2.513 only; and under the linear clock B is small for long: at
    sigma = 10, where VP keeps 10 % of the signal, FDM keeps all of it.
    """
    b = f64(2.512, 2.514)
    assert (damped_mean(b) < torch.exp(-b / 2)).tolist() == [False, True]
    process = build_process(VpSpec())
    t = process.t_of_sigma(f64(10))
    assert t.item() == pytest.approx(0.676, abs=5e-4)
    assert process.scale(t).item() == pytest.approx(0.0995, abs=5e-5)
    assert c_in(VpSpec(), f64(10)).item() == pytest.approx(0.9988, abs=5e-5)
    assert c_in(VpSpec(), f64(10), time_map="process_time").item() < 0.06


# --- the clock ---


@pytest.mark.parametrize("row", GOLDEN["fdm_network_input_std_peak"])
def test_the_input_s_std_peaks_where_the_reference_does(row):
    """For data of standard deviation 0.5; without FDM, EDM's network sees exactly 1."""
    peak = GOLDEN["fdm_network_input_std_peak"][row]
    process, m = PROCESSES[row.split("-")[0]], float(row.split("=")[1])
    sigma = torch.linspace(10, 60, 500_001, dtype=torch.float64)
    std = c_in(process, sigma, multiplier=m) * (sigma**2 + 0.25).sqrt()
    assert std.max().item() == near(peak["peak_input_std"])
    assert sigma[std.argmax()].item() == pytest.approx(peak["sigma_at_peak"], abs=1e-3)
    highest = f64(build_process(process).sigma_max)
    top = c_in(process, highest, multiplier=m) * (highest**2 + 0.25).sqrt()
    assert top.item() == near(peak["input_std_at_sigma_max"])


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_the_linear_clock_spans_the_process_s_own_range(process):
    """T' is 0 at sigma_min and 1 at sigma_max, where B = 10.05; VE honours m as the others do."""
    built = build_process(process)
    ends = f64(built.sigma_min, built.sigma_max)
    for m in (0.5, 1, 2):
        low, high = c_in(process, ends, multiplier=m).tolist()
        assert low == 1
        assert high == near((1 + 10.05 * m) * math.exp(-10.05 * m))
    assert FdmSpec().multiplier == 1


def test_the_linear_clock_follows_a_narrower_range():
    half = EdmSpec(sigma_min=0.01, sigma_max=40)
    assert c_in(half, f64(40)).item() == near(11.05 * math.exp(-10.05))


def test_levels_beyond_the_range_extrapolate_unless_clamped():
    beyond = f64(160)  # t' = 2 (nearly): B = .2 + 4 * 9.95
    assert c_in(EdmSpec(), beyond).item() < 1e-14
    assert torch.equal(c_in(EdmSpec(), beyond, clamp_t=True), c_in(EdmSpec(), f64(80)))
    assert torch.equal(c_in(EdmSpec(), f64(1e-4), clamp_t=True), f64(1))
    assert c_in(EdmSpec(), f64(1e-4)).item() == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize("scale", [1, 2])
def test_process_time_is_vp_s_time(scale):
    """T' = t(sigma): with VP's own beta and m = 1, B is VP's, ln(1 + sigma^2)."""
    process = VpSpec(beta_scale=scale)
    same = {"beta_min": 0.1 * scale, "beta_d": 19.9 * scale}
    got = c_in(process, SIGMAS, time_map="process_time", **same)
    b = torch.log1p(SIGMAS**2)
    assert torch.allclose(got, (1 + b) / (1 + SIGMAS**2), rtol=1e-9, atol=0)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("still", [{"beta_min": 0, "beta_d": 0}, {"multiplier": 0}])
def test_without_damping_fdm_is_its_base_with_c_in_one(process, still):
    plain = objective(process).coefficients(SIGMAS)
    built = objective(process, FdmSpec(warmup=None, **still))
    got = built.coefficients(SIGMAS)
    for a, b in zip(got, plain._replace(c_in=torch.ones_like(SIGMAS)), strict=True):
        assert torch.equal(a, b)
    if process.kind == "ve":

        def network(x, c_noise, labels):
            return 0.3 * x + 0.1 * c_noise.view(-1, 1, 1, 1)

        sigma, eps = noise_levels_at(built, 1, 0, 64), noise_at(1, 0, 64, (2, 4, 4))
        losses = [
            DiffusionLoss(o)(o.denoiser(network), eps.tanh(), None, sigma, eps, 0)
            for o in (built, objective(process))
        ]
        assert torch.equal(*losses)


# --- the warm-up ---


@pytest.mark.parametrize(("window", "batch"), [(200, 512), (400, 256), (800, 128)])
def test_the_released_caps_at_the_default_window(window, batch):
    """102,400 images are 200, 400 or 800 steps; the cap starts at 5 and goes at 500."""
    golden = GOLDEN["loss_weight_warmup"]["released"][f"warmup_ite={window}"]
    (clamp,) = objective(VpSpec(), FdmSpec(), batch=batch).clamps
    assert clamp.steps == window
    for step, cap in golden["clamp_by_call_index"].items():
        # The released product has drifted to 499.99... at step 200 of 200, and clamps once more.
        if int(step) != window:
            assert clamp.cap(int(step)) == near(cap or math.inf)
    assert clamp.cap(window) == math.inf
    assert clamp.cap(1) / clamp.cap(0) == near(golden["tau"])
    assert golden["tau"] == near(
        GOLDEN["loss_weight_warmup"]["exact_tau_for_100x"][f"{window} its"]
    )


@pytest.mark.parametrize("tau", ["1.023", "1.011"])
def test_the_paper_s_caps_are_a_warm_up_that_is_never_released(tau):
    golden = GOLDEN["loss_weight_warmup"]["paper"][f"tau={tau}"]
    spec = WarmupSpec(stop=5 * float(tau) ** 400, window=400 * 512, release="never")
    (clamp,) = objective(EdmSpec(), spec).clamps
    for step, cap in golden.items():
        assert clamp.cap(int(step)) == near(cap)
    steps = GOLDEN["loss_weight_warmup"]["iterations_to_500"][f"tau={tau}"]
    assert clamp.cap(math.floor(steps)) < 500 < clamp.cap(math.ceil(steps))


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("step", [0, 57, 199, 200])
def test_the_cap_in_units_of_what_the_network_predicts(process, step):
    """Min(1, c_k c_out^2): on VP and VE it bites below sigma = 0.447 at first, on EDM below 1 or
    so.
    """
    built = objective(process, FdmSpec())
    c_out = built.coefficients(SIGMAS).c_out
    cap = 5 * 100 ** (step / 200) if step < 200 else math.inf
    expected = (cap * c_out**2).clamp(max=1)
    assert torch.allclose(built.weight(SIGMAS, step) * c_out**2, expected, rtol=1e-12)


# --- the kernel as printed ---

KERNELS = {
    "m=1": ADDITIVE,
    "m=2": FdmSpec(kernel="additive", multiplier=2),
    "process time": FdmSpec(kernel="additive", time_map="process_time"),
    "clamped": FdmSpec(kernel="additive", multiplier=2, clamp_t=True),
    "undamped": FdmSpec(kernel="additive", multiplier=0),
}
every_kernel = pytest.mark.parametrize("spec", KERNELS.values(), ids=KERNELS)


def own(spec):
    """Paper's sigma over VP's range and a little beyond, with mu worked out here."""
    process = build_process(VpSpec())
    sigma = torch.logspace(
        math.log10(process.sigma_min), math.log10(200), 501, dtype=torch.float64
    )
    low, high = process.sigma_min, process.sigma_max
    t = (sigma - low) / (high - low)
    if spec.time_map == "process_time":
        t = process.t_of_sigma(sigma)
    b = spec.multiplier * clock(t.clamp(0, 1) if spec.clamp_t else t)[1]
    return sigma, (1 + b) * torch.exp(-b)


@every_kernel
def test_additive_coefficients_are_functions_of_the_level(spec):
    """c_skip = 1, c_out = -sigma', c_in = mu(sigma), c_noise = 999 t(sigma), w = 1/sigma'^2."""
    sigma, mu = own(spec)
    level = sigma / mu
    built = objective(VpSpec(), spec)
    got = built.coefficients(level)
    assert torch.equal(got.c_skip, torch.ones_like(level))
    assert torch.equal(got.c_out, -level)
    # mu's own slope multiplies what is left of the inverse's error by b = 18 at most.
    assert torch.allclose(got.c_in, mu, rtol=1e-10, atol=0)
    t = build_process(VpSpec()).t_of_sigma(sigma)
    assert torch.allclose(got.c_noise, 999 * t, rtol=1e-12, atol=0)
    assert torch.equal(built.weight(level, 10_000), level**-2)


@every_kernel
def test_the_level_and_its_inverse(spec):
    sigma, mu = own(spec)
    law = objective(VpSpec(), spec).noise_levels
    assert torch.allclose(law.kernel.level(sigma), sigma / mu, rtol=1e-12, atol=0)
    assert torch.allclose(law.kernel.sigma(sigma / mu), sigma, rtol=1e-12, atol=0)
    extremes = f64(1e-9, 1e-4, 1e9, 1e15)
    assert torch.allclose(law.kernel.level(law.kernel.sigma(extremes)), extremes, rtol=1e-11)


@every_kernel
def test_the_additive_law_is_vp_s_through_the_map(spec):
    built, plain = objective(VpSpec(), spec), objective(VpSpec())
    u = torch.linspace(1e-6, 1 - 1e-6, 997, dtype=torch.float64)
    level = built.noise_levels.icdf(u)
    assert (level.diff() > 0).all()
    assert torch.allclose(built.noise_levels.cdf(level), u, rtol=1e-9, atol=1e-12)
    assert torch.allclose(built.noise_levels.kernel.sigma(level), plain.noise_levels.icdf(u))
    assert built.base_noise_levels == plain.base_noise_levels


@every_kernel
def test_the_additive_loss_is_the_plain_eps_loss(spec):
    """E ||F(mu x0 + sigma eps, 999 t) - eps||^2, at every level to 1e-5, with nothing infinite."""
    sigma, mu = own(spec)
    level = sigma / mu
    x0 = noise_at(3, 0, len(sigma), (3, 8, 8)).tanh()
    eps = noise_at(4, 0, len(sigma), (3, 8, 8))
    seen = {}

    def network(x, c_noise, labels):
        seen.update(x=x, c_noise=c_noise)
        return weight * 0.7 * eps + 0.2

    weight = torch.nn.Parameter(torch.ones(()))
    built = objective(VpSpec(), spec)
    loss = DiffusionLoss(built)(built.denoiser(network), x0, None, level, eps, 10_000)
    expected = (0.7 * eps + 0.2 - eps).square().sum((1, 2, 3))
    assert torch.allclose(loss, expected, rtol=1e-5, atol=0)
    x_t = mu.view(-1, 1, 1, 1) * x0 + sigma.view(-1, 1, 1, 1) * eps
    assert torch.allclose(seen["x"].double(), x_t, rtol=1e-6, atol=1e-6)
    t = build_process(VpSpec()).t_of_sigma(sigma)
    assert torch.allclose(seen["c_noise"].double(), 999 * t, rtol=1e-6)
    (slope,) = torch.autograd.grad(loss.sum(), weight)
    exact = (2 * 0.7 * eps * (0.7 * eps + 0.2 - eps)).sum().item()
    assert slope.item() == pytest.approx(exact, rel=1e-4)


def test_held_out_errors_and_draws_of_the_additive_kernel_are_finite():
    built = objective(VpSpec(), FdmSpec(kernel="additive", multiplier=2))
    levels = noise_levels_at(built, 0, 0, 20_000)
    assert 1e8 < levels.max() < 1e10
    assert build_process(VpSpec()).sigma_min < levels.min() < 0.1
    held = held_out_levels(built, 8, 0, 0, 4)
    assert held.max() < 153
    x0 = noise_at(0, 0, 4, (1, 4, 4))
    denoiser = built.denoiser(lambda x, c_noise, labels: torch.zeros_like(x))
    assert held_out_errors(denoiser, built.own_weight, x0, None, 0, held, 0).isfinite().all()
    assert pickle.loads(pickle.dumps(built)) == built


def test_what_the_additive_kernel_cannot_stand_beside_is_named():
    assert check_strategies(VpSpec(), [ADDITIVE]) == []
    alone = FdmSpec(kernel="additive", warmup=None)
    assert check_strategies(VpSpec(), [WarmupSpec(), alone]) == []
    (problem,) = check_strategies(VpSpec(), [SpeedSpec(), ADDITIVE])
    assert "strategies[1] (fdm) with kernel additive changes the noise levels" in problem
    assert "set kernel: multiplicative in strategies[1], or remove strategies[0]" in problem
    for process in (EdmSpec(), VpSpec(prediction="v")):
        (problem,) = check_strategies(process, [ADDITIVE])
        assert "kernel additive is for the eps-prediction of vp" in problem
    (problem,) = check_strategies(VpSpec(), [FdmSpec(kernel="additive", multiplier=4)])
    assert "the highest would be 1e18, above 1e+15: use a smaller multiplier" in problem
    (problem,) = check_strategies(VeSpec(), [FdmSpec(time_map="process_time")])
    assert "VP's own time, which ve does not have: use linear" in problem
