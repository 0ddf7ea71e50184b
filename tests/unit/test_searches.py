"""The searches that are shipped: each is sound, and small where it says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from fleetstep.config import SearchSpec, load, rungs, trials_of

SEARCHES = Path(__file__).parents[2] / "pipelines" / "searches"


def read(name: str, digits_path: Path) -> SearchSpec:
    data = [f"trial.data.path={digits_path}"] if name.startswith("digits") else []
    return load(SearchSpec, SEARCHES / name, data, data_required=bool(data))


@pytest.mark.parametrize("name", sorted(path.name for path in SEARCHES.glob("*.yaml")))
def test_every_trial_of_a_search_is_sound(name: str, digits_path: Path):
    search = read(name, digits_path)
    assert search.name == Path(name).stem
    # What it costs beside a whole training is what halving is for.
    budget = search.trial.tree["training"]["images"]
    assert rungs(search) == (budget // 9, budget // 3)


@pytest.mark.parametrize("kind", ["speed", "fdm", "strategies", "lr-ema"])
def test_digits_and_cifar10_search_the_same_settings(kind: str, digits_path: Path):
    small, large = (read(f"{data}-{kind}.yaml", digits_path) for data in ("digits", "cifar10"))
    assert small.space.keys == large.space.keys
    assert small.objectives == large.objectives


def test_speed_is_searched_at_the_points_of_the_papers_tables(digits_path: Path):
    trials = trials_of(read("cifar10-speed.yaml", digits_path))
    assert trials is not None
    found = {(one["strategies.0.k"], one["strategies.0.lam"]) for one in trials}
    # SpeeD, Tables 6b and 6c.
    assert found == {(k, lam) for k in "1 5 10 25".split() for lam in "0.5 0.6 0.8 1.0".split()}
