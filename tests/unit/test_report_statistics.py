import functools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fleetstep import rng
from fleetstep.errors import ComparisonError
from fleetstep.evaluation.jackknife import jackknife
from fleetstep.evaluation.metrics import Gaussian, frechet
from fleetstep.evaluation.moments import Moments
from fleetstep.evaluation.reference import Reference
from fleetstep.reporting.records import Curve, Score
from fleetstep.reporting.statistics import (
    Reached,
    paired_difference,
    pareto_front,
    reach,
    time_to_quality,
)
from synthetic_records import as_json, curve, score


class TestPairedDifference:
    def test_mean_and_student_interval_of_blockwise_differences(self):
        run = score("fdm", pseudo_values=(1.0, 2.0, 3.0, 5.0))
        baseline = score("edm", pseudo_values=(2.0, 4.0, 4.0, 9.0))

        difference = paired_difference(run, baseline)

        # Differences -1, -2, -1, -4: mean -2, sd sqrt(2), se sqrt(2)/2; t(0.975, 3) = 3.1824...
        assert difference.value == -2.0
        assert difference.se == pytest.approx(math.sqrt(2) / 2, rel=1e-14)
        assert difference.high - difference.value == pytest.approx(
            3.182446305284263 * math.sqrt(2) / 2, rel=1e-10
        )
        assert difference.value - difference.low == difference.high - difference.value

    def test_blocks_are_paired_not_pooled(self):
        """A shift that all blocks share is seen through noise a hundred times its size."""
        noise = [10.0, -7.0, 3.0, -12.0, 6.0]
        baseline = score("edm", pseudo_values=noise)
        run = score("fdm", pseudo_values=[x - 0.1 + 0.001 * i for i, x in enumerate(noise)])

        assert paired_difference(run, baseline).verdict == "better"

    def test_swapping_the_runs_turns_the_verdict(self):
        low, high = (
            score("a", pseudo_values=(1, 1.1, 0.9)),
            score("b", pseudo_values=(3, 3.2, 2.9)),
        )

        assert paired_difference(low, high).verdict == "better"
        assert paired_difference(high, low).verdict == "worse"

    def test_an_interval_that_holds_zero_is_no_difference(self):
        run, baseline = score("a", pseudo_values=(1, 3)), score("b", pseudo_values=(2, 1))

        assert paired_difference(run, baseline).verdict == "no difference"
        assert paired_difference(run, run).verdict == "no difference"

    @pytest.mark.parametrize(
        ("changed", "words"),
        [
            ({"n": 5000}, r"the number of samples n: 5000 against 2000"),
            (
                {"extractor_sha256": "00ff"},
                r"the feature extractor \(SHA-256\): 00ff against 3f2a",
            ),
            ({"reference_sha256": "ab"}, r"the reference statistics \(SHA-256\): ab against"),
            ({"kind": "kid"}, r"the metric: kid2k\.fs-rn20.* against fd2k\.fs-rn20"),
            ({"guidance": "cfg 1.5"}, r"the guidance: cfg 1\.5 against "),
            ({"seeds": "1:0-1999"}, r"the sample seeds: 1:0-1999 against 0:0-1999"),
            ({"nfe": 19}, r"the number of network calls: 19 against 9"),
            ({"solver": "euler"}, r"the solver: euler against heun"),
            ({"pseudo_values": (1.0, 2.0)}, r"the number of jackknife blocks: 2 against 4"),
        ],
    )
    def test_what_does_not_measure_the_same_is_refused_and_named(
        self, changed: dict[str, Any], words: str
    ):
        with pytest.raises(ComparisonError, match=words) as caught:
            paired_difference(score("fdm", **changed), score("edm"))
        assert "fdm and edm" in caught.value.message
        assert "one sweep config" in caught.value.remedy

    @pytest.mark.parametrize(
        "fact", ["labels", "preprocess", "quantisation", "schedule", "protocol_name"]
    )
    def test_other_protocol_facts_are_refused_too(self, fact: str):
        with pytest.raises(ComparisonError, match=r"another against"):
            paired_difference(replace(score("fdm"), **{fact: "another"}), score("edm"))

    def test_shared_latents_make_it_sharper(self):
        """The same samples, slightly and more distorted, against independent ones."""
        real = Moments.of(rng.draw(1, "reference", 0, 4000, (6,)))
        reference = Reference("", Gaussian.of(real), "", real.n)

        def scored(seed: int, scale: float) -> Score:
            blocks = np.split(scale * rng.draw(seed, "samples", 0, 1000, (6,)), 10)
            moments = [Moments.of(block) for block in blocks]
            estimate = jackknife(moments, functools.partial(frechet, reference))
            return score(pseudo_values=estimate.pseudo_values)

        shared = paired_difference(scored(2, 1.3), scored(2, 1.2))
        apart = paired_difference(scored(2, 1.3), scored(3, 1.2))
        assert shared.se < apart.se / 1.5
        assert shared.verdict == "worse"

    def test_every_fact_that_differs_is_named(self):
        with pytest.raises(ComparisonError, match=r"extractor.*; .*samples n"):
            paired_difference(score("fdm", n=1, extractor_sha256="x"), score("edm"))

    def test_one_block_has_no_interval(self):
        one = score(pseudo_values=(1.0,))
        with pytest.raises(ComparisonError, match="at least two blocks"):
            paired_difference(one, one)


class TestTimeToQuality:
    def test_from_no_images_it_is_interpolated_linearly_in_images_and_in_time(self):
        falling = Curve((0, 1000), (4.0, 2.0), (5.0, 15.0))

        assert reach(falling, 3.0) == Reached(500.0, 10.0)

    def test_between_measurements_a_power_law_is_exact(self):
        images = (1000, 4000, 9000)
        power = Curve(images, tuple(8 * x**-0.5 for x in images), (0.0, 3.0, 8.0))

        for wanted in (1500.0, 4000.0, 6250.0):
            found = reach(power, 8 * wanted**-0.5)
            assert found is not None
            assert found.images == pytest.approx(wanted, rel=1e-12)
            assert found.wall_s == pytest.approx((wanted - 1000) / 1000, rel=1e-9)

    def test_distances_below_zero_are_interpolated_linearly(self):
        found = reach(Curve((1000, 2000), (1.0, -1.0), (0.0, 10.0)), -0.5)

        assert found == Reached(1750.0, 7.5)

    def test_noise_upwards_is_passed_over(self):
        # Best so far: 4 at 1000, 1 at 4000; the 5 between does not count as progress lost.
        noisy = Curve((1000, 2000, 4000), (4.0, 5.0, 1.0), (0.0, 10.0, 30.0))

        assert reach(noisy, 2.0) == Reached(pytest.approx(2000.0), pytest.approx(10.0))

    def test_nan_never_counts_as_quality(self):
        holed = Curve((1000, 2000, 4000), (4.0, math.nan, 1.0), (0.0, 10.0, 30.0))

        assert reach(holed, 2.0) == Reached(pytest.approx(2000.0), pytest.approx(10.0))
        assert reach(curve([math.nan, math.nan]), 3.0) is None

    def test_not_reached_is_none(self):
        assert reach(curve([4.0, 2.0]), 1.999) is None

    def test_reached_at_the_first_measurement(self):
        assert reach(curve([1.0, 0.5]), 2.0) == Reached(1000.0, 10.0)

    def test_equal_measurements_do_not_divide_by_zero(self):
        assert reach(curve([2.0, 2.0, 1.0]), 2.0) == Reached(1000.0, 10.0)

    def test_speed_up_over_the_baseline(self):
        baseline = curve([4.0, 3.0, 2.0, 1.0])
        run = curve([3.0, 1.0, 0.9, 0.8], seconds=25.0)

        quality = time_to_quality(run, baseline)

        assert quality is not None
        assert quality.target == 1.0
        assert quality.images_ratio == 2.0
        assert quality.wall_ratio == pytest.approx(40 / 50)

    def test_a_baseline_that_ends_above_its_best_is_judged_where_it_first_was_that_good(self):
        quality = time_to_quality(curve([2.0, 1.5]), curve([4.0, 1.0, 2.0]))

        assert quality is not None
        assert quality.baseline.images == pytest.approx(1000 * 2**0.5)
        assert quality.baseline.wall_s == pytest.approx(10 * 2**0.5)

    def test_never_as_good(self):
        quality = time_to_quality(curve([5.0, 4.0]), curve([4.0, 1.0]))

        assert quality is not None
        assert quality.run is None
        assert quality.images_ratio is None


class TestPareto:
    def test_keeps_what_nothing_cheaper_beats(self):
        points = [(5, 9.0), (7, 9.5), (9, 4.0), (9, 3.0), (19, 3.0), (29, 1.0)]

        assert pareto_front(points) == (0, 3, 5)

    def test_order_of_the_points_does_not_matter(self):
        points = [(29, 1.0), (9, 3.0), (7, 9.5), (5, 9.0)]

        assert [points[i] for i in pareto_front(points)] == [(5, 9.0), (9, 3.0), (29, 1.0)]


class TestRecords:
    def test_a_curve_is_put_in_order_and_the_later_of_two_points_stays(self):
        points = [(200, 2.0, 20.0), (100, 9.0, 10.0), (100, 1.0, 30.0)]

        assert Curve.of(points) == Curve((100, 200), (1.0, 2.0), (30.0, 20.0))

    def test_a_curve_that_runs_backwards_is_refused(self):
        with pytest.raises(ValueError, match="must increase"):
            Curve((2, 1), (0.0, 0.0), (0.0, 1.0))

    def test_a_score_from_its_json(self):
        json = {
            **as_json(score()),
            "confidence": 0.95,
            "seeds": {"namespace": 0, "first": 0, "count": 2000},
        }

        assert Score.from_dict(json) == score()

    def test_a_missing_field_of_a_score_is_named(self):
        with pytest.raises(ComparisonError, match="must hold 'metric'"):
            Score.from_dict({"value": 1.0})

    @pytest.mark.parametrize(
        "name",
        ["preprocess", "quantisation", "labels", "seeds", "ema", "kind", "guidance", "protocol"],
    )
    def test_a_protocol_that_is_not_stated_is_not_taken_for_equal(self, name: str):
        values = as_json(score())
        del values[name]
        with pytest.raises(ComparisonError, match=f"must hold '{name}'") as caught:
            Score.from_dict(values)
        assert "score the checkpoint again" in caught.value.remedy

    def test_another_confidence_is_refused(self):
        values = as_json(score())
        with pytest.raises(ComparisonError, match=r"intervals of 95%.*one of 0\.99"):
            Score.from_dict({**values, "confidence": 0.99})
