"""What cannot be measured is refused by a plan, before anything is sampled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from fleetstep.config import EvaluateSpec, SweepSpec
from fleetstep.config.sweep_checks import check_evaluated_images
from fleetstep.data.manifest import load_manifest
from fleetstep.data.pack import pack_npz
from fleetstep.data.spec import DataSpec
from fleetstep.errors import ComparisonError, UsageError
from fleetstep.evaluation import score as score_module
from fleetstep.evaluation import spec as spec_module
from fleetstep.evaluation.spec import Rn20Spec, too_large
from fleetstep.orchestration import sweep_job
from fleetstep.orchestration.cell_scores import Measure
from fleetstep.orchestration.evaluator_setup import check_evaluation
from fleetstep.orchestration.measurable import check_texts
from fleetstep.orchestration.measures import check_reference
from fleetstep.orchestration.sweep import plan
from fleetstep.orchestration.sweep_file import SweepFiles
from fleetstep.reporting.records import Score
from fleetstep.reporting.statistics import check_comparable
from fleetstep.sampling.spec import EulerSpec
from pixel_sweep import NEAR, SPACE, Sweep, run
from synthetic_sweep import record as synthetic_record

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), dtype=np.uint8)
CLIP = {"kind": "clip", "path": "ViT-B-32.pt", "sha256": "ab" * 32}


def packed(folder: Path, images: int, side: int) -> Path:
    np.savez(folder / "images.npz", images=PIXELS[:images, :side, :side])
    pack_npz(folder / "images.npz", folder / "packed", heldout=0)
    return folder / "packed"


def spec(folder: Path, data: Path, **changes: Any) -> SweepSpec:
    settings: dict[str, Any] = {
        "runs": f"exact:{data}",
        "storage": str(folder / "runs"),
        "solvers": [{"kind": "euler"}],
        "nfe": [3],
        "metrics": ["fd"],
    }
    return SweepSpec.model_validate(settings | changes)


class TestSide:
    def test_images_that_an_extractor_cannot_read(self, tmp_path: Path):
        with pytest.raises(UsageError, match=r"exact-images .* up to 32x32 .* are 64x64") as found:
            plan(spec(tmp_path, packed(tmp_path, 20, 64)))
        assert "use another extractor" in found.value.remedy

    def test_the_largest_that_it_reads(self, tmp_path: Path):
        assert len(plan(spec(tmp_path, packed(tmp_path, 20, 32))).cells) == 1
        assert too_large((32, 32), Rn20Spec()) is None
        assert too_large((8, 33), Rn20Spec()) is not None

    def test_evaluation_while_training(self):
        data = DataSpec(path="x")
        assert check_evaluated_images(EvaluateSpec(), data, 0, 3, 32, ()) == []
        (problem,) = check_evaluated_images(EvaluateSpec(), data, 0, 3, 64, ())
        assert problem.startswith("evaluate.extractors.0: fs-rn20 reads images of up to 32x32")


class TestSmallReferences:
    @pytest.mark.parametrize(
        ("images", "metrics", "needed"),
        [(1, ["fd"], 2), (1, ["kid"], 2), (3, ["precision"], 4), (5, ["fd", "coverage"], 6)],
    )
    def test_a_split(self, tmp_path: Path, images: int, metrics: list[str], needed: int):
        data = packed(tmp_path, images, 8)
        words = rf"split train of .*packed has {images} images, and .* needs {needed} or more"
        with pytest.raises(UsageError, match=words):
            plan(spec(tmp_path, data, metrics=metrics))

    def test_of_enough_images_it_is_none(self, tmp_path: Path):
        data = packed(tmp_path, 4, 8)
        assert plan(spec(tmp_path, data, metrics=["fd", "kid", "precision", "recall"])).cells

    def test_a_file(self, tmp_path: Path):
        np.savez(tmp_path / "few.npz", feats=np.eye(3, 112, dtype=np.float32))
        few = {"reference": str(tmp_path / "few.npz")}
        with pytest.raises(UsageError, match=r"few\.npz has 3 images, and .* needs 4"):
            check_reference(EvaluateSpec(metrics=("precision",), **few))
        check_reference(EvaluateSpec(metrics=("kid", "recall"), **few))


class TestEvaluationWhileTraining:
    def test_statistics_that_cannot_serve(self, tmp_path: Path, digits_path: Path):
        manifest = load_manifest(digits_path)
        np.savez(tmp_path / "ref.npz", mu=np.zeros(2048), sigma=np.eye(2048))
        statistics = {"reference": str(tmp_path / "ref.npz")}
        with pytest.raises(UsageError, match="holds statistics only"):
            check_evaluation(EvaluateSpec(**statistics), manifest)
        with pytest.raises(UsageError, match="statistics of 2048 features"):
            check_evaluation(EvaluateSpec(metrics=("fd",), **statistics), manifest)

    def test_a_split_of_too_few_images(self, tmp_path: Path):
        few = load_manifest(packed(tmp_path, 3, 8))
        with pytest.raises(UsageError, match="split train of images has 3"):
            check_evaluation(EvaluateSpec(metrics=("precision",)), few)


class TestTexts:
    def test_there_is_one_a_class(self):
        measures = [Measure(space=SPACE, metrics=("clip_score",), texts=np.ones((4, 32), "f4"))]
        check_texts(measures, "edm", 4)
        for classes in (0, 10):
            with pytest.raises(UsageError, match=f"4 texts are given, and edm has {classes}"):
                check_texts(measures, "edm", classes)

    def test_scores_of_other_texts_are_told_apart(self, tmp_path: Path):
        rng = np.random.default_rng(0)
        found = []
        for _ in range(2):
            texts = rng.uniform(0.1, 1, (10, 32)).astype(np.float32)
            measure = Measure(space=SPACE, metrics=("fd", "clip_score"), texts=texts)
            sweep = Sweep(tmp_path, networks=(NEAR,), measures=(measure,))
            run(sweep.plan.remaining, sweep.worker())
            found.append(sweep.scores()[0].records)
        (fd, score), (other_fd, other_score) = found
        assert (fd, fd.texts) == (other_fd, "")
        assert score.texts != other_score.texts
        assert replace(score, texts="").metric == other_score.metric

    @pytest.mark.parametrize(
        "extractors",
        [
            [{**CLIP, "texts": "a"}, {**CLIP, "texts": "b"}],
            [{"kind": "inception", "path": "a"}, {"kind": "inception", "path": "b"}],
        ],
    )
    def test_one_feature_space_twice_is_refused(self, extractors: list[dict[str, str]]):
        with pytest.raises(ValidationError, match="is listed twice; other paths or texts"):
            EvaluateSpec.model_validate({"extractors": extractors, "metrics": ["fd"]})
        other = [extractors[0], {**extractors[1], "sha256": "cd" * 32}]
        assert len(EvaluateSpec.model_validate({"extractors": other}).extractors) == 2


def test_a_record_says_how_many_images_its_metric_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for module in (spec_module, score_module):
        monkeypatch.setattr(module, "PAIRED_IMAGES", 500)
    measure = Measure(space=SPACE, metrics=("fd", "kid", "precision"))
    sweep = Sweep(tmp_path, networks=(NEAR,), measures=(measure,), solvers=(EulerSpec(),))
    run(sweep.plan.remaining, sweep.worker())
    fd, kid, precision = sweep.scores()[0].records
    assert (fd.metric, fd.n, fd.seeds.count) == ("fd1k.pixels@eeeeeeee", 1000, 1000)
    for record in (kid, precision):
        assert record.metric == f"{record.kind}500.pixels@eeeeeeee"
        assert (record.n, record.seeds.count, record.reference_n) == (500, 500, 250)
    assert fd.dtype == "float64"


def test_cells_of_another_dtype_are_other_cells():
    record = synthetic_record(dtype="float32").to_dict()
    single, double = (Score.from_dict(record | {"dtype": d}) for d in ("float32", "float64"))
    assert single.cell != double.cell
    assert single.cell.title == f"{double.cell.title}, float32"
    with pytest.raises(ComparisonError, match="dtype: float32 against float64"):
        check_comparable(single, double)


def test_a_page_that_fails_costs_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise ValueError("cannot draw")

    asked = spec(tmp_path, tmp_path)
    files = SweepFiles.of(asked)
    files.folder.mkdir(parents=True)
    files.scores.write_text("{}")
    monkeypatch.setattr(sweep_job, "write_report", fail)
    said: list[str] = []
    assert sweep_job._page(asked, said.append) is None
    assert said == ["  the page of the sweep was not written: ValueError: cannot draw"]
