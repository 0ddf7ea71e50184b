"""Preconditioning and denoiser against reference figures and closed forms."""

import json
import math
from pathlib import Path
from typing import get_args

import pytest
import torch

from fleetstep.diffusion.objective import build_objective
from fleetstep.diffusion.precondition import Denoiser, coefficients_of
from fleetstep.diffusion.process import build_process
from fleetstep.diffusion.spec import DdpmSpec, EdmSpec, FdmSpec, Prediction, VeSpec, VpSpec
from fleetstep.networks.spec import feature_shape
from small_networks import SMALL, awake, small_inputs, small_network

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "processes.json").read_text())
SD = 0.5
KINDS = {"EDM": EdmSpec, "VP": VpSpec, "VE": VeSpec, "DDPM": DdpmSpec}
every_kind = pytest.mark.parametrize("kind", KINDS)
every_prediction = pytest.mark.parametrize("prediction", get_args(Prediction))


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def near(value, rel=1e-9):
    return pytest.approx(value, rel=rel, abs=0)


def objective(*strategies, process=None):
    return build_objective(
        process or EdmSpec(), strategies, budget_images=1_000_000, global_batch=512
    )


@pytest.mark.parametrize("name", GOLDEN["preconditioning"])
def test_reference_rows(name):
    """The coefficients and base weights of EDM and VE, and of all three under FDM with m = 2."""
    strategies = (FdmSpec(multiplier=2),) if "FDM" in name else ()
    built = objective(*strategies, process=KINDS[name[:3].rstrip("-")]())
    for sigma, row in GOLDEN["preconditioning"][name].items():
        level = f64(float(sigma))
        got = built.coefficients(level)._asdict() | {"weight_x0": built.base_weight(level)}
        for key, value in got.items():
            assert value.dtype == torch.float64
            assert value.item() == near(row[key])
        if "t" in row:
            assert built.process.t_of_sigma(level).item() == near(row["t"])
        if strategies:
            std = got["c_in"] * torch.hypot(level, f64(0.5))
            assert std.item() == near(row["net_input_std_sigma_data_0.5"])


def test_vp_is_ddpm_s_scaling_in_continuous_time():
    """VP's own row: c_skip 1, c_out -sigma, c_in 1 / sqrt(1 + sigma^2), c_noise 999 t."""
    for t, row in GOLDEN["vp_sigma_of_t"].items():
        got = coefficients_of(VpSpec())(f64(row["sigma"]))
        assert (got.c_skip.item(), got.c_out.item()) == (1, -row["sigma"])
        assert got.c_in.item() == near(row["s"])
        assert got.c_noise.item() == near(999 * float(t))


@pytest.mark.parametrize("schedule", ["linear", "quadratic", "cosine"])
def test_ddpm_is_conditioned_on_the_step(schedule):
    process = DdpmSpec(schedule=schedule)
    for index, row in GOLDEN["ddpm_schedules_T1000"][schedule].items():
        sigma = build_process(process).table[int(index)]
        got = coefficients_of(process)(sigma.view(1))
        assert got.c_noise.item() == int(index)
        assert (got.c_skip.item(), got.c_out.item()) == (1, -sigma.item())
        assert got.c_in.item() ** 2 == near(row["alpha_bar"])
    between = build_process(process).sigma(f64(499.25))
    assert coefficients_of(process)(between).c_noise.item() == near(499.25)


def levels_of(process):
    """Levels over a process's range; of DDPM, its steps."""
    built = build_process(process)
    if process.kind == "ddpm":
        return built.table[::9]
    return torch.logspace(
        math.log10(built.sigma_min), math.log10(built.sigma_max), 112, dtype=torch.float64
    )


def target(process, x0, eps, sigma):
    """What the network is trained to say, from the definitions of the papers."""
    s = 1 / (1 + sigma**2).sqrt()
    match process.prediction:
        case "eps":
            # Song et al.'s VE network gives the score times sigma, which is -eps.
            return -eps if process.kind == "ve" else eps
        case "x0":
            return x0
        case "v":
            return s * eps - s * sigma * x0
        case "F":
            sd = SD if process.kind == "edm" else 1.0
            skip = sd**2 / (sigma**2 + sd**2) * (x0 + sigma * eps)
            return (x0 - skip) / (sigma * sd / (sigma**2 + sd**2).sqrt())


@every_kind
@every_prediction
def test_a_right_answer_of_any_prediction_is_the_clean_image(kind, prediction):
    process = KINDS[kind](prediction=prediction)
    sigma = levels_of(process)
    rows = sigma.view(-1, 1)
    generator = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(len(sigma), 50, generator=generator).double() for _ in range(2))
    c_skip, c_out, c_in, _ = (c.view(-1, 1) for c in coefficients_of(process)(sigma))
    recovered = c_skip * (x0 + rows * eps) + c_out * target(process, x0, eps, rows)
    # x = x0 + sigma eps keeps x0 up to sigma times the rounding of float64.
    assert ((recovered - x0).abs() < 1e-14 * (1 + rows) * (1 + eps.abs())).all()
    sd = SD if kind == "EDM" else 1.0
    unit = torch.ones_like(rows) if kind == "VE" else c_in * torch.hypot(rows, f64(sd))
    assert torch.allclose(unit, torch.ones_like(rows), rtol=1e-12)


@every_kind
@every_prediction
def test_the_loss_of_what_is_predicted_is_unweighted(kind, prediction):
    """W c_out^2 = 1, so w ||D - x0||^2 is ||F - target||^2 whatever F stands for."""
    process = KINDS[kind](prediction=prediction)
    sigma = levels_of(process)
    product = (
        objective(process=process).weight(sigma, 0) * coefficients_of(process)(sigma).c_out ** 2
    )
    assert torch.allclose(product, torch.ones_like(sigma), rtol=1e-12, atol=0)


@every_kind
@every_prediction
def test_a_prediction_leaves_input_and_noise_condition(kind, prediction):
    sigma = levels_of(KINDS[kind]())
    own, other = (
        coefficients_of(p)(sigma) for p in (KINDS[kind](), KINDS[kind](prediction=prediction))
    )
    assert torch.equal(own.c_in, other.c_in)
    assert torch.equal(own.c_noise, other.c_noise)


def test_edm_keeps_unit_variance_in_and_out():
    sigma = torch.logspace(-3, 3, 61, dtype=torch.float64)
    c = coefficients_of(EdmSpec(sigma_data=SD))(sigma)
    assert torch.allclose(c.c_in**2 * (sigma**2 + SD**2), torch.ones_like(sigma), rtol=1e-12)
    # Var[x0 - c_skip x] = c_out^2: what the network must say has unit variance.
    target = (1 - c.c_skip) ** 2 * SD**2 + c.c_skip**2 * sigma**2
    assert torch.allclose(c.c_out**2, target, rtol=1e-9)


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
    assert (
        list(Denoiser(Recorder(), coefficients_of(EdmSpec(sigma_data=SD)), 0, 1).parameters())
        == []
    )

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


@pytest.mark.parametrize("kind", SMALL)
def test_features_come_with_the_same_image_from_one_call(kind):
    network = awake(small_network(SMALL[kind])).eval()
    denoiser = objective().denoiser(network).eval()
    x, _, labels = small_inputs()
    x, sigma = x.double(), f64(80.0, 3.0, 0.2, 0.002)
    with torch.inference_mode():
        image = denoiser(x, sigma, labels)
        again, features = denoiser.with_features(x, sigma, labels)
        louder, others = denoiser.with_features(2 * x, sigma, labels)
    assert torch.equal(again, image)
    assert features.shape == (4, *feature_shape(SMALL[kind], 8))
    assert not torch.equal(others, features)
    assert not torch.equal(louder, image)
    assert denoiser.nfe == 3


def test_what_a_network_gives_beyond_the_image_comes_back_apart():
    x = torch.randn(2, 3, 4, 4)
    plain = objective().denoiser(lambda x, c, labels: 0.5 * x)
    double = objective().denoiser(lambda x, c, labels: torch.cat([0.5 * x, x.square()], 1))
    d, rest = double.with_rest(x, 0.7)
    assert torch.equal(d, plain(x, 0.7))
    assert torch.equal(d, double(x, 0.7))
    scaled = coefficients_of(EdmSpec())(f64(0.7)).c_in.float() * x
    assert torch.equal(rest, scaled.square())
    assert plain.with_rest(x, 0.7)[1].shape == (2, 0, 4, 4)


def test_augmentations_are_named_to_the_network_only_if_there_are_any():
    seen = []
    denoiser = objective().denoiser(lambda x, *conditions: seen.append(conditions) or x)
    x, labels, augment = torch.zeros(2, 1, 2, 2), torch.tensor([0, -1]), torch.zeros(2, 9)
    denoiser(x, 1.0, labels)
    denoiser(x, 1.0, labels, augment)
    assert [len(conditions) for conditions in seen] == [2, 3]
    assert seen[1][2] is augment
