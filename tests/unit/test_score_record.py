"""A score's protocol: round trip, names that cannot be forged."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest

from fleetstep.errors import DataError
from fleetstep.evaluation.record import ScoreRecord, Seeds
from fleetstep.evaluation.spec import (
    INCEPTION_NAME,
    INCEPTION_SHA256,
    RN20_NAME,
    RN20_SHA256,
    metric_name,
)


def score(**changes: Any) -> ScoreRecord:
    values: dict[str, Any] = {
        "metric": metric_name(RN20_NAME, RN20_SHA256, 1000),
        "value": 1.5,
        "raw": 1.75,
        "se": 0.25,
        "low": 1.0,
        "high": 2.0,
        "confidence": 0.95,
        "n": 1000,
        "blocks": 2,
        "pseudo_values": (1.25, 1.75),
        "seeds": Seeds(0, 0, 1000),
        "run": "edm",
        "checkpoint": "c" * 64,
        "images_seen": 12_800,
        "ema": "ema",
        "solver": "heun",
        "schedule": "polynomial rho=7",
        "nfe": 9,
        "labels": "random",
        "extractor": RN20_NAME,
        "extractor_sha256": RN20_SHA256,
        "preprocess": "nearest",
        "quantisation": "floor(127.5 x + 128)",
        "reference": "digits train",
        "reference_sha256": "d" * 64,
        "reference_n": 1500,
        "versions": {"torch": "2.13.0"},
        "hardware": {"cpu": "x", "threads": "1"},
    }
    return ScoreRecord(**(values | changes))


def test_round_trip_through_json():
    record = score(value=-0.125, low=-1)
    assert ScoreRecord.from_dict(json.loads(json.dumps(record.to_dict()))) == record
    assert pickle.loads(pickle.dumps(record)) == record


def test_a_record_of_an_adaptive_solver_holds_a_mean_and_an_older_one_is_read():
    record = score(nfe=113.25, adaptive=True)
    assert ScoreRecord.from_dict(json.loads(json.dumps(record.to_dict()))) == record
    older = score().to_dict()
    del older["adaptive"]
    assert ScoreRecord.from_dict(older) == score()
    with pytest.raises(DataError, match=r"'adaptive' .* wrong type"):
        ScoreRecord.from_dict({**older, "adaptive": "no"})


@pytest.mark.parametrize(
    ("extractor", "sha256", "n", "name"),
    [
        (INCEPTION_NAME, INCEPTION_SHA256, 50_000, "fid.clean.unbiased"),
        (INCEPTION_NAME, INCEPTION_SHA256, 49_999, "fid49999.clean.unbiased"),
        (INCEPTION_NAME, INCEPTION_SHA256, 10_000, "fid10k.clean.unbiased"),
        (INCEPTION_NAME, "0" * 64, 50_000, "fd.inception.clean@00000000"),
        (RN20_NAME, RN20_SHA256, 50_000, f"fd.fs-rn20.multi112@{RN20_SHA256[:8]}"),
    ],
)
def test_the_word_fid_is_reserved(extractor: str, sha256: str, n: int, name: str):
    assert metric_name(extractor, sha256, n) == name


def test_standardised_distances_have_their_own_name():
    assert metric_name(RN20_NAME, RN20_SHA256, 10, standardised=True).startswith("fd_z.fs-rn20")
    assert metric_name(INCEPTION_NAME, INCEPTION_SHA256, 50_000, standardised=True) == (
        f"fd_z.inception.clean@{INCEPTION_SHA256[:8]}"
    )


@pytest.mark.parametrize(
    "metric", ["fid", "fid.clean", "fid1k.clean.unbiased", "fd", "fd.fs-rn20@0"]
)
def test_a_record_cannot_carry_another_name(metric: str):
    with pytest.raises(DataError, match=r"is called fd\.fs-rn20"):
        score(metric=metric)


def test_a_small_inception_score_is_not_fid():
    inception = {"extractor": INCEPTION_NAME, "extractor_sha256": INCEPTION_SHA256}
    assert score(metric="fid1k.clean.unbiased", **inception).n == 1000
    with pytest.raises(DataError, match=r"is called fid1k\.clean\.unbiased"):
        score(metric="fid.clean.unbiased", **inception)


def test_a_jackknifed_value_does_not_go_by_the_name_of_published_ones():
    inception = {"extractor": INCEPTION_NAME, "extractor_sha256": INCEPTION_SHA256}
    with pytest.raises(DataError, match=r"is called fid1k\.clean\.unbiased"):
        score(metric="fid1k.clean", **inception)


@pytest.mark.parametrize("field", ["value", "raw", "se", "low", "high"])
def test_values_are_finite(field: str):
    with pytest.raises(DataError, match="finite"):
        score(**{field: float("nan")})


def test_counts_agree():
    with pytest.raises(DataError, match="as many seeds and pseudo-values"):
        score(blocks=3)
    with pytest.raises(DataError, match="as many seeds and pseudo-values"):
        score(seeds=Seeds(0, 0, 900))


def test_a_field_that_is_missing_or_unknown_is_named():
    values = score().to_dict()
    with pytest.raises(DataError, match="does not hold guidance"):
        ScoreRecord.from_dict(values | {"guidance": 1.5})
    del values["nfe"]
    with pytest.raises(DataError, match="must hold nfe"):
        ScoreRecord.from_dict(values)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("value", "1.5"),
        ("n", 1000.0),
        ("nfe", True),
        ("run", None),
        ("seeds", {"namespace": 0}),
        ("seeds", {"namespace": 0, "first": 0, "count": "1000"}),
        ("seeds", 7),
        ("pseudo_values", 3),
        ("pseudo_values", [1.25, None]),
        ("versions", {"torch": 2}),
        ("hardware", []),
    ],
)
def test_a_field_of_another_type_is_named(field: str, value: object):
    with pytest.raises(DataError, match=f"field '{field}' .* wrong type"):
        ScoreRecord.from_dict(score().to_dict() | {field: value})
