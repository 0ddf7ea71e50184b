"""The space of a search: what a file may leave open, how it is drawn, and what it makes of a
trial.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel
from scipy import stats

from fleetstep.config import AmedExperiment, Experiment, LogUniform, Space, SweepSpec, Uniform
from fleetstep.config.files import merged
from fleetstep.config.search_dimensions import KINDS
from fleetstep.errors import ConfigError

SPEED = {
    "training": {"optimizer": {"lr": {"log_uniform": ["1e-4", 1e-2]}}},
    "strategies": {
        "choice": {
            "plain": [],
            "fdm": [{"kind": "fdm", "multiplier": {"uniform": [1, 3]}}],
            "speed": [{"kind": "speed", "k": {"choice": [1, 5, 10]}}],
        }
    },
    "network": {"channels": {"integers": [8, 11]}},
}
LR, MULTIPLIER = "training.optimizer.lr", "strategies/fdm/0.multiplier"


def problems(tree: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        Space.parse(tree)
    return list(caught.value.problems)


class TestReading:
    def test_each_dimension_knows_its_place_and_the_options_above_it(self):
        found = [one.as_dict() for one in Space.parse(SPEED).dimensions]
        assert [one["key"] for one in found] == [
            LR, "strategies", MULTIPLIER, "strategies/speed/0.k", "network.channels",
        ]  # fmt: skip
        assert found[0] == {
            "key": LR, "kind": "log_uniform", "low": 1e-4, "high": 1e-2, "labels": None,
            "when": [],
        }  # fmt: skip
        assert found[2]["when"] == [["strategies", "fdm"]]
        assert found[3] == {
            "key": "strategies/speed/0.k", "kind": "choice", "low": None, "high": None,
            "labels": ["1", "5", "10"], "when": [["strategies", "speed"]],
        }  # fmt: skip
        assert (found[4]["low"], found[4]["high"]) == (8, 11)

    def test_options_of_a_list_are_named_after_what_they_hold(self):
        options = [
            [], [{"kind": "fdm"}], [{"kind": "fdm"}, {"kind": "speed"}], [{"kind": "fdm", "a": 1}],
            [0.9, 0.99], {"a": 1}, None, True, 1e-4, "a/b",
        ]  # fmt: skip
        (one,) = Space.parse({"x": {"choice": options}}).dimensions
        assert one.kind.labels == (
            "none", "fdm", "fdm-speed", "fdm-4", "0.9-0.99", "option 6", "null", "true", "0.0001",
            "a/b",
        )  # fmt: skip

    def test_options_under_options(self):
        inner = {"choice": {"p": {"uniform": [0, 1]}, "q": 2}}
        space = Space.parse({"x": {"choice": {"a": {"y": inner}, "b": {}}}})
        assert [(one.key, one.when) for one in space.dimensions] == [
            ("x", ()),
            ("x/a/y", (("x", "a"),)),
            ("x/a/y/p", (("x", "a"), ("x/a/y", "p"))),
        ]

    def test_keys_are_names_that_the_tracker_takes(self):
        tree = {"a_1": {"choice": {"x.y: z-0": [{"b-c": {"choice": [1, 2]}}]}}}
        for one in (*Space.parse(SPEED).dimensions, *Space.parse(tree).dimensions):
            assert re.fullmatch(r"[A-Za-z0-9_\-. :/]+", one.key)

    @pytest.mark.parametrize(
        ("section", "says"),
        [
            ({"uniform": [2, 1]}, "uniform: low must lie below high, got [2, 1]"),
            ({"uniform": [1, 1]}, "uniform: low must lie below high, got [1, 1]"),
            ({"uniform": [1]}, "uniform takes two numbers, [low, high], got [1]"),
            ({"uniform": 3}, "uniform takes two numbers, [low, high], got 3"),
            ({"uniform": [0, float("inf")]}, "uniform takes two numbers, [low, high], got [0, "),
            ({"uniform": [False, 1]}, "uniform takes two numbers, [low, high], got [False, 1]"),
            ({"log_uniform": [0, 1]}, "log_uniform: low must be positive, got 0"),
            ({"integers": [0.5, 2]}, "integers takes whole numbers, got [0.5, 2]; use uniform"),
            ({"choice": []}, "choice takes at least one option"),
            ({"choice": 3}, "choice takes a list, or a mapping of labels to values, got 3"),
            ({"choice": [1, "1"]}, "choice: 1 is listed twice"),
            ({"choice": {True: 1, "b": 2}}, "choice: YAML reads a label as True; put it"),
            ({"choice": {"a/b": 1}}, "choice: the label 'a/b' may hold letters, digits, spaces"),
            ({"choice": [1], "uniform": [0, 1]}, "a dimension is one of choice, uniform, log_un"),
            ({"uniform": [0, 1], "kind": "x"}, "a dimension is one of choice, uniform, log_un"),
            ({0: 1}, "0 is no name of a field; sections are written one within the other"),
            ({"b.c": 1}, "'b.c' is no name of a field"),
        ],
    )  # fmt: skip
    def test_what_is_no_dimension_is_named_by_its_path(self, section: Any, says: str):
        (found,) = problems({"training": {"a": section}})
        assert found.startswith(f"space.training.a: {says}")

    def test_all_problems_are_told_together(self):
        tree = {
            "a": {"uniform": [2, 1]},
            "b": {"choice": {"x": [{"c": {"uniform": [1]}}], "y": {"integers": []}}},
        }
        paths = [line.partition(": ")[0] for line in problems(tree)]
        assert paths == ["space.a", "space.b/x/0.c", "space.b/y"]
        assert problems({"uniform": [0, 1]})[0].startswith("space: holds the sections")
        assert problems([1]) == ["space: must be a mapping of sections, got [1]"]

    def test_no_section_of_a_configuration_has_a_field_that_makes_a_dimension(self):
        seen = set().union(*map(fields, (Experiment, SweepSpec, AmedExperiment)))
        assert {"optimizer", "multiplier", "schedule", "kind", "scale_dir"} <= seen
        assert not seen & set(KINDS)


def fields(model: Any, above: frozenset[Any] = frozenset()) -> set[str]:
    """Names of all fields in a tree of models."""
    if isinstance(model, type) and issubclass(model, BaseModel):
        if model in above:
            return set()
        inner = [fields(f.annotation, above | {model}) for f in model.model_fields.values()]
        return set(model.model_fields).union(*inner)
    return set().union(*(fields(part, above) for part in get_args(model)))


COUNT = 4000


@pytest.fixture(scope="module")
def drawn() -> list[Any]:
    space = Space.parse(SPEED)
    return [space.sample(7, index) for index in range(COUNT)]


class TestDraws:
    def test_ranges_follow_their_laws(self, drawn: list[Any]):
        lr = [one[LR] for one in drawn]
        assert stats.kstest(lr, stats.loguniform(1e-4, 1e-2).cdf).pvalue > 0.01
        multiplier = [one[MULTIPLIER] for one in drawn if MULTIPLIER in one]
        assert len(multiplier) > COUNT / 4
        assert stats.kstest(multiplier, stats.uniform(1, 2).cdf).pvalue > 0.01

    @pytest.mark.parametrize(
        ("key", "values"),
        [
            ("strategies", ("plain", "fdm", "speed")),
            ("strategies/speed/0.k", ("1", "5", "10")),
            ("network.channels", (8, 9, 10, 11)),
        ],
    )
    def test_options_and_integers_are_equally_likely(
        self, drawn: list[Any], key: str, values: tuple[Any, ...]
    ):
        counts = Counter(one[key] for one in drawn if key in one)
        assert set(counts) == set(values)
        assert stats.chisquare(list(counts.values())).pvalue > 0.01

    @pytest.mark.parametrize("kind", [Uniform, LogUniform])
    def test_rounding_stays_within_the_bounds(self, kind: type[Uniform | LogUniform]):
        one = kind(1 / 3, 2 / 3)
        for u in (2.0**-53, 1 - 2.0**-53):
            assert one.refusal(one.at(u)) is None

    def test_dimensions_are_independent(self, drawn: list[Any]):
        channels = [one["network.channels"] for one in drawn]
        assert stats.spearmanr([one[LR] for one in drawn], channels).pvalue > 0.01
        rates = [one[LR] for one in drawn]
        assert stats.spearmanr(rates[:-1], rates[1:]).pvalue > 0.01

    def test_a_draw_depends_on_seed_index_and_its_own_dimension_alone(self, drawn: list[Any]):
        space = Space.parse(SPEED)
        assert space.sample(7, 1234) == drawn[1234]
        assert space.sample(8, 1234) != drawn[1234]
        fewer = Space.parse({"training": SPEED["training"]})
        assert fewer.sample(7, 1234) == {LR: drawn[1234][LR]}

    def test_golden(self):
        # Another machine, or a later version, proposes the same trials.
        assert Space.parse(SPEED).sample(0, 2) == {
            LR: 0.000199687407,
            "strategies": "fdm",
            MULTIPLIER: 1.09991579,
            "network.channels": 9,
        }

    def test_only_active_dimensions_are_drawn_and_the_text_of_them_is_enough(
        self, drawn: list[Any]
    ):
        space = Space.parse(SPEED)
        for one in drawn[:50]:
            assert (MULTIPLIER in one) == (one["strategies"] == "fdm")
            assert json.loads(json.dumps(one)) == one
            space.apply({}, json.loads(json.dumps(one)))


def by_hand() -> Iterator[tuple[Any, ...]]:
    for a in ("x", "y"):
        for b in (1, 2) if a == "x" else (None,):
            for c in ("3", "4", "5"):
                yield a, b, c


GRID = {"a": {"choice": {"x": {"b": {"integers": [1, 2]}}, "y": {}}}, "c": {"choice": [3, 4, 5]}}


class TestGrid:
    def test_in_file_order_the_last_dimension_fastest(self):
        space = Space.parse(GRID)
        found = [(one["a"], one.get("a/x/b"), one["c"]) for one in space.grid()]
        assert found == list(by_hand())
        assert space.size() == len(found) == 9

    def test_a_grid_of_many_integers_is_counted_and_not_walked(self):
        assert Space.parse({"z": {"integers": [1, 10**12]}, **GRID}).size() == 9 * 10**12

    def test_a_continuous_dimension_has_no_grid(self):
        space = Space.parse(SPEED)
        assert space.size() is None
        with pytest.raises(ConfigError, match=r"space\.training\.optimizer\.lr: is continuous"):
            space.grid()


TRIAL = {
    "training": {"images": 10, "optimizer": {"kind": "adam", "lr": 1.0}},
    "strategies": [{"kind": "warmup"}],
    "network": {"kind": "ddpmpp", "channels": 32},
}


class TestApplying:
    def test_it_is_laid_over_the_trial_as_files_are(self):
        space = Space.parse(SPEED)
        assignment = {
            LR: 0.002, "strategies": "speed", "strategies/speed/0.k": "5", "network.channels": 8,
        }  # fmt: skip
        overlay = {
            "training": {"optimizer": {"lr": 0.002}},
            "strategies": [{"kind": "speed", "k": 5}],
            "network": {"channels": 8},
        }
        tree = space.apply(TRIAL, assignment)
        assert tree == merged(TRIAL, overlay)
        assert tree["training"] == {"images": 10, "optimizer": {"kind": "adam", "lr": 0.002}}
        # Another kind leaves the settings of the one beneath.
        other = Space.parse({"network": {"choice": {"a": {"kind": "dit"}, "b": {"channels": 8}}}})
        assert other.apply(TRIAL, {"network": "a"})["network"] == {"kind": "dit"}
        assert other.apply(TRIAL, {"network": "b"})["network"] == {
            "kind": "ddpmpp", "channels": 8,
        }  # fmt: skip

    def test_values_keep_their_types(self):
        space = Space.parse({"x": {"choice": [None, True, 2, 0.5, "text"]}})
        found = [space.apply({}, {"x": label})["x"] for label in space.dimensions[0].kind.labels]
        assert found == [None, True, 2, 0.5, "text"]
        assert [type(value) for value in found[1:]] == [bool, int, float, str]

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({"lr": 1}, "lr: is no dimension of the space; dimensions: training.optimizer.lr, "),
            ({LR: 1.0}, f"{LR}: must be a number in [0.0001, 0.01], got 1.0"),
            ({LR: "0.001"}, f"{LR}: must be a number in [0.0001, 0.01], got '0.001'"),
            ({"network.channels": 8.0}, "network.channels: must be a whole number in [8, 11]"),
            ({"network.channels": True}, "network.channels: must be a whole number in [8, 11]"),
            ({"strategies": "fmd"}, "strategies: 'fmd' is not an option; options: plain, f"),
            ({MULTIPLIER: 2.0}, f"{MULTIPLIER}: exists only where strategies is fdm; "),
            ({"strategies": "fdm"}, f"{MULTIPLIER}: missing; the assignment must say it"),
        ],
    )  # fmt: skip
    def test_what_is_no_assignment_is_refused(self, change: dict[str, Any], says: str):
        space = Space.parse(SPEED)
        good = {LR: 0.002, "strategies": "plain", "network.channels": 8}
        space.apply({}, good)
        with pytest.raises(ConfigError) as caught:
            space.apply({}, good | change)
        (found,) = caught.value.problems
        assert found.startswith(says)


class TestTitles:
    def test_short_names_and_three_digits(self):
        assignment = {LR: 0.0031415, "strategies": "fdm", MULTIPLIER: 1.8, "network.channels": 9}
        assert Space.parse(SPEED).title(assignment) == (
            "lr=0.00314 strategies=fdm multiplier=1.8 channels=9"
        )

    def test_names_are_as_long_as_it_takes_to_tell_them_apart(self):
        tree = {
            "a": {"lr": {"choice": [1]}},
            "b": {"lr": {"choice": [2]}},
            "s": [{"k": {"choice": [3]}}, {"k": {"choice": [4]}}],
            "lr": {"choice": [5]},
        }
        space = Space.parse(tree)
        assert space.title(space.first()) == "a.lr=1 b.lr=2 0.k=3 1.k=4 lr=5"
