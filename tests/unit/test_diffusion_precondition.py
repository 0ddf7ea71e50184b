"""Preconditioning and denoiser against reference figures and closed forms."""

import json
import math
from pathlib import Path

import pytest
import torch

from fleetstep.diffusion.objective import build_objective
from fleetstep.diffusion.precondition import Denoiser, edm_coefficients
from fleetstep.diffusion.process import build_process
from fleetstep.diffusion.spec import EdmSpec, FdmSpec
from fleetstep.diffusion.strategies.fdm import damped_mean

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "training.json").read_text())
SD = 0.5


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def objective(*strategies, process=None):
    return build_objective(
        process or EdmSpec(), strategies, budget_images=1_000_000, global_batch=512
    )


def fdm(**changes):
    return objective(FdmSpec(**changes)).coefficients


@pytest.mark.parametrize(
    ("name", "strategies"), [("EDM", ()), ("EDM-FDM m=2", (FdmSpec(multiplier=2),))]
)
def test_reference_rows(name, strategies):
    built = objective(*strategies)
    for sigma, row in GOLDEN["preconditioning"][name].items():
        level = f64(float(sigma))
        got = built.coefficients(level)._asdict() | {"weight_x0": built.base_weight(level)}
        for key, value in got.items():
            assert value.dtype == torch.float64
            assert value.item() == pytest.approx(row[key], rel=1e-9)


def test_critical_damping_of_b():
    for b, row in GOLDEN["fdm_mean_coefficient_of_B"].items():
        assert damped_mean(f64(float(b))).item() == pytest.approx(row["mu"], rel=1e-9)


def test_multiplier_one_is_the_mean_at_b_itself():
    """At the top of EDM's range t' = 1, so c_in = mu(m B(1)) with B(1) = 10.05."""
    assert fdm(multiplier=1)(f64(80)).c_in.item() == pytest.approx(11.05 * math.exp(-10.05))
    assert fdm(multiplier=2)(f64(80)).c_in.item() == pytest.approx(
        GOLDEN["fdm_mean_coefficient_of_B"]["20.1"]["mu"], rel=1e-9
    )


@pytest.mark.parametrize("m", [1, 2])
def test_input_std_of_fdm_peaks_where_the_reference_does(m):
    peak = GOLDEN["fdm_network_input_std_peak"][f"EDM-FDM m={m}"]
    sigma = torch.linspace(10, 40, 300_001, dtype=torch.float64)
    std = fdm(multiplier=m)(sigma).c_in * (sigma**2 + SD**2).sqrt()
    assert std.max().item() == pytest.approx(peak["peak_input_std"], rel=1e-9)
    assert sigma[std.argmax()].item() == pytest.approx(peak["sigma_at_peak"], abs=1e-3)
    top = fdm(multiplier=m)(f64(80)).c_in.item() * math.sqrt(80**2 + SD**2)
    assert top == pytest.approx(peak["input_std_at_sigma_max"], rel=1e-9)


def test_edm_keeps_unit_variance_in_and_out():
    sigma = torch.logspace(-3, 3, 61, dtype=torch.float64)
    c = edm_coefficients(SD)(sigma)
    assert torch.allclose(c.c_in**2 * (sigma**2 + SD**2), torch.ones_like(sigma), rtol=1e-12)
    # Var[x0 - c_skip x] = c_out^2: what the network must say has unit variance.
    target = (1 - c.c_skip) ** 2 * SD**2 + c.c_skip**2 * sigma**2
    assert torch.allclose(c.c_out**2, target, rtol=1e-9)


def test_without_friction_fdm_feeds_the_image_as_it_is():
    sigma = torch.logspace(-3, 3, 61, dtype=torch.float64)
    assert torch.equal(fdm(beta_min=0, beta_d=0)(sigma).c_in, torch.ones_like(sigma))
    assert torch.equal(fdm(multiplier=0)(sigma).c_in, torch.ones_like(sigma))


def test_levels_beyond_the_range_extrapolate_unless_clamped():
    beyond = f64(160)  # t' = 2 (nearly): B = .2 + 4 * 9.95
    assert fdm()(beyond).c_in.item() < 1e-14
    assert torch.equal(fdm(clamp_t=True)(beyond).c_in, fdm()(f64(80)).c_in)
    assert torch.equal(fdm(clamp_t=True)(f64(1e-4)).c_in, f64(1))
    assert fdm()(f64(1e-4)).c_in.item() == pytest.approx(1, abs=1e-10)


def test_fdm_s_clock_follows_the_process_s_range():
    half = objective(FdmSpec(), process=EdmSpec(sigma_min=0.01, sigma_max=40))
    assert half.coefficients(f64(40)).c_in.item() == pytest.approx(11.05 * math.exp(-10.05))


def test_edm_process_derivatives_are_those_of_its_functions():
    process = build_process(EdmSpec())
    t = torch.logspace(-2, 1, 20, dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(process.sigma(t).square().sum(), t)
    assert torch.allclose(process.dsigma2_dt(t), slope)
    assert torch.equal(process.t_of_sigma(process.sigma(t)), t)
    assert torch.equal(process.scale(t), torch.ones_like(t))
    assert torch.equal(process.dscale_dt(t), torch.zeros_like(t))


class Recorder(torch.nn.Module):
    """F(x, c) = 0.3 x + 0.1 c, which remembers what it was asked."""

    def forward(self, x, c_noise, labels):
        self.seen = (x, c_noise, labels)
        return 0.3 * x + 0.1 * c_noise.view(-1, 1, 1, 1)


@pytest.mark.parametrize("strategies", [(), (FdmSpec(multiplier=2),)], ids=["edm", "fdm"])
@pytest.mark.parametrize("sigma", [0.002, 0.5, 10.0])
def test_a_linear_network_gives_the_closed_form(strategies, sigma):
    row = GOLDEN["preconditioning"]["EDM-FDM m=2" if strategies else "EDM"][str(sigma)]
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    got = objective(*strategies).denoiser(Recorder())(x, sigma)
    expected = (row["c_skip"] + 0.3 * row["c_out"] * row["c_in"]) * x + 0.1 * row["c_out"] * row[
        "c_noise"
    ]
    # a float32 network inside: its rounding arrives multiplied by c_out
    assert (got - expected).abs().max().item() < 1e-6 * row["c_out"] * (1 + x.abs().max().item())


def test_the_network_sees_float32_and_the_state_stays_float64():
    network = Recorder()
    denoiser = objective().denoiser(network)
    x, labels = torch.randn(2, 1, 4, 4, dtype=torch.float64), torch.tensor([3, -1])
    assert denoiser(x, 1.0, labels).dtype == torch.float64
    assert (network.seen[0].dtype, network.seen[1].dtype) == (torch.float32, torch.float32)
    assert network.seen[2] is labels
    assert denoiser(x.float(), 1.0).dtype == torch.float32


def test_skip_path_is_exact_in_float64():
    """With F = 0, D = sd^2 / (sd^2 + sigma^2) x: the best linear denoiser of N(0, sd^2) data."""
    denoiser = objective().denoiser(lambda x, c, labels: torch.zeros_like(x))
    x = torch.randn(4, 1, 2, 2, dtype=torch.float64)
    for sigma in (0.002, 0.5, 80.0):
        assert torch.allclose(denoiser(x, sigma), SD**2 / (SD**2 + sigma**2) * x, rtol=1e-14)


def test_one_level_or_one_a_row():
    denoiser = objective().denoiser(Recorder())
    x = torch.randn(3, 1, 2, 2, dtype=torch.float64)
    sigma = f64(0.1, 1, 10)
    rows = torch.cat([denoiser(x[i : i + 1], sigma[i]) for i in range(3)])
    assert torch.allclose(denoiser(x, sigma), rows, rtol=1e-12)
    assert torch.equal(denoiser(x, 2.0), denoiser(x, f64(2.0, 2.0, 2.0)))
    with pytest.raises(RuntimeError):
        denoiser(x, f64(1, 2))


def test_network_calls_are_counted():
    denoiser = objective().denoiser(Recorder())
    x = torch.zeros(5, 1, 2, 2)
    for _ in range(3):
        denoiser(x, 1.0)
    assert denoiser.nfe == 3
    denoiser.reset()
    assert denoiser.nfe == 0


def test_a_module_is_registered_and_a_function_will_do():
    layer = torch.nn.Conv2d(1, 1, 1)
    assert list(Denoiser(Recorder(), edm_coefficients(SD), 0, 1).parameters()) == []

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x, c_noise, labels):
            return self.layer(x)

    denoiser = objective().denoiser(Network())
    assert [name for name, _ in denoiser.named_parameters()] == [
        "network.layer.weight",
        "network.layer.bias",
    ]
