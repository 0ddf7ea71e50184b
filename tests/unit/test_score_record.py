"""A score's protocol card: round trip, names that cannot be forged."""

from __future__ import annotations

import json
import pickle
from typing import Any, get_args

import pytest

from fleetstep.errors import DataError
from fleetstep.evaluation.record import ScoreRecord, Seeds
from fleetstep.evaluation.spec import (
    CLIP_NAME,
    INCEPTION_SHA256,
    RN20_NAME,
    RN20_SHA256,
    ClipSpec,
    DinoV2Spec,
    ExtractorSpec,
    InceptionSpec,
    MetricKind,
    Rn20Spec,
    dinov2_name,
    inception_name,
    metric_name,
    unavailable,
)

CLEAN, TF = inception_name("clean"), inception_name("legacy_tensorflow")


def score(**changes: Any) -> ScoreRecord:
    values: dict[str, Any] = {
        "metric": metric_name("fd", RN20_NAME, RN20_SHA256, 1000),
        "kind": "fd",
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


def test_an_adaptive_solvers_calls_are_a_mean():
    record = score(nfe=113.25, adaptive=True)
    assert ScoreRecord.from_dict(json.loads(json.dumps(record.to_dict()))) == record
    with pytest.raises(DataError, match=r"'adaptive' .* wrong type"):
        ScoreRecord.from_dict({**record.to_dict(), "adaptive": "no"})


@pytest.mark.parametrize(
    ("kind", "extractor", "sha256", "n", "name"),
    [
        ("fd", CLEAN, INCEPTION_SHA256, 50_000, "fid50k.clean.unbiased"),
        ("fd", TF, INCEPTION_SHA256, 50_000, "fid50k.tf.unbiased"),
        ("fd", CLEAN, INCEPTION_SHA256, 49_999, "fid49999.clean.unbiased"),
        ("fd_z", CLEAN, INCEPTION_SHA256, 10_000, "fid_z10k.clean"),
        ("fd_inf", TF, INCEPTION_SHA256, 10_000, "fid_inf10k.tf"),
        ("is", TF, INCEPTION_SHA256, 50_000, "is50k.tf"),
        ("kid", CLEAN, INCEPTION_SHA256, 1000, "kid1k.clean"),
        ("fd", CLEAN, "0" * 64, 50_000, "fd50k.inception.clean@00000000"),
        ("is", TF, "0" * 64, 50_000, "is50k.inception.tf@00000000"),
        ("fd", RN20_NAME, INCEPTION_SHA256, 1000, "fd1k.fs-rn20.multi112@f58cb9b6"),
        ("fd", RN20_NAME, RN20_SHA256, 50_000, f"fd50k.fs-rn20.multi112@{RN20_SHA256[:8]}"),
        ("fd", dinov2_name("large"), "0" * 64, 50_000, "fd50k.dinov2-large@00000000"),
        ("clip_score", CLIP_NAME, "0" * 64, 300, "clip_score300.clip-vit-b-32@00000000"),
    ],
)
def test_the_word_fid_is_reserved_and_every_name_holds_n(
    kind: MetricKind, extractor: str, sha256: str, n: int, name: str
):
    assert metric_name(kind, extractor, sha256, n) == name


def test_no_two_metrics_share_a_name():
    names = [
        metric_name(kind, extractor, sha256, n)
        for kind in get_args(MetricKind)
        for extractor in (CLEAN, TF, RN20_NAME)
        for sha256 in (INCEPTION_SHA256, RN20_SHA256)
        for n in (999, 1000, 10_000)
    ]
    assert len(set(names)) == len(names)
    assert {n.split(".")[0] for n in names if n.startswith("fid")} == {
        f"fid{suffix}{n}" for suffix in ("", "_z", "_inf") for n in ("999", "1k", "10k")
    }


def test_an_unknown_metric_has_no_name():
    with pytest.raises(ValueError, match="'fid' is no metric"):
        metric_name("fid", RN20_NAME, RN20_SHA256, 1000)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "extractor", "reason"),
    [
        ("is", InceptionSpec(), "legacy_tensorflow"),
        ("is", InceptionSpec(resize="legacy_tensorflow"), None),
        ("is", Rn20Spec(), None),
        ("is", DinoV2Spec(path="a", sha256="0" * 64), "class probabilities"),
        ("is", ClipSpec(path="a", sha256="0" * 64), "class probabilities"),
        ("clip_score", ClipSpec(path="a", sha256="0" * 64), "texts"),
        ("clip_score", ClipSpec(path="a", sha256="0" * 64, texts="t"), None),
        ("clip_score", Rn20Spec(), "texts"),
        ("recall", DinoV2Spec(path="a", sha256="0" * 64), None),
    ],
)
def test_what_an_extractor_cannot_give_is_known_without_loading_it(
    kind: MetricKind, extractor: ExtractorSpec, reason: str | None
):
    found = unavailable(kind, extractor)
    assert found is None if reason is None else found is not None and reason in found


@pytest.mark.parametrize(
    "metric", ["fid", "fid1k.clean", "fid1k.clean.unbiased", "fd", "fd1k.fs-rn20@0"]
)
def test_a_record_cannot_carry_another_name(metric: str):
    with pytest.raises(DataError, match=r"is called fd1k\.fs-rn20"):
        score(metric=metric)


def test_a_record_of_another_kind_cannot_carry_the_name():
    with pytest.raises(DataError, match=r"is called kid1k\.fs-rn20"):
        score(kind="kid")


def test_a_jackknifed_value_does_not_go_by_the_name_of_published_ones():
    inception = {"extractor": CLEAN, "extractor_sha256": INCEPTION_SHA256}
    assert score(metric="fid1k.clean.unbiased", **inception).n == 1000
    for metric in ("fid50k.clean.unbiased", "fid1k.clean"):
        with pytest.raises(DataError, match=r"is called fid1k\.clean\.unbiased"):
            score(metric=metric, **inception)


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
    with pytest.raises(DataError, match="does not hold weather"):
        ScoreRecord.from_dict(values | {"weather": 1.5})
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
        ("kind", "fid"),
        ("guidance", None),
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
