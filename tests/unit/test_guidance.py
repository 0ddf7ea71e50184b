"""Classifier-free guidance: the formula on exact denoisers, its cost, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from contracts.exact_denoisers import Mixture, golden_latents
from fleetstep.errors import SamplingError
from fleetstep.sampling.denoiser import FeatureDenoiser
from fleetstep.sampling.generate import generate
from fleetstep.sampling.guidance import Guided
from fleetstep.sampling.spec import (
    DpmppSpec,
    EulerSpec,
    GuidanceSpec,
    HeunAbSpec,
    HeunSpec,
    IpndmSpec,
    SolverSpec,
    ThresholdingSpec,
)
from fleetstep.sampling.trajectory import levels_for, sample
from solver_goldens import assert_golden, exact_denoiser, latents, levels_of, reference

SOLVERS = [EulerSpec(), HeunSpec(), IpndmSpec(), DpmppSpec()]
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
VARIANCES = torch.tensor([[0.3], [0.05], [0.1]], dtype=torch.float64)


class Classes:
    """Class k is Gaussian k of a mixture, "no class" the whole of it: an exact conditional D."""

    def __init__(self, channels: int = 2) -> None:
        generator = torch.Generator().manual_seed(0)
        self.means_KD = torch.randn(3, channels, dtype=torch.float64, generator=generator)
        self.variances_KD = VARIANCES.expand(3, channels)
        self.sigma_min, self.sigma_max, self.nfe = 0.002, 80.0, 0
        self.batches: list[int] = []

    def of_class(self, label: int) -> Mixture:
        which = slice(None) if label == -1 else slice(label, label + 1)
        weights = WEIGHTS[which] / WEIGHTS[which].sum()
        return Mixture(weights, self.means_KD[which], self.variances_KD[which])

    def __call__(self, x_BCHW: Tensor, sigma_B: Tensor, labels_B: Tensor | None) -> Tensor:
        self.nfe += 1
        self.batches.append(len(x_BCHW))
        labels_B = torch.full_like(sigma_B, -1).long() if labels_B is None else labels_B
        out_BCHW = torch.empty_like(x_BCHW)
        for label in (-1, 0, 1, 2):
            rows = labels_B == label
            out_BCHW[rows] = self.of_class(label)(x_BCHW[rows], sigma_B[rows], None)
        return out_BCHW


class ComponentAndWhole:
    """Label 0 is the golden mixture's first component, "no class" the whole of it."""

    def __init__(self) -> None:
        self.whole = exact_denoiser()
        weights_K, means_KD = self.whole.weights_K, self.whole.means_KD
        self.component = Mixture(weights_K[:1], means_KD[:1], self.whole.variances_KD[:1])
        self.sigma_min, self.sigma_max, self.nfe = 0.002, 80.0, 0

    def __call__(self, x_BCHW: Tensor, sigma_B: Tensor, labels_B: Tensor) -> Tensor:
        self.nfe += 1
        denoised = [each(x_BCHW, sigma_B, None) for each in (self.component, self.whole)]
        return torch.where((labels_B == 0)[:, None, None, None], *denoised)


class FeatureNet(Classes):
    """Classes, with features that tell the label of their row."""

    def with_features(
        self, x_BCHW: Tensor, sigma_B: Tensor, labels_B: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        assert labels_B is not None
        features = (10 * labels_B)[:, None, None, None] + x_BCHW
        return self(x_BCHW, sigma_B, labels_B), features


class ClassNet(nn.Module):
    """A small float32 network with an entry for "no class", like a real one."""

    def __init__(self) -> None:
        super().__init__()
        self.sigma_min, self.sigma_max, self.nfe = 0.002, 80.0, 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.inside = nn.Conv2d(2, 16, 3, padding=1)
            self.outside = nn.Conv2d(16, 2, 3, padding=1)
            self.embedding = nn.Embedding(6, 16)

    def forward(self, x_BCHW: Tensor, sigma_B: Tensor, labels_B: Tensor) -> Tensor:
        self.nfe += 1
        scale_B111 = (1 + sigma_B.square()).rsqrt()[:, None, None, None]
        hidden = self.inside((x_BCHW * scale_B111).float())
        hidden = hidden + self.embedding(labels_B % 6)[:, :, None, None]
        return self.outside(hidden.tanh()).tanh().to(x_BCHW.dtype)


def log_density(mixture: Mixture, x_BD: Tensor, sigma: float) -> Tensor:
    """log of the noised mixture's density at x, up to a constant: [B]."""
    total_KD = mixture.variances_KD + sigma**2
    square_BKD = (x_BD[:, None] - mixture.means_KD).square() / total_KD
    return (mixture.weights_K.log() - 0.5 * (square_BKD + total_KD.log()).sum(2)).logsumexp(1)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 1.5, 4.0])
@pytest.mark.parametrize("sigma", [0.05, 0.7, 5.0])
def test_the_guided_image_follows_the_guided_score(scale: float, sigma: float):
    # The score of p(x) (p(x | c) / p(x))^scale by differentiation, with no denoiser in it;
    # D = x + sigma^2 score.
    classes, label = Classes(), 1
    x = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x.requires_grad_()
    free = log_density(classes.of_class(-1), x, sigma)
    tilted = free + scale * (log_density(classes.of_class(label), x, sigma) - free)
    (score,) = torch.autograd.grad(tilted.sum(), x)
    guided = Guided(classes, GuidanceSpec(scale=scale))
    sigma_B, labels_B = torch.full((5,), sigma, dtype=torch.float64), torch.full((5,), label)
    with torch.no_grad():
        d = guided(x[:, :, None, None], sigma_B, labels_B)[:, :, 0, 0]
        torch.testing.assert_close(d, x + sigma**2 * score, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    "run",
    reference("cfg")["runs"],
    ids=lambda run: f"{run['solver']}-{run['w']:g}-{run['thresholding']}",
)
def test_golden_runs(run: dict[str, Any]):
    # Their thresholding is that of data-predicting multistep solvers, and no other's.
    thresholding = ThresholdingSpec() if run["thresholding"] else None
    solvers: dict[str, SolverSpec] = {
        "euler": EulerSpec(),
        "heun": HeunAbSpec(),
        "dpmpp2m": DpmppSpec(order=2, thresholding=thresholding),
    }
    solver, levels = solvers[run["solver"]], levels_of(run["schedule"], run["num_steps"])
    guided = Guided(ComponentAndWhole(), GuidanceSpec(scale=run["w"]))
    labels = torch.full((4,), run["cond_component"])
    result = sample(guided, solver, levels, 80.0 * latents(), labels)
    assert_golden(result.x_BCHW, run["x"])
    # The reference calls both halves at scale 1 as well.
    calls = run["network_forward_passes_counting_both"]
    assert result.nfe == (calls // 2 if run["w"] == 1 else calls)


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("channels", ["all", "first_three"])
def test_features_are_those_of_the_conditional_half(scale: float, channels: str):
    net, labels_B = FeatureNet(4), torch.tensor([2, 0, 1])
    guided = Guided(net, GuidanceSpec(scale=scale, channels=channels))
    assert isinstance(guided, FeatureDenoiser)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(3, 4, 1, 1, dtype=torch.float64, generator=generator)
    sigma_B = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    denoised, features = guided.with_features(x, sigma_B, labels_B)
    assert guided.nfe == guided.guidance.calls
    assert torch.equal(features, (10 * labels_B)[:, None, None, None] + x)
    assert torch.equal(denoised, guided(x, sigma_B, labels_B))
    with pytest.raises(SamplingError, match="needs class labels, got none"):
        guided.with_features(x, sigma_B, None)


@pytest.mark.parametrize("solver", SOLVERS)
def test_scale_one_is_the_plain_denoiser_to_the_bit_at_no_cost(solver: SolverSpec):
    plain, guided = Classes(), Classes()
    around = Guided(guided, GuidanceSpec(scale=1))
    labels = torch.tensor([0, 2, 1, 1])
    levels = levels_for(plain, solver, 9)
    assert torch.equal(levels_for(around, solver, 9), levels)
    expected = sample(plain, solver, levels, golden_latents(), labels)
    result = sample(around, solver, levels, golden_latents(), labels)
    assert torch.equal(result.x_BCHW, expected.x_BCHW)
    assert result.nfe == expected.nfe == 9
    assert guided.batches == plain.batches


@pytest.mark.parametrize("solver", SOLVERS)
def test_nfe_is_the_true_number_of_network_calls_per_image(solver: SolverSpec):
    classes, points = Classes(), 6
    guided = Guided(classes, GuidanceSpec(scale=2))
    nfe = 2 * solver.nfe_for(points)
    levels = levels_for(guided, solver, nfe)
    assert torch.equal(levels, levels_for(classes, solver, solver.nfe_for(points)))
    result = sample(guided, solver, levels, golden_latents(), torch.tensor([0, 1, 2, 0]))
    assert result.nfe == nfe
    # Rows of the network's batches for each of the four images.
    assert sum(classes.batches) / 4 == nfe
    assert set(classes.batches) == {8}  # one call for both


@pytest.mark.parametrize(
    ("solver", "nfe", "nearest"),
    [
        (EulerSpec(), 5, "nfe=4 or nfe=6"),
        (DpmppSpec(), 1, "nfe=2"),
        (HeunSpec(), 18, None),  # 2 x 9
        (HeunSpec(), 17, "nfe=14 or nfe=18"),
        (HeunSpec(), 16, "nfe=14 or nfe=18"),
    ],
)
def test_an_unreachable_number_is_refused_with_the_nearest(
    solver: SolverSpec, nfe: int, nearest: str | None
):
    guided = Guided(Classes(), GuidanceSpec(scale=1.5))
    if nearest is None:
        assert len(levels_for(guided, solver, nfe)) == 5 + 1  # and zero
        return
    with pytest.raises(SamplingError, match="2 times for guidance") as refusal:
        levels_for(guided, solver, nfe)
    assert f"exactly {nfe} network calls" in refusal.value.message
    assert refusal.value.remedy == f"nearest that works: {nearest}"


def test_first_three_guides_three_channels_and_leaves_the_fourth_conditional():
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(4, 4, 1, 1, dtype=torch.float64, generator=generator)
    sigma_B, labels_B = torch.full((4,), 0.8, dtype=torch.float64), torch.tensor([0, 1, 2, 1])
    every, three = (
        Guided(Classes(4), GuidanceSpec(scale=3, channels=channels))(x, sigma_B, labels_B)
        for channels in ("all", "first_three")
    )
    plain = Classes(4)(x, sigma_B, labels_B)
    assert torch.equal(three[:, :3], every[:, :3])
    assert torch.equal(three[:, 3:], plain[:, 3:])
    assert (every[:, 3:] - plain[:, 3:]).abs().min() > 1e-3


def test_first_three_of_three_channels_is_all_of_them():
    x = torch.ones(2, 3, 1, 1, dtype=torch.float64)
    sigma_B, labels_B = torch.ones(2, dtype=torch.float64), torch.tensor([0, 1])
    every, three = (
        Guided(Classes(3), GuidanceSpec(scale=3, channels=channels))(x, sigma_B, labels_B)
        for channels in ("all", "first_three")
    )
    assert torch.equal(three, every)


GENERATED = {"shape": (2, 8, 8), "classes": 5, "batch": 4}


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_guided_image_depends_on_its_seed_alone(solver: SolverSpec):
    def drawn(first: int, count: int) -> np.ndarray:
        options = {**GENERATED, "guidance": GuidanceSpec(scale=2.5), "first": first}
        net = ClassNet().eval()
        generated = generate(net, solver, 10, count=count, **options)
        assert generated.nfe == 10
        return generated.images

    whole = drawn(0, 11)
    for first, count in [(0, 3), (3, 1), (2, 7), (10, 1)]:
        assert np.array_equal(drawn(first, count), whole[first : first + count])


@pytest.mark.parametrize("solver", SOLVERS)
def test_guidance_moves_images_and_scale_one_does_not(solver: SolverSpec):
    def drawn(nfe: int, guidance: GuidanceSpec | None) -> np.ndarray:
        net = ClassNet().eval()
        return generate(net, solver, nfe, count=4, guidance=guidance, **GENERATED).images

    plain = drawn(5, None)
    assert np.array_equal(drawn(5, GuidanceSpec(scale=1)), plain)
    assert not np.array_equal(drawn(10, GuidanceSpec(scale=3)), plain)


def test_guidance_needs_labels():
    with pytest.raises(SamplingError, match=r"scale 1\.5 needs class labels") as refusal:
        generate(
            ClassNet().eval(),
            EulerSpec(),
            4,
            count=2,
            shape=(2, 8, 8),
            classes=0,
            guidance=GuidanceSpec(scale=1.5),
        )
    assert refusal.value.remedy == "leave guidance out, or sample a class-conditional network"
    guided = Guided(Classes(), GuidanceSpec(scale=1))
    with pytest.raises(SamplingError, match="scale 1 needs class labels, got none"):
        sample(guided, EulerSpec(), levels_for(guided, EulerSpec(), 4), golden_latents())


def test_a_network_in_training_mode_is_found_behind_guidance():
    guided = Guided(ClassNet().eval(), GuidanceSpec(scale=2)).eval()
    assert generate(guided, EulerSpec(), 4, count=2, **GENERATED).nfe == 4
    guided.denoiser.inside.train()
    with pytest.raises(SamplingError, match="training mode"):
        generate(guided, EulerSpec(), 4, count=2, **GENERATED)


@pytest.mark.parametrize("wrong", [{"scale": -0.1}, {"scale": float("inf")}, {}, {"scale": "x"}])
def test_an_impossible_scale_is_refused(wrong: dict[str, object]):
    with pytest.raises(ValidationError, match="scale"):
        GuidanceSpec.model_validate(wrong)
