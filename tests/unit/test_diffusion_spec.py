"""Process and strategy configs: ranges, conflicts, and what they say about SpeeD's reach."""

from itertools import pairwise
from typing import Literal

import pytest
from pydantic import TypeAdapter, ValidationError

from fleetstep.diffusion.spec import (
    AntUwSpec,
    CltsSpec,
    DdpmSpec,
    EdmSpec,
    FdmSpec,
    LogitNormalSpec,
    LogNormalSpec,
    MagnitudeThreshold,
    MinSnrSpec,
    P2Spec,
    ProcessSpec,
    QuantileThreshold,
    SpeedSpec,
    StrategySpec,
    TskDifCurSpec,
    UniformSpec,
    VeSpec,
    VpSpec,
    WarmupSpec,
    check_range,
    check_strategies,
    ddpm_sigmas,
    nearly_inert,
    suppressed_mass,
)
from fleetstep.spec import Spec

EDM = EdmSpec()


@pytest.mark.parametrize(
    "bad",
    [
        {"kind": "speed", "lam": 5},  # a shipped default elsewhere: a third of its weights < 0
        {"kind": "speed", "lam": 0.4},
        {"kind": "speed", "k": 0.5},
        {"kind": "speed", "threshold": {"kind": "quantile", "q": 1}},
        {"kind": "speed", "threshold": {"kind": "magnitude", "r": 1}},
        {"kind": "fdm", "multiplier": -1},
        {"kind": "fdm", "warmup": {"window": -1}},
        {"kind": "warmup", "start": 500, "stop": 5},
        {"kind": "warmup", "release": "later"},
        {"kind": "fdm", "multipler": 2},
        {"kind": "momentum"},
    ],
)
def test_impossible_strategies_are_refused(bad):
    with pytest.raises(ValidationError):
        TypeAdapter(StrategySpec).validate_python(bad)


def test_a_range_upside_down_is_refused_with_its_numbers():
    with pytest.raises(ValidationError, match=r"sigma_min must lie below sigma_max, got 80.0 and"):
        EdmSpec(sigma_min=80, sigma_max=0.002)


@pytest.mark.parametrize(
    "bad",
    [
        {"kind": "ddpm", "steps": 1},
        {"kind": "ddpm", "schedule": "constant"},
        {"kind": "ddpm", "prediction": "score"},
        {"kind": "vp", "t_min": 0},
        {"kind": "vp", "beta_min": 0},
        {"kind": "vp", "beta_scale": -1},
        {"kind": "edm", "learned_variance": True},
        {"kind": "ve", "sigma_min": 100},
        {"kind": "cold"},
    ],
)
def test_impossible_processes_are_refused(bad):
    with pytest.raises(ValidationError):
        TypeAdapter(ProcessSpec).validate_python(bad)


@pytest.mark.parametrize(
    "process",
    [
        VpSpec(beta_scale=2, prediction="v"),
        VeSpec(sigma_max=50),
        EdmSpec(p_mean=-0.4, prediction="x0"),
        DdpmSpec(schedule="cosine", steps=10, learned_variance=True),
    ],
)
def test_processes_survive_json(process):
    adapter = TypeAdapter(ProcessSpec)
    assert adapter.validate_json(adapter.dump_json(process)) == process


def test_what_can_be_combined_is_not_complained_of():
    assert check_strategies(EDM, []) == []
    assert check_strategies(EDM, [FdmSpec(), SpeedSpec()]) == []
    assert check_strategies(EDM, [WarmupSpec(), FdmSpec(warmup=None), SpeedSpec()]) == []


def test_two_warm_ups_are_named_with_the_remedy():
    (problem,) = check_strategies(EDM, [SpeedSpec(), FdmSpec(), WarmupSpec()])
    assert "strategies[1] (fdm) and strategies[2] (warmup) both change the clamp" in problem
    assert "set warmup: null in strategies[1], or remove one of them" in problem


@pytest.mark.parametrize("spec", [FdmSpec(warmup=None), SpeedSpec(), WarmupSpec()])
def test_the_same_kind_twice_is_named(spec):
    (problem,) = check_strategies(EDM, [spec, spec])
    assert problem.startswith(f"strategies[0] and strategies[1] are both {spec.kind}")


def test_a_kind_that_is_new_is_refused_twice_too():
    class NewSpec(Spec):
        kind: Literal["new"] = "new"

    (problem,) = check_strategies(EDM, [NewSpec(), NewSpec()])
    assert problem.startswith("strategies[0] and strategies[1] are both new")


def test_all_conflicts_are_reported_together():
    idle = SpeedSpec(sampling=False, weighting=False)
    problems = check_strategies(EDM, [FdmSpec(), FdmSpec(), WarmupSpec(), idle])
    assert len(problems) == 4
    assert "changes nothing" in problems[-1]


def test_suppressed_mass_of_edm_s_law():
    """Figures of the magnitude rule r = 138.6: sigma 5.87 (data std .5), 11.73 (unit data)."""
    assert suppressed_mass(EDM, SpeedSpec()) == pytest.approx(0.0067, abs=5e-5)
    assert suppressed_mass(EDM, SpeedSpec(sd_ref=1)) == pytest.approx(0.0011, abs=5e-5)
    quantile = SpeedSpec(threshold=QuantileThreshold(q=0.7))
    assert suppressed_mass(EDM, quantile) == pytest.approx(0.3, abs=1e-12)
    # the data's own std is the yardstick: the same rule on wider data starts higher
    assert suppressed_mass(EdmSpec(sigma_data=1), SpeedSpec()) == pytest.approx(0.0011, abs=5e-5)


def test_a_nearly_inert_speed_says_so_with_the_mass_and_the_remedy():
    text = nearly_inert(EDM, SpeedSpec(threshold=MagnitudeThreshold(r=138.6)))
    assert text is not None
    assert "0.00668 of the edm noise-level law lies above" in text
    assert "r = 138.6 (sigma = 5.865)" in text
    # a (1-a) (k-1) / (1 + a (k-1)) at a = .99332, k = 5
    assert "k = 5 moves 0.0053 of the draws" in text
    assert "{kind: quantile, q: 0.7}" in text


@pytest.mark.parametrize(
    ("speed", "inert"),
    [
        (SpeedSpec(threshold=QuantileThreshold(q=0.7)), False),
        (SpeedSpec(threshold=QuantileThreshold(q=0.999)), True),
        (SpeedSpec(threshold=QuantileThreshold(q=0.001)), True),
        (SpeedSpec(sampling=False), False),
        (SpeedSpec(k=1), False),
    ],
)
def test_only_a_speed_that_hopes_to_act_is_warned_of(speed, inert):
    assert (nearly_inert(EDM, speed) is not None) == inert


WRONG_PLACES = [
    (DdpmSpec(), FdmSpec(), "is defined on vp, ve and edm, and the process is ddpm: use vp"),
    (EDM, FdmSpec(time_map="process_time"), "VP's own time, which edm does not have: use linear"),
    (VeSpec(), FdmSpec(kernel="additive"), "eps-prediction of vp, and the process is ve"),
    (EDM, UniformSpec(), "a law of times in [0, 1], which edm does not have: use a ddpm or vp"),
    (VeSpec(), LogitNormalSpec(), "which ve does not have: use a ddpm or vp process"),
    (VpSpec(), CltsSpec(), "a law of DDPM's steps, and the process is vp: use ddpm"),
    (EDM, LogNormalSpec(), "EDM's own law: set process.p_mean and process.p_std instead"),
    (DdpmSpec(prediction="v"), P2Spec(), "process.prediction is v: use prediction eps (or F)"),
]


@pytest.mark.parametrize(("process", "spec", "message"), WRONG_PLACES)
def test_a_strategy_in_the_wrong_place_is_told_where_it_belongs(process, spec, message):
    (problem,) = check_strategies(process, [spec])
    assert problem.startswith(f"strategies[0] ({spec.kind}) ")
    assert message in problem


def test_clusters_share_the_global_batch_without_a_remainder():
    spec = AntUwSpec(clusters=5)
    assert check_strategies(EDM, [spec], global_batch=510) == []
    assert check_strategies(EDM, [spec]) == []
    (problem,) = check_strategies(EDM, [spec], global_batch=512)
    assert "512 is not divisible by 5: use clusters 4, or a global_batch that 5" in problem
    (problem,) = check_strategies(EDM, [spec], global_batch=2)
    assert "use clusters 2" in problem
    assert check_strategies(EDM, [AntUwSpec(clusters=4)], global_batch=512) == []


@pytest.mark.parametrize(
    ("first", "second", "piece"),
    [
        (P2Spec(), MinSnrSpec(), "the base weight"),
        (UniformSpec(), CltsSpec(), "the law of noise levels"),
        (CltsSpec(), SpeedSpec(), "a law that training wraps or moves"),
        (TskDifCurSpec(), AntUwSpec(), "what is learned from the losses"),
        (SpeedSpec(reflected_pairs=True), AntUwSpec(), "how draws are tied together"),
    ],
)
def test_two_that_change_the_same_piece_are_named_in_either_order(first, second, piece):
    for pair in ((first, second), (second, first)):
        (problem,) = check_strategies(DdpmSpec(), pair)
        assert f"strategies[0] ({pair[0].kind}) and strategies[1] ({pair[1].kind})" in problem
        assert f"both change {piece}: " in problem
        assert "remove one of them" in problem


@pytest.mark.parametrize(
    ("process", "settings", "rule"),
    [
        (EdmSpec, {"p_mean": 300.0}, r"\|p_mean\| \+ 8.3 p_std"),
        (EdmSpec, {"p_std": 5.0}, r"\|p_mean\| \+ 8.3 p_std"),
        (EdmSpec, {"sigma_data": 1e-200}, "greater than or equal to 0.001"),
        (EdmSpec, {"sigma_max": 1e200}, "sigma_max must be at most 1e\\+15"),
        (VeSpec, {"sigma_max": 1e200}, "sigma_max must be at most 1e\\+15"),
        (DdpmSpec, {"steps": 100_000}, "less than or equal to 5000"),
    ],
)
def test_levels_that_no_number_holds_are_refused(process, settings, rule):
    with pytest.raises(ValidationError, match=rule):
        process(**settings)


@pytest.mark.parametrize("schedule", ["linear", "quadratic", "cosine"])
@pytest.mark.parametrize("steps", [2, 5000])
def test_every_allowed_number_of_steps_has_finite_levels(schedule, steps):
    levels = ddpm_sigmas(schedule, steps)
    assert 0 < levels[0] < levels[-1] < 1e15
    assert all(low < high for low, high in pairwise(levels))


def test_a_process_that_samplers_cannot_reach_is_told():
    for process in (VpSpec(), VeSpec(), EDM, DdpmSpec()):
        assert check_range(process, 0.002, 80) == []
    for process in (
        VeSpec(sigma_min=90, sigma_max=100),
        VeSpec(sigma_min=1e-4, sigma_max=1e-3),
        VpSpec(beta_min=1e-9, beta_d=1e-9),
    ):
        (problem,) = check_range(process, 0.002, 80)
        assert "do not meet the range 0.002 .. 80 that samplers walk" in problem


@pytest.mark.parametrize(("mean", "std", "where"), [(-4.5, 0.01, "above"), (5.05, 0.001, "below")])
def test_a_threshold_outside_the_law_that_replaced_the_process_s_is_refused(mean, std, where):
    law = LogNormalSpec(mean=mean, std=std)
    (problem,) = check_strategies(DdpmSpec(), [law, SpeedSpec()])
    assert f"lies {where} all levels of the log_normal law with mean {mean:g}" in problem
    assert check_strategies(DdpmSpec(), [law, SpeedSpec(sampling=False)]) == []


def test_a_speed_that_changes_nothing_is_refused():
    (problem,) = check_strategies(EDM, [SpeedSpec(k=1, weighting=False)])
    assert "has k=1 and weighting=false and changes nothing" in problem
