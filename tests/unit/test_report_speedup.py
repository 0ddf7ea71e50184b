"""Speed-ups over seeds: exact without noise, covering with it, and bounds where a run never gets
there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from fleetstep import rng
from fleetstep.reporting.comparison import compare
from fleetstep.reporting.records import Curve, RunRecord
from fleetstep.reporting.seeds import arms_of
from fleetstep.reporting.speedup import (
    Passage,
    Ratio,
    levels_of,
    mean_curve,
    passage,
    ratio_of,
    speedups,
)
from fleetstep.reporting.wording import speedup_text

KEY = "held_out/loss"
IMAGES = tuple(range(5_000, 100_001, 5_000))
FDM = {"strategies.0.kind": "fdm"}


def power_law(speed: float, rate: float = 1.0, height: float = 9.0) -> Curve:
    """Loss height * (speed * images)^-0.3, measured on the common grid; `rate` images a second."""
    values = tuple(height * (speed * x) ** -0.3 for x in IMAGES)
    return Curve(IMAGES, values, tuple(x / rate for x in IMAGES))


def runs(name: str, curves: Sequence[Curve], params: dict[str, str]) -> list[RunRecord]:
    return [
        RunRecord(
            name=f"{name}-s{seed}",
            run_id=f"{name}{seed}",
            status="FINISHED",
            params={"training.seed": str(seed), **params},
            curves={KEY: curve},
        )
        for seed, curve in enumerate(curves)
    ]


def against(fdm: Sequence[Curve], edm: Sequence[Curve], **more: Sequence[float]):
    baseline, arm = arms_of([*runs("edm", edm, {}), *runs("fdm", fdm, FDM)])
    return speedups(arm, baseline, KEY, **more)


class TestExactness:
    def test_a_power_law_run_faster_has_that_speed_up_at_every_level(self):
        found = against([power_law(1.7, rate=0.85)], [power_law(1.0)])

        assert [one.share for one in found] == [0.4, 0.6, 0.8, 0.9, 1.0]
        for one in found:
            assert one.images.value == pytest.approx(1.7, rel=1e-12)
            assert (one.images.low, one.images.pairs) == (None, 1)
            assert one.level == pytest.approx(9 * (one.share * 1e5) ** -0.3, rel=1e-12)
        # At 0.85 of the baseline's images a second; time runs evenly between measurements.
        assert found[-1].wall.value == pytest.approx(1.7 * 0.85, rel=2e-3)

    def test_seeds_are_paired_before_they_are_averaged(self):
        """A hard seed is slow in both arms; in pairs that cancels."""
        noise = (0.7, 1.0, 1.4)
        edm = [power_law(x) for x in noise]
        fdm = [power_law(x * gain) for x, gain in zip(noise, (1.4, 1.5, 1.6), strict=True)]
        one = against(fdm, edm, shares=(0.5,))[0]

        logs = np.log([1.4, 1.5, 1.6])
        half = 4.302652729749464 * logs.std(ddof=1) / math.sqrt(3)
        assert one.images.value == pytest.approx(math.exp(logs.mean()), rel=1e-12)
        assert (one.images.low, one.images.high) == pytest.approx(
            (math.exp(logs.mean() - half), math.exp(logs.mean() + half)), rel=1e-9
        )

    def test_swapping_the_arms_inverts_the_ratio(self):
        fast, slow = power_law(1.3), power_law(1.0)
        there = against([fast], [slow], shares=(0.5,))[0].images.value
        back = against([slow], [fast], shares=(0.5,))[0].images.value

        assert there * back == pytest.approx(1.0, rel=1e-12)


def test_the_interval_covers_the_true_speed_up_as_often_as_it_says():
    """2,000 draws of 5 pairs of seeds: each seed has its own height, each run its own speed, each
    measurement a little noise.
    """
    draws, seeds, truth = 2000, 5, 1.6
    shape = (seeds, 3)
    normal = rng.draw(0, "test/speedup", 0, draws, shape).astype(float)
    levels = 9 * 50_000**-0.3
    covered = 0
    for draw in normal:
        pairs = []
        for shared, own, other in draw:
            height = 9 * math.exp(0.02 * shared)
            curves = (
                power_law(truth * math.exp(0.1 * own), height=height),
                power_law(math.exp(0.1 * other), height=height),
            )
            pairs.append(tuple(passage(curve, levels) for curve in curves))
        ratio = ratio_of(pairs, "images")
        assert ratio.low is not None
        assert ratio.high is not None
        covered += ratio.low <= truth <= ratio.high

    assert 0.93 <= covered / draws <= 0.97


class TestCensoring:
    reached = Passage(1000.0, 10.0, "reached")
    never = Passage(4000.0, 40.0, "never")
    before = Passage(500.0, 5.0, "before")

    @pytest.mark.parametrize(
        ("pairs", "at_least", "at_most", "words"),
        [
            ([("reached", "reached")], 1.0, 1.0, "1.00×"),
            ([("never", "reached")], 0.0, 0.25, "< 0.25×"),
            ([("reached", "never")], 4.0, math.inf, "> 4.00×"),
            ([("before", "reached")], 2.0, math.inf, "> 2.00×"),
            ([("reached", "before")], 0.0, 0.5, "< 0.50×"),
            ([("never", "never")], 0.0, math.inf, "not known"),
            ([("before", "before")], 0.0, math.inf, "not known"),
            ([("before", "never")], 8.0, math.inf, "> 8.00×"),
            ([("reached", "reached"), ("reached", "never")], 2.0, math.inf, "> 2.00×"),
            ([("never", "reached"), ("reached", "never")], 0.0, math.inf, "not known"),
        ],
    )
    def test_a_run_that_never_got_there_makes_a_bound(
        self, pairs: list[tuple[str, str]], at_least: float, at_most: float, words: str
    ):
        found = [(getattr(self, own), getattr(self, other)) for own, other in pairs]
        ratio = ratio_of(found, "images")

        assert (ratio.at_least, ratio.at_most) == pytest.approx((at_least, at_most))
        assert ratio.low is None
        assert speedup_text(ratio) == words
        assert ratio.pairs == len(pairs)

    def test_a_bound_holds_what_longer_training_would_have_shown(self):
        """Cut the slow arm's runs short: the bounds hold the ratio of the whole runs."""
        whole = against([power_law(0.8), power_law(0.75)], [power_law(1.0)] * 2, shares=(0.7,))[0]
        cut = Curve(IMAGES[:15], power_law(0.8).values[:15], power_law(0.8).wall_s[:15])
        censored = against([cut, power_law(0.75)], [power_law(1.0)] * 2, shares=(0.7,))[0]

        assert censored.reached == (1, 2)
        assert censored.images.value is None
        assert censored.images.at_most >= whole.images.value
        assert "<" in speedup_text(censored.images)

    def test_a_first_measurement_without_images_says_nothing_of_the_ratio(self):
        start = Passage(0.0, 0.0, "before")

        assert ratio_of([(start, self.reached)], "images") == Ratio(
            0.0, math.inf, None, None, 1, 0
        )

    def test_where_a_curve_starts_below_the_level_it_was_there_before(self):
        found = passage(Curve((100, 200), (1.0, 0.5), (1.0, 2.0)), 2.0)

        assert found == Passage(100, 1.0, "before")

    def test_a_curve_of_nothing_finite_passes_nowhere(self):
        assert passage(Curve((1,), (math.nan,), (0.0,)), 1.0) is None
        assert against([Curve((1,), (math.nan,), (0.0,))], [power_law(1.0)]) == ()


class TestLevels:
    def test_the_mean_curve_is_of_what_all_seeds_measured(self):
        one = Curve((10, 20, 30), (4.0, 2.0, math.nan), (1.0, 2.0, 3.0))
        two = Curve((10, 20, 40), (6.0, 3.0, 1.0), (3.0, 4.0, 5.0))

        assert mean_curve([one, two]) == Curve((10, 20), (5.0, 2.5), (2.0, 3.0))

    def test_levels_are_shares_of_the_last_measurement(self):
        curve = Curve((0, 100, 200), (9.0, 4.0, 1.0), (0.0, 1.0, 2.0))

        assert levels_of(curve, (0.25, 0.5, 1.0)) == ((0.25, 6.5), (0.5, 4.0), (1.0, 1.0))
        late = Curve((100, 200), (4.0, 1.0), (1.0, 2.0))
        assert levels_of(late, (0.4, 1.0)) == ((1.0, 1.0),)


def test_losses_that_measure_other_things_have_no_speed_up():
    edm, fdm = runs("edm", [power_law(1.0)], {}), runs("fdm", [power_law(2.0)], FDM)
    other = runs("vp", [power_law(2.0)], {"process.kind": "vp"})

    assert compare([*edm, *fdm], "edm-s0").arms.standings[1].speedups.keys() == {KEY}
    assert compare([*edm, *other], "edm-s0").arms.standings[1].speedups == {}


def test_distances_scored_while_training_have_speed_ups_too_and_scores_of_more_is_better_not():
    def with_scores(name: str, speed: float, params: dict[str, str]) -> RunRecord:
        (run,) = runs(name, [power_law(speed)], params)
        scores = ("eval/fd1k.x@1/heun@9", "eval/is1k.x@1/heun@9", "eval/fid1k.x@1/heun@9")
        run.curves.update({key: power_law(speed) for key in scores})
        return run

    comparison = compare([with_scores("a", 1.0, {}), with_scores("b", 1.5, FDM)], "a-s0")

    assert comparison.arms.curves == (KEY, "eval/fid1k.x@1/heun@9", "eval/fd1k.x@1/heun@9")
    for levels in comparison.arms.standings[1].speedups.values():
        assert levels[-1].images.value == pytest.approx(1.5, rel=1e-12)
