"""Process and strategy configs: ranges, conflicts, and what they say about SpeeD's reach."""

from typing import Literal

import pytest
from pydantic import TypeAdapter, ValidationError

from fleetstep.diffusion.spec import (
    EdmSpec,
    FdmSpec,
    MagnitudeThreshold,
    QuantileThreshold,
    SpeedSpec,
    StrategySpec,
    WarmupSpec,
    check_strategies,
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


def test_what_can_be_combined_is_not_complained_of():
    assert check_strategies(EDM, []) == []
    assert check_strategies(EDM, [FdmSpec(), SpeedSpec()]) == []
    assert check_strategies(EDM, [WarmupSpec(), FdmSpec(warmup=None), SpeedSpec()]) == []


def test_two_warm_ups_are_named_with_the_remedy():
    (problem,) = check_strategies(EDM, [SpeedSpec(), FdmSpec(), WarmupSpec()])
    assert "strategies[1] (fdm) brings its own weight warm-up" in problem
    assert "set strategies[1].warmup to null, or remove strategies[2]" in problem


@pytest.mark.parametrize("spec", [FdmSpec(warmup=None), SpeedSpec(), WarmupSpec()])
def test_the_same_kind_twice_is_named(spec):
    (problem,) = check_strategies(EDM, [spec, spec])
    assert problem.startswith(f"strategies[0] and strategies[1] are both {spec.kind}")


def test_a_kind_that_is_new_is_refused_twice_too():
    class NewSpec(Spec):
        kind: Literal["new"] = "new"

    (problem,) = check_strategies(EDM, [NewSpec(), FdmSpec(), NewSpec()])
    assert problem.startswith("strategies[0] and strategies[2] are both new")


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
