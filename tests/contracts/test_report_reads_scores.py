"""What the evaluation writes, the report reads: two packages that may not import each other."""

import json
from dataclasses import asdict, replace
from typing import get_args

import pytest

from fleetstep.evaluation import spec
from fleetstep.evaluation.record import ScoreRecord, Seeds
from fleetstep.evaluation.spec import metric_name
from fleetstep.reporting.records import HIGHER_IS_BETTER, Score
from fleetstep.reporting.wording import metric_text
from synthetic_records import score

DIGEST = "0123456789abcdef" * 4


def test_a_score_crosses_as_json_without_loss():
    written = ScoreRecord(
        metric=metric_name("fd", "fs-rn20.multi112", DIGEST, 4),
        kind="fd",
        value=1.5,
        raw=1.75,
        se=0.5,
        low=-4.85,
        high=7.85,
        confidence=0.95,
        n=4,
        blocks=2,
        pseudo_values=(1.0, 2.0),
        seeds=Seeds(3, 100, 4),
        run="edm",
        checkpoint=DIGEST,
        images_seen=200_000,
        ema="ema",
        solver="heun",
        schedule="polynomial(rho=7.0)",
        nfe=19,
        labels="balanced",
        extractor="fs-rn20.multi112",
        extractor_sha256=DIGEST,
        preprocess="nearest",
        quantisation="floor",
        reference="digits/train",
        reference_sha256=DIGEST,
        reference_n=1500,
        versions={"torch": "2.13"},
        hardware={"cpu": "x"},
        guidance="cfg 1.5",
        protocol="clean",
    )

    read = asdict(Score.from_dict(json.loads(json.dumps(written.to_dict()))))

    assert read.pop("seeds") == str(written.seeds) == "3:100-103"
    assert read.pop("protocol_name") == written.protocol == "clean"
    assert read == {name: getattr(written, name) for name in read}
    assert set(asdict(written)) - set(read) == {"confidence", "seeds", "protocol"}


def test_both_sides_agree_which_way_every_metric_points():
    assert HIGHER_IS_BETTER == spec.HIGHER_IS_BETTER
    for kind in get_args(spec.MetricKind):
        protocol = replace(score(kind=kind).protocol, kind=kind)
        assert protocol.higher_is_better == (kind in spec.HIGHER_IS_BETTER)


@pytest.mark.parametrize("resize", ["clean", "legacy_tensorflow"])
@pytest.mark.parametrize("kind", get_args(spec.MetricKind))
def test_only_the_verified_network_is_read_as_fid(kind: spec.MetricKind, resize: spec.ResizeMode):
    name = spec.inception_name(resize)
    for digest in (spec.INCEPTION_SHA256, DIGEST):
        metric = metric_name(kind, name, digest, 50_000)
        protocol = replace(score().protocol, metric=metric, kind=kind, n=50_000)
        verified = digest == spec.INCEPTION_SHA256 and kind in ("fd", "fd_z", "fd_inf")
        assert ("FID" in metric_text(protocol)) == verified
        assert (protocol.precedence == 0) == (verified and kind == "fd")
