"""The comparators' closed forms against golden figures, and what may be combined."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from fleetstep.diffusion.noise_levels import Asymmetric, LogNormal
from fleetstep.diffusion.objective import build_objective
from fleetstep.diffusion.spec import (
    AntUwSpec,
    CltsSpec,
    DdpmSpec,
    EdmSpec,
    LogitNormalSpec,
    LogNormalSpec,
    MinSnrSpec,
    P2Spec,
    SpeedSpec,
    StepsThreshold,
    TskDifCurSpec,
    UniformSpec,
    VeSpec,
    VpSpec,
    WarmupSpec,
    check_strategies,
    ddpm_sigmas,
)
from fleetstep.diffusion.strategies.curriculum import EasyToHard
from fleetstep.diffusion.strategies.resampling import log_normal_pmf
from fleetstep.diffusion.strategies.uncertainty import UncertaintyWeights
from fleetstep.errors import ConfigError

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "comparators.json").read_text())
LINEAR = DdpmSpec()
SIGMAS = ddpm_sigmas("linear", 1000)


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def objective(*strategies, process=LINEAR, global_batch=100, budget_images=5_000_000):
    return build_objective(
        process, strategies, budget_images=budget_images, global_batch=global_batch
    )


def pmf(law, sigmas=SIGMAS):
    """Probabilities of the steps, read off a law's cumulative probability."""
    return torch.diff(law.cdf(f64(*sigmas)), prepend=f64(0)).tolist()


@pytest.mark.parametrize("index", GOLDEN["snr_weights_linear_T1000"])
def test_weights_of_steps_in_every_space(index):
    row, sigma = GOLDEN["snr_weights_linear_T1000"][index], f64(SIGMAS[int(index)])
    snr = row["snr"]
    # w on ||D - x0||^2 is w / SNR on the eps-loss and w / (SNR + 1) on the v-loss.
    for spec, eps_key, x0_key, v_key in [
        (P2Spec(), "p2_eps_k1_g1", "p2_x0_k1_g1", None),
        (P2Spec(gamma=0.5), "p2_eps_k1_g05", None, None),
        (MinSnrSpec(), "minsnr5_eps", "minsnr5_x0", "minsnr5_v"),
        (MinSnrSpec(gamma=1), "minsnr1_eps", None, None),
    ]:
        weight = objective(spec).weight(sigma, 0).item()
        assert weight / snr == pytest.approx(row[eps_key], rel=1e-9)
        if x0_key:
            assert weight == pytest.approx(row[x0_key], rel=1e-9)
        if v_key:
            assert weight / (snr + 1) == pytest.approx(row[v_key], rel=1e-9)


@pytest.mark.parametrize("sigma", GOLDEN["snr_weights_at_sigma"])
@pytest.mark.parametrize("process", [VpSpec(), EdmSpec()], ids=["vp", "edm"])
def test_weights_replace_those_of_continuous_processes(process, sigma):
    row, level = GOLDEN["snr_weights_at_sigma"][sigma], f64(float(sigma))
    for spec, key in [(P2Spec(), "p2_x0_k1_g1"), (MinSnrSpec(), "minsnr5_x0")]:
        weight = objective(spec, process=process).weight(level, 0).item()
        assert weight == pytest.approx(row[key], rel=1e-9)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "F"])
def test_min_snr_is_one_weight_whatever_is_predicted(prediction):
    """Over what the prediction's own loss weighs, 1 / c_out^2, it is Hang et al.'s three forms."""
    sigma = torch.logspace(-2, 2, 50, dtype=torch.float64)
    snr = sigma**-2
    process = DdpmSpec(prediction=prediction)
    weight = objective(MinSnrSpec(gamma=5), process=process).weight(sigma, 0)
    unweighted = objective(process=process).weight(sigma, 0)
    form = {"eps": snr, "x0": torch.ones_like(snr), "v": snr + 1, "F": snr + 1}[prediction]
    assert torch.allclose(weight / unweighted, snr.clamp(max=5) / form, rtol=1e-12)


def test_weights_stay_finite_without_signal():
    silence = f64(1e12, math.inf)
    for spec in (P2Spec(), P2Spec(k=0.1, gamma=3), MinSnrSpec()):
        weight = objective(spec).weight(silence, 0)
        assert weight.tolist() == pytest.approx([0, 0], abs=1e-20)
        # The weight of the eps-loss goes to a limit: k^-gamma, and 1.
        eps = objective(spec).weight(silence[:1], 0) * silence[:1] ** 2
        limit = spec.k**-spec.gamma if isinstance(spec, P2Spec) else 1
        assert eps.item() == pytest.approx(limit, rel=1e-9)


def test_p2_without_gamma_is_the_eps_loss():
    sigma = torch.logspace(-2, 2, 50, dtype=torch.float64)
    weight = objective(P2Spec(gamma=0)).weight(sigma, 0)
    assert torch.allclose(weight, objective().weight(sigma, 0), rtol=1e-14)


def test_log_normal_on_steps():
    golden = dict(GOLDEN["log_normal_pmf_linear_T1000"])
    probabilities = pmf(objective(LogNormalSpec()).noise_levels)
    assert sum(probabilities[700:]) == pytest.approx(golden.pop("mass_t_ge_700"), rel=1e-9)
    stated = objective(LogNormalSpec()).noise_levels.pmf
    for index, value in golden.items():
        assert stated[int(index)] == pytest.approx(value, rel=1e-9)
        assert probabilities[int(index)] == pytest.approx(value, rel=1e-8)


def test_log_normal_keeps_the_relative_size_of_both_tails():
    low, high = ddpm_sigmas("linear", 2)
    middle, far = math.log(low * high) / 2, 30.0
    left = log_normal_pmf((low, high), middle - far, 1.0).tolist()
    right = log_normal_pmf((low, high), middle + far, 1.0).tolist()
    assert 0 < left[1] < 1e-100
    assert right[0] == pytest.approx(left[1], rel=1e-9)


def test_the_log_normal_law_is_edm_s():
    law = LogNormal(LogNormalSpec().mean, LogNormalSpec().std)
    for sigma, share in GOLDEN["log_normal_cdf"].items():
        assert law.cdf(f64(float(sigma))).item() == pytest.approx(share, rel=1e-9)


@pytest.mark.parametrize("process", [VpSpec(), VeSpec(), VeSpec(sigma_min=0.3, sigma_max=0.4)])
def test_log_normal_is_cut_to_the_process_and_renormalised(process):
    cut = objective(LogNormalSpec(), process=process)
    ends = cut.process.sigma_min, cut.process.sigma_max
    levels = cut.noise_levels.icdf(f64(2.0**-53, 0.5, 1 - 2.0**-53)).tolist()
    assert ends[0] <= levels[0] < levels[1] < levels[2] <= ends[1]
    whole = LogNormal(-1.2, 1.2)
    inside = torch.logspace(*(math.log10(s) for s in ends), 9, dtype=torch.float64)[1:-1]
    low, high = whole.cdf(f64(*ends)).tolist()
    expected = (whole.cdf(inside) - low) / (high - low)
    assert torch.allclose(cut.noise_levels.cdf(inside), expected, rtol=1e-9)
    assert torch.allclose(cut.noise_levels.icdf(expected), inside, rtol=1e-9)


def test_logit_normal_on_steps():
    golden = dict(GOLDEN["logit_normal_pmf_T1000"])
    probabilities = pmf(objective(LogitNormalSpec()).noise_levels)
    assert sum(probabilities[700:]) == pytest.approx(golden.pop("mass_t_ge_700"), rel=1e-9)
    for index, value in golden.items():
        assert probabilities[int(index)] == pytest.approx(value, rel=1e-9)


def test_logit_normal_on_vp_has_the_density_in_time():
    built = objective(LogitNormalSpec(), process=VpSpec())
    law, process, t_min, h = built.noise_levels, built.process, VpSpec().t_min, 1e-6
    for u, density in GOLDEN["logit_normal_density"].items():
        t = t_min + (f64(float(u) - h, float(u) + h)) * (1 - t_min)
        below, above = law.cdf(process.sigma(t)).tolist()
        assert (above - below) / (2 * h) == pytest.approx(density, rel=1e-7)


@pytest.mark.parametrize(("mean", "end"), [(800, "sigma_max"), (-800, "sigma_min")])
@pytest.mark.parametrize("process", [LINEAR, VpSpec()], ids=["ddpm", "vp"])
def test_a_logit_beyond_all_numbers_is_an_end_of_the_process(process, mean, end):
    built = objective(LogitNormalSpec(mean=mean), process=process)
    level = built.noise_levels.icdf(f64(0.01, 0.5, 0.99))
    assert level.tolist() == pytest.approx([getattr(built.process, end)] * 3, rel=1e-12)


@pytest.mark.parametrize("process", [LINEAR, VpSpec()], ids=["ddpm", "vp"])
def test_uniform_is_no_change(process):
    assert objective(UniformSpec(), process=process) == objective(process=process)


@pytest.mark.parametrize("step", GOLDEN["clts_window_50000"])
def test_clts_moves_from_uniform_to_the_gaussian(step):
    row = GOLDEN["clts_window_50000"][step]
    law = objective(CltsSpec(), global_batch=100, budget_images=5_000_000).law(int(step))
    probabilities = pmf(law)
    for index, value in row["pmf"].items():
        assert probabilities[int(index)] == pytest.approx(value, rel=1e-9)


def test_clts_begins_as_the_plain_law_and_rests_after_its_window():
    built = objective(CltsSpec(window="50%"), global_batch=100, budget_images=1_000_000)
    u = torch.linspace(0.0005, 0.9995, 4001, dtype=torch.float64)
    assert torch.equal(built.law(0).icdf(u), objective().law(0).icdf(u))
    assert built.law(4999) != built.law(5000)
    assert built.law(5000) == built.law(5001) == built.law(10**9)
    assert objective(CltsSpec(window=0)).law(0) == objective(CltsSpec()).law(50_000)


def test_a_narrow_gaussian_is_one_step():
    law = objective(CltsSpec(mean=0.3004, std=1e-9, window=0)).law(0)
    assert set(law.icdf(torch.rand(100, dtype=torch.float64)).tolist()) == {SIGMAS[300]}


def test_uncertainty_follows_adamw_on_the_loss():
    """Fifty steps of torch's AdamW on L itself, losses of very different sizes."""
    k, spec = 5, AntUwSpec()
    ours = UncertaintyWeights(k, spec.lr)
    a_K = nn.Parameter(torch.zeros(k, dtype=torch.float64))
    theirs = torch.optim.AdamW([a_K], spec.lr, (0.9, 0.999), 1e-8, weight_decay=0)
    generator = torch.Generator().manual_seed(0)
    state = ours.start()
    assert state["a"] == [0.0] * k
    for _ in range(50):
        scale_K = torch.logspace(-2, 2, k, dtype=torch.float64)
        loss_B = torch.rand(20, generator=generator, dtype=torch.float64) * scale_K.repeat(4)
        l_K = loss_B.view(4, k).mean(0)
        theirs.zero_grad()
        (0.5 * (torch.exp(-a_K) * l_K / k + a_K)).sum().backward()
        theirs.step()
        state = ours.update(state, ours.sums(loss_B, 40))
        assert torch.allclose(f64(*state["a"]), a_K.detach(), rtol=1e-12, atol=1e-14)
    assert min(state["a"]) < -0.5 < 0.5 < max(state["a"])


def test_the_network_s_gradient_is_that_of_the_whole_loss():
    ours = UncertaintyWeights(4, 0.025)
    a = [0.3, -1.0, 2.0, 0.0]
    state = {**ours.start(), "a": a}
    parameter = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    x_B = torch.linspace(0.1, 2, 16, dtype=torch.float64)
    loss_B = (parameter * x_B - 1) ** 2
    (got,) = torch.autograd.grad(
        (ours.weights(8, 16, state) * loss_B).mean(), parameter, retain_graph=True
    )
    l_K = loss_B.view(4, 4).mean(0)
    (expected,) = torch.autograd.grad(
        sum(0.5 * (math.exp(-a[c]) * l_K[c] / 4 + a[c]) for c in range(4)), parameter
    )
    assert got.item() == pytest.approx(expected.item(), rel=1e-14)


def test_the_uncertainty_settles_at_the_log_of_its_share_of_the_loss():
    """dL/da_c = 0 where exp(a_c) = l_c / K."""
    ours, state = UncertaintyWeights(2, 0.025), UncertaintyWeights(2, 0.025).start()
    for _ in range(3000):
        state = ours.update(state, f64(4 * 0.5, 4 * 3.0, 4, 4))
    assert state["a"] == pytest.approx([math.log(0.25), math.log(1.5)], abs=1e-3)
    assert ours.metrics(state) == {f"uncertainty/{c}": state["a"][c] for c in range(2)}


@pytest.mark.parametrize("lr", [0.025, 1.0])
def test_a_cluster_without_loss_stays_in_range_and_comes_back(lr):
    """A long way down its a would reach -710, and exp(710) is no float."""
    ours = UncertaintyWeights(2, lr)
    state = {"step": 10**6, "a": [-29.0, 0.0], "m": [0.5, 0.0], "v": [0.25, 0.0]}
    for _ in range(math.ceil(800 / lr)):
        state = ours.update(state, f64(0, 2 * 4, 4, 4))
    assert state["a"] == [-30.0, 0.0]
    assert ours.weights(0, 2, state).float().square().isfinite().all()
    for _ in range(math.ceil(40 / lr)):
        state = ours.update(state, f64(4, 2 * 4, 4, 4))
    assert state["a"][0] > -30
    assert all(math.isfinite(number) for number in state["m"] + state["v"])


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_a_share_is_added_when_the_loss_has_stopped_falling(unit):
    ours = EasyToHard(clusters=3, patience=2)
    state, seen = ours.start(), []
    #         best falls     waits    opens; a higher first loss is the new best
    losses = [5.0, 4.0, 4.5, 3.0, 3.0, 3.0, 9.0, 9.5, 8.0, 8.0, math.nan, 1.0]
    for loss in losses:
        state = ours.update(state, f64(10 * loss * unit, 10))
        seen.append(state["shares"])
    assert seen == [1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 3, 3]
    assert ours.metrics(state) == {"curriculum/shares": 3.0}


def test_the_last_share_of_the_curriculum_is_the_plain_law():
    built = objective(TskDifCurSpec(clusters=2, patience=1))
    ours, base = built.adaptive, built.noise_levels
    state = ours.start()
    assert ours.law(base, state) != base
    for _ in range(2):
        state = ours.update(state, f64(10, 10))
    assert state["shares"] == 2
    assert ours.law(base, state) is base
    assert ours.update(state, f64(1, 10)) == state


@pytest.mark.parametrize("process", [LINEAR, EdmSpec(), VpSpec(), VeSpec()])
def test_open_shares_are_the_noisiest_quantiles(process):
    built = objective(TskDifCurSpec(clusters=4), process=process)
    base, u = built.noise_levels, (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    for shares in (1, 2, 3):
        law = built.law(0, {**built.adaptive.start(), "shares": shares})
        upper = base.icdf(1 - shares / 4 + u * shares / 4)
        assert torch.allclose(law.icdf(u), upper, rtol=1e-9)
        if process != LINEAR:
            assert torch.allclose(law.cdf(upper), u, atol=1e-9)
        assert law.cdf(base.icdf(f64(1 - shares / 4 - 0.01))).item() == 0
        assert torch.equal(law.icdf(f64(1 - 2.0**-53)), base.icdf(f64(1 - 2.0**-53)))


LEARNED = "what is learned from the losses"


@pytest.mark.parametrize(
    ("pair", "shared"),
    [
        ((CltsSpec(), TskDifCurSpec()), "the law of noise levels"),
        ((CltsSpec(), LogNormalSpec()), "the law of noise levels"),
        ((UniformSpec(), LogitNormalSpec()), "the law of noise levels"),
        ((CltsSpec(), SpeedSpec()), "a law that training wraps or moves"),
        ((TskDifCurSpec(), SpeedSpec()), "a law that training wraps or moves"),
        ((P2Spec(), MinSnrSpec()), "the base weight"),
        ((AntUwSpec(), TskDifCurSpec()), LEARNED),
        ((AntUwSpec(), SpeedSpec(reflected_pairs=True)), "how draws are tied together"),
    ],
    ids=lambda value: value if isinstance(value, str) else "+".join(s.kind for s in value),
)
def test_two_that_change_the_same_piece_are_refused(pair, shared):
    for order in (pair, pair[::-1]):
        with pytest.raises(ConfigError, match=f"both change {shared}"):
            objective(*order)


@pytest.mark.parametrize(
    ("combination", "process"),
    [
        ((MinSnrSpec(), SpeedSpec(sampling=False)), LINEAR),
        ((CltsSpec(), SpeedSpec(sampling=False)), LINEAR),
        ((CltsSpec(), MinSnrSpec(), AntUwSpec()), LINEAR),
        ((TskDifCurSpec(), SpeedSpec(sampling=False)), LINEAR),
        ((AntUwSpec(), LogitNormalSpec(), SpeedSpec(), P2Spec()), LINEAR),
        ((P2Spec(), WarmupSpec()), VpSpec()),
        ((LogNormalSpec(), SpeedSpec(), MinSnrSpec(), WarmupSpec()), VeSpec()),
        ((TskDifCurSpec(), MinSnrSpec()), EdmSpec()),
    ],
    ids=lambda value: "+".join(s.kind for s in value) if isinstance(value, tuple) else value.kind,
)
def test_what_changes_different_pieces_combines_in_any_order(combination, process):
    built = objective(*combination, process=process)
    assert objective(*combination[::-1], process=process) == built
    u = torch.linspace(0.001, 0.999, 500, dtype=torch.float64)
    sigma = built.levels(u, 0, 7)
    assert sigma.isfinite().all()
    assert (built.weight(sigma, 7) > 0).all()


def test_speed_wraps_the_law_that_replaces_the_process_s():
    speed = SpeedSpec(threshold=StepsThreshold(count=700), weighting=False)
    plain, both = objective(LogNormalSpec()), objective(LogNormalSpec(), speed)
    assert isinstance(both.noise_levels, Asymmetric)
    assert both.noise_levels.base == plain.noise_levels
    # Five times as likely below step 700 as above, relative to log-normal.
    ratio = [b / p for b, p in zip(pmf(both.noise_levels), pmf(plain.noise_levels), strict=True)]
    assert ratio[650] / ratio[750] == pytest.approx(5, rel=1e-6)
    assert ratio[699] / ratio[700] == pytest.approx(5, rel=1e-6)


def test_a_warm_up_clamps_the_replaced_weight():
    sigma = f64(0.1)
    weight = objective(MinSnrSpec(gamma=50), WarmupSpec(start=5)).weight(sigma, 0)
    assert weight.item() == pytest.approx(5, rel=1e-12)


@pytest.mark.parametrize(
    ("spec", "label"),
    [
        (UniformSpec(), "uniform"),
        (P2Spec(), "p2"),
        (MinSnrSpec(), "min_snr"),
        (LogNormalSpec(), "log_normal"),
        (LogitNormalSpec(), "logit_normal"),
        (CltsSpec(), "clts (reconstruction)"),
        (AntUwSpec(), "ant_uw (reconstruction)"),
        (TskDifCurSpec(), "tskdif_cur (reconstruction)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_reconstructions_are_labelled(spec, label):
    assert spec.label == label
    assert spec.reconstruction == ("reconstruction" in label)


@pytest.mark.parametrize(
    ("spec", "process", "remedy"),
    [
        (P2Spec(), DdpmSpec(prediction="v"), "min_snr"),
        (UniformSpec(), EdmSpec(), "log_normal"),
        (LogitNormalSpec(), VeSpec(), "log_normal"),
        (CltsSpec(), VpSpec(), "use ddpm"),
        (LogNormalSpec(), EdmSpec(), "process.p_mean"),
        (AntUwSpec(clusters=7), LINEAR, "use clusters"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.kind,
)
def test_a_comparator_on_the_wrong_process_is_refused(spec, process, remedy):
    with pytest.raises(ConfigError, match=remedy):
        objective(spec, process=process)


def test_a_log_normal_law_outside_the_process_is_refused():
    """Cut to the process's range, it would leave one level."""
    for process, mean in ((VeSpec(), 50.0), (DdpmSpec(), 50.0), (VpSpec(), -40.0)):
        (problem,) = check_strategies(process, [LogNormalSpec(mean=mean)])
        assert f"move mean ({mean:g}) between" in problem
        assert not check_strategies(process, [LogNormalSpec()])


def test_a_curriculum_does_not_mix_with_reflected_pairs():
    """A reflection would lie in shares that are still closed."""
    pairs = SpeedSpec(sampling=False, reflected_pairs=True)
    (problem,) = check_strategies(DdpmSpec(), [TskDifCurSpec(), pairs])
    assert "reflected_pairs: false" in problem
