"""What a sweep's record says may be ranked, what to ship, and in which words."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fleetstep.errors import ComparisonError
from fleetstep.evaluation.spec import INCEPTION_SHA256
from fleetstep.reporting.comparison import compare
from fleetstep.reporting.records import RunRecord, Score
from fleetstep.reporting.shipping import Choice, choose, ship_text
from fleetstep.reporting.statistics import cell_difference
from fleetstep.reporting.sweep_record import (
    Contest,
    SweepRecord,
    contests,
    headline_candidates,
)
from synthetic_sweep import cell, demo_sweep, record, sweep

NOISE = np.array([0.3, -0.2, 0.1, -0.2])


def near(value: float, noise: float = 0.001, seed: int = 0) -> list[float]:
    """Four blocks with that mean; those of one seed go up and down together."""
    return list(value + noise * np.roll(NOISE, seed))


def read(*cells: dict[str, Any], **parts: Any) -> SweepRecord:
    return SweepRecord.from_dict(sweep(*cells, **parts))


def judged(*cells: dict[str, Any]) -> tuple[Choice, Contest]:
    (contest,) = contests(read(*cells))
    return choose(contest), contest


def place(candidate: Any) -> tuple[str, float]:
    return (candidate.score.solver, candidate.score.nfe)


class TestRecord:
    def test_networks_are_named_by_what_tells_them_apart(self):
        def name_of(**facts: Any) -> dict[str, Any]:
            return cell(str(facts), record(**facts))

        found = read(
            name_of(run="edm"),
            name_of(run="fdm", images_seen=100_000),
            name_of(run="fdm", images_seen=200_000, ema="long"),
            name_of(run="fdm", images_seen=200_000, ema="short"),
            name_of(run="vp", checkpoint="aa" * 32),
            name_of(run="vp", checkpoint="bb" * 32),
        )

        assert found.networks == (
            "edm",
            "fdm at 100 kimg",
            "fdm at 200 kimg (long)",
            "fdm at 200 kimg (short)",
            "vp aaaaaa",
            "vp bbbbbb",
        )

    @pytest.mark.parametrize("lost", ["cells", "sweep", "complete", "dropped", "minima"])
    def test_a_record_of_another_version_is_refused(self, lost: str):
        content = demo_sweep()
        del content[lost]
        with pytest.raises(ComparisonError, match=f"this version writes.*{lost}") as caught:
            SweepRecord.from_dict(content)
        assert "sweep again" in caught.value.remedy

    def test_a_score_without_its_kind_is_refused(self):
        content = demo_sweep()
        del content["cells"][0]["scores"][0]["kind"]
        with pytest.raises(ComparisonError, match="must hold 'kind'"):
            SweepRecord.from_dict(content)

    def test_what_was_left_out_is_told_with_its_reason(self):
        dropped = {"run": "edm", "solver": "heun", "nfe": 3, "guidance": "cfg 2", "reason": "far"}
        skipped = {"solver": "rk45", "nfe": None, "reason": "no"}
        found = read(dropped=[dropped], skipped=[skipped])

        assert (found.dropped[0].what, found.dropped[0].reason) == (
            "edm, heun, NFE 3, cfg 2",
            "far",
        )
        assert found.skipped[0].what == "rk45"

    def test_a_minimum_belongs_to_the_run_whose_cell_it_is(self):
        cells = [cell("k", record("a")), cell("k", record("b"))]
        lowest = {"key": "k", "run": "b", "metric": "fd1k.x.min3", "values": [3, 1, 2]}

        (found,) = read(*cells, minima=[lowest]).minima

        assert found.what == "b: heun, NFE 9"
        assert found.values == (3, 1, 2)


class TestContests:
    def test_fid_leads_then_plain_distances_then_standardised_ones(self):
        facts = {"extractor": "inception.clean", "extractor_sha256": INCEPTION_SHA256}
        fid = record(**facts)
        others = [record(kind=kind) for kind in ("recall", "kid", "fd_z", "fd")]
        for count, headline in ((4, "fd1k"), (3, "fd_z1k"), (2, "kid1k"), (1, "recall1k")):
            (contest,) = contests(read(cell("k", *others[:count])))
            assert contest.protocol.metric.partition(".")[0] == headline

        (contest,) = contests(read(cell("k", *others, fid)))
        assert contest.protocol.metric == "fid1k.clean.unbiased"

    def test_each_reference_has_a_contest_of_its_own(self):
        one, two = record("a"), record("b", reference="cifar/train", reference_sha256="00" * 32)

        found = contests(read(cell("1", one), cell("2", two)))

        assert [contest.reference for contest in found] == ["digits/train", "cifar/train"]
        assert [len(contest.candidates) for contest in found] == [1, 1]

    def test_cells_with_other_numbers_of_images_are_not_ranked(self):
        late = record(solver="rk45", blocks=near(0.1)[:3], n=300)
        found = read(*(cell(str(n), record(nfe=n)) for n in (5, 9)), cell("late", late))

        (contest,) = contests(found)

        assert contest.protocol.n == 1000
        assert [one.key for one in contest.candidates] == ["5", "9"]
        assert len(headline_candidates(found)) == 3

    def test_only_the_first_seed_block_is_ranked(self):
        blocks = [cell("k", record(first=b * 1000), seed_block=b) for b in range(3)]

        (contest,) = contests(read(*blocks))

        assert [one.score.seeds for one in contest.candidates] == ["0:0-999"]

    def test_a_contest_of_two_protocols_cannot_be_made(self):
        one, two = headline_candidates(
            read(cell("1", record()), cell("2", record(quantisation="truncate")))
        )
        with pytest.raises(ComparisonError, match="measured in another way"):
            Contest(one.score.protocol, (one, two))


class TestChoice:
    def test_the_cheapest_cell_that_is_tied_with_the_best_is_shipped(self):
        choice, contest = judged(
            cell("1", record(solver="dpmpp", nfe=9, blocks=near(1.0001, 0.1))),
            cell("2", record(solver="heun", nfe=17, blocks=near(1.0, 0.1, seed=1))),
            cell("3", record(solver="euler", nfe=5, blocks=near(2.0, 0.1, seed=2))),
        )

        assert place(choice.ship) == ("dpmpp", 9)
        assert place(choice.best) == ("heun", 17)
        text = ship_text(choice, contest)
        assert text.startswith(
            "Ship dpmpp at 9 calls; heun at 17 calls, the best value, is not distinguishable from "
            "it (difference 0.000"
        )
        assert " ± " in text

    def test_a_real_difference_is_paid_for(self):
        """The intervals overlap widely, but block by block one is always better."""
        choice, contest = judged(
            cell("1", record(solver="dpmpp", nfe=9, blocks=near(1.1, 5))),
            cell("2", record(solver="heun", nfe=17, blocks=near(1.0, 5.01))),
        )

        assert place(choice.ship) == place(choice.best) == ("heun", 17)
        assert choice.tied == ()
        assert ship_text(choice, contest).startswith(
            "Ship heun at 17 calls; all other cells are worse at 95 %, the next best, dpmpp at 9 "
            "calls, by +0.1"
        )

    def test_a_dearer_tie_is_named_and_not_shipped(self):
        choice, contest = judged(
            cell("1", record(solver="dpmpp", nfe=9, blocks=near(1.0, 0.1))),
            cell("2", record(solver="heun", nfe=17, blocks=near(1.01, 0.1, seed=1))),
            cell("3", record(solver="unipc", nfe=18, blocks=near(1.02, 0.1, seed=2))),
        )

        assert place(choice.ship) == ("dpmpp", 9)
        text = ship_text(choice, contest)
        assert "heun at 17 calls is not distinguishable from it" in text
        assert text.endswith("nor is 1 other cell.")

    @pytest.mark.parametrize(("kind", "best"), [("fd", "low"), ("recall", "high")])
    def test_the_best_goes_by_the_direction_of_the_metric(self, kind: Any, best: str):
        choice, _ = judged(
            cell("1", record(solver="low", nfe=9, kind=kind, blocks=near(0.2))),
            cell("2", record(solver="high", nfe=9, kind=kind, blocks=near(0.8))),
        )

        assert choice.ship.score.solver == best
        assert [place(step.candidate) for step in choice.front] == [(best, 9)]

    def test_one_cell_is_shipped_without_a_comparison(self):
        choice, contest = judged(cell("1", record()))

        assert ship_text(choice, contest) == (
            "Ship heun at 9 calls; there is no other cell to compare it with."
        )

    def test_guidance_and_network_are_named_where_they_matter(self):
        choice, contest = judged(
            cell("1", record("a", guidance="cfg 1.5", nfe=18, blocks=near(1))),
            cell("2", record("b", nfe=9, blocks=near(3))),
        )

        assert "Ship a: heun at 18 calls with cfg 1.5" in ship_text(choice, contest)

    def test_an_adaptive_solver_costs_what_it_made(self):
        choice, contest = judged(
            cell("1", record(solver="rk45", nfe=113.4, adaptive=True, blocks=near(1))),
            cell("2", record(nfe=9, blocks=near(2))),
        )

        assert [step.candidate.score.nfe for step in choice.front] == [9, 113.4]
        assert "rk45 at 113 calls (adaptive)" in ship_text(choice, contest)


class TestFront:
    def cells(self) -> list[dict[str, Any]]:
        points = {
            ("a", 3): near(9),
            ("b", 3): near(9.2, 1.5, seed=1),
            ("c", 5): near(4),
            ("d", 5): near(9),
            ("a", 9): near(4.0001, 0.5, seed=1),
            ("b", 9): near(3.9999, 0.5, seed=2),
            ("c", 18): near(1),
        }
        return [
            cell(f"{solver}{nfe}", record(solver=solver, nfe=nfe, blocks=blocks))
            for (solver, nfe), blocks in points.items()
        ]

    def test_known_points(self):
        choice, _ = judged(*self.cells())

        assert [place(s.candidate) for s in choice.front] == [
            ("a", 3),
            ("c", 5),
            ("b", 9),
            ("c", 18),
        ]
        assert [[place(t) for t in s.ties] for s in choice.front] == [
            [("b", 3)],
            [],
            [("a", 9)],
            [],
        ]
        assert [s.gain and s.gain.verdict for s in choice.front] == [
            None,
            "better",
            "no difference",
            "better",
        ]

    def test_no_cell_of_as_few_calls_beats_the_front(self):
        for seed in range(20):
            rng = np.random.default_rng(seed)
            cells = [
                cell(str(i), record(solver=f"s{i}", nfe=int(n), blocks=near(v, 0.1, i)))
                for i, (n, v) in enumerate(
                    zip(rng.integers(3, 9, 30), rng.uniform(0, 5, 30), strict=True)
                )
            ]
            choice, contest = judged(*cells)
            front = [step.candidate for step in choice.front]
            for one, step in itertools.product(contest.candidates, front):
                if one.score.nfe <= step.score.nfe and one not in front:
                    assert one.score.value >= step.score.value

    def test_every_other_cell_is_beaten_or_tied(self):
        choice, contest = judged(*self.cells())
        front = {one.candidate.key for one in choice.front}
        tied = {tie.key for step in choice.front for tie in step.ties}
        for one in contest.candidates:
            if one.key in front | tied:
                continue
            bar = max(
                (s.candidate for s in choice.front if s.candidate.score.nfe <= one.score.nfe),
                key=lambda candidate: candidate.score.nfe,
            )
            assert cell_difference(one.score, bar.score).verdict == "worse"


FACTS: dict[str, tuple[Any, ...]] = {
    "n": (1000, 2000),
    "first": (0, 5000),
    "kind": ("fd", "fd_z", "recall"),
    "extractor": ("fs-rn20.multi112", "dinov2-large"),
    "extractor_sha256": ("aa" * 32, "bb" * 32),
    "reference_sha256": ("cc" * 32, "dd" * 32),
    "protocol": ("", "clean", "adm"),
    "quantisation": ("round", "truncate"),
    "preprocess": ("x", "y"),
    "labels": ("random", "balanced"),
}


@pytest.fixture(scope="module")
def scores() -> list[Score]:
    rng = np.random.default_rng(0)
    found = []
    for i in range(120):
        facts = {name: values[rng.integers(len(values))] for name, values in FACTS.items()}
        made = record(
            run=f"run{i % 3}",
            nfe=int(rng.integers(3, 6)),
            solver=("a", "b")[i % 2],
            blocks=rng.uniform(0, 1, 4),
            **facts,
        )
        found.append(Score.from_dict(made.to_dict()))
    return found


class TestNothingIsMixed:
    """Whatever stands in a record: numbers of two protocols are never subtracted or ranked."""

    def test_in_a_comparison(self, scores: list[Score]):
        runs = [
            RunRecord(
                name=name,
                run_id=name,
                status="FINISHED",
                scores=tuple(s for s in scores if s.run == name),
            )
            for name in ("run0", "run1", "run2")
        ]
        found = compare(runs, "run0")

        assert len(found.sweeps) > 50
        for one in found.sweeps:
            assert {score.protocol for score in one.scores.values()} == {one.protocol}
        for group in found.by_samples:
            assert len({(s.protocol.n, s.protocol.seeds, s.protocol.name) for s in group}) == 1
            assert len({s.protocol.reference_sha256 for s in group}) == 1
            assert len({s.protocol.extractor_sha256 for s in group}) == 1

    def test_in_a_difference(self, scores: list[Score]):
        refused = 0
        for one, other in itertools.combinations(scores[:40], 2):
            same = one.protocol == other.protocol and one.labels == other.labels
            if same:
                cell_difference(one, other)
                continue
            refused += 1
            with pytest.raises(ComparisonError, match="all of their protocol agrees"):
                cell_difference(one, other)
        assert refused > 700

    def test_in_a_sweep(self, scores: list[Score]):
        entries = [cell(str(i), record(**_facts_of(score))) for i, score in enumerate(scores)]
        for contest in contests(read(*entries)):
            assert {one.score.protocol for one in contest.candidates} == {contest.protocol}


def _facts_of(score: Score) -> dict[str, Any]:
    names = ("run", "nfe", "solver", "kind", "n", *FACTS)
    facts = {name: getattr(score, name) for name in names if name not in ("first", "protocol")}
    first = int(score.seeds.partition(":")[2].partition("-")[0])
    blocks = score.pseudo_values
    return {**facts, "first": first, "protocol": score.protocol_name, "blocks": blocks}


def test_replacing_a_score_does_not_change_its_direction():
    score = Score.from_dict(record(kind="recall", blocks=near(0.5)).to_dict())

    assert score.shortfall == -score.value
    assert replace(score, kind="fd").shortfall == score.value
