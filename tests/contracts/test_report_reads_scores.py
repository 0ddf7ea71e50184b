"""What the evaluation writes, the report reads: two packages that may not import each other."""

import json
from dataclasses import asdict

from fleetstep.evaluation.record import ScoreRecord, Seeds
from fleetstep.evaluation.spec import metric_name
from fleetstep.reporting.records import Score

DIGEST = "0123456789abcdef" * 4


def test_a_score_crosses_as_json_without_loss():
    written = ScoreRecord(
        metric=metric_name("fs-rn20.multi112", DIGEST, 4),
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
    )

    read = asdict(Score.from_dict(json.loads(json.dumps(written.to_dict()))))

    assert read.pop("seeds") == str(written.seeds) == "3:100-103"
    assert read == {name: getattr(written, name) for name in read}
    assert set(asdict(written)) - set(read) == {"confidence", "seeds"}
