"""The page of a real, small sweep: pictures and neighbours are found in its storage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fleetstep.config import SweepSpec
from fleetstep.errors import ComparisonError
from fleetstep.orchestration.sweep import plan, score
from fleetstep.orchestration.sweep_file import write_scores
from fleetstep.orchestration.sweep_report import write_report
from fleetstep.orchestration.sweep_worker import build_worker
from page_reader import Reader
from synthetic_sweep import demo_sweep


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, digits_path: Path) -> tuple[dict, Path]:
    """Euler and DPM++ on the exact denoiser of 200 digits, by one worker in this process."""
    storage = tmp_path_factory.mktemp("storage")
    spec = SweepSpec.model_validate(
        {
            "name": "tiny",
            "runs": f"exact:{digits_path}#200",
            "storage": str(storage),
            "solvers": [{"kind": "euler"}, {"kind": "dpmpp"}],
            "nfe": [3],
            "metrics": ["fd"],
            "pictures": 16,
        }
    )
    work = plan(spec)
    worker = build_worker(storage, spec.extractors, pictures=spec.pictures)
    for unit in work.remaining:
        worker.run(unit)
    path = storage / "scores.json"
    write_scores(path, spec, work, score(spec, work))
    return json.loads(path.read_text()), storage


def test_the_page_and_its_pictures(swept: tuple[dict[str, Any], Path], tmp_path: Path):
    record, storage = swept

    page = write_report(record, storage, tmp_path / "new" / "folder")

    assert {path.name for path in page.parent.iterdir()} == {
        "index.html",
        "pareto.png",
        "curves.png",
        "seeds01-exact-digits-200-3.png",
        "neighbours.png",
        "distances.png",
    }
    html = page.read_text(encoding="utf-8")
    assert Reader(html).open == []
    assert "Ship dpmpp(order=2) at 3 calls" in html
    # What an exact denoiser makes are the images it was made of.
    assert "look for copies" in html
    assert "was not checked" not in html


def test_the_grid_shows_the_pictures_of_the_cells(
    swept: tuple[dict[str, Any], Path], tmp_path: Path
):
    from safetensors.numpy import load_file

    record, storage = swept
    write_report(record, storage, tmp_path)

    sheet = np.asarray(Image.open(tmp_path / "seeds01-exact-digits-200-3.png").convert("L"))
    for row, entry in enumerate(record["cells"]):
        path = storage / "cells" / entry["key"] / "pictures.safetensors"
        first = load_file(path)["images"][0, 0]
        top, scale = 13 + 8 + row * (8 * 7 + 8), 7
        drawn = sheet[top : top + 56 : scale, 170 : 170 + 56 : scale]
        assert np.array_equal(drawn, first)


def test_a_sweep_that_goes_on_has_a_page(swept: tuple[dict[str, Any], Path], tmp_path: Path):
    record, storage = swept
    partial = {**record, "complete": False, "cells": record["cells"][:1], "waiting": [{}]}

    html = write_report(partial, storage, tmp_path).read_text(encoding="utf-8")

    assert "The sweep is not done" in html
    assert "there is no other cell to compare it with" in html


def test_missing_and_damaged_files_cost_a_sentence_each(
    swept: tuple[dict[str, Any], Path], tmp_path: Path
):
    record, storage = swept
    copy = tmp_path / "storage"
    shutil.copytree(storage, copy)
    for path in copy.glob("cells/*/pictures.safetensors"):
        path.write_bytes(b"damaged")

    html = write_report(record, copy, tmp_path / "a").read_text(encoding="utf-8")
    assert "No pictures of samples were kept." in html
    assert "Are samples copies of real images?" in html
    assert not (tmp_path / "a" / "neighbours.png").exists()

    for path in copy.glob("cells/*/unit-00000.*"):
        path.unlink()
    html = write_report(record, copy, tmp_path / "b").read_text(encoding="utf-8")
    assert "was not checked against memorisation: features of its images are missing" in html

    shutil.rmtree(copy / "references")
    html = write_report(record, copy, tmp_path / "c").read_text(encoding="utf-8")
    assert "was not checked against memorisation: the features of its reference are not" in html


def test_a_score_under_a_name_that_is_not_its_own_makes_no_page(
    swept: tuple[dict[str, Any], Path], tmp_path: Path
):
    record, storage = swept
    for changes in ({"metric": "fid50k.clean"}, {"kind": "psnr"}):
        forged = json.loads(json.dumps(record))
        forged["cells"][0]["scores"][0].update(changes)
        with pytest.raises(ComparisonError, match=r"is called fd1k\.fs-rn20|'kind' .* 'psnr'"):
            write_report(forged, storage, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_dataset_that_moved_does_not_stop_the_page(
    swept: tuple[dict[str, Any], Path], tmp_path: Path
):
    record, storage = swept
    moved = {**record, "sweep": {**record["sweep"], "runs": [f"exact:{tmp_path}/gone"]}}

    html = write_report(moved, storage, tmp_path / "out").read_text(encoding="utf-8")

    assert "was not checked against memorisation:" in html
    assert "Samples at the same seeds" in html


def test_a_file_of_statistics_holds_no_images(swept: tuple[dict[str, Any], Path], tmp_path: Path):
    record, storage = swept
    changed = {**record, "sweep": {**record["sweep"], "reference": "cifar.npz"}}

    html = write_report(changed, storage, tmp_path).read_text(encoding="utf-8")

    assert "the reference is a file of statistics, which holds no images" in html


def test_a_record_without_a_storage_still_has_its_numbers(tmp_path: Path):
    html = write_report(demo_sweep(), tmp_path / "none", tmp_path).read_text(encoding="utf-8")

    assert "Ship edm-fdm" in html
    assert "No pictures of samples were kept." in html


def test_a_record_of_another_version_is_refused(tmp_path: Path):
    with pytest.raises(ComparisonError, match="not the record of a sweep"):
        write_report({"format": 1, "scores": []}, tmp_path, tmp_path)
