"""What a certificate judges and writes, and that the command fails when one does."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from PIL import Image

from fleetstep.orchestration import certify as certifying
from fleetstep.orchestration.certify import markdown
from fleetstep.sampling.certificates import orders
from fleetstep.sampling.certificates.record import (
    Certificate,
    last_slope,
    slope_failures,
    value_failures,
)


def test_the_slope_is_that_of_the_last_two_sizes():
    assert last_slope((1, 10, 100), (1.0, 0.5, 0.005)) == pytest.approx(2.0)
    assert last_slope((3, 6), (1.0, 2.0)) == pytest.approx(-1.0)


def test_a_slope_beyond_its_tolerance_fails_and_so_does_none():
    assert slope_failures(2.049, 2.0, 2) == ()
    assert len(slope_failures(2.051, 2.0, 2)) == 1
    assert len(slope_failures(2.2, 2.0, 2)) == 2
    assert len(slope_failures(float("nan"), 2.0, 2)) == 2
    assert len(slope_failures(last_slope((1, 2), (1.0, 0.0)), 2.0, None)) == 1


def test_a_value_beyond_its_tolerance_fails_and_so_does_none():
    found = value_failures("error", "N", (8, 16, 32), (1.009, 1.011, math.nan), (1.0, 1.0, 1.0))
    assert found == (
        "error 1.011 at N = 16, expected 1 ± 1%",
        "error nan at N = 32, expected 1 ± 1%",
    )


def test_the_command_writes_table_record_and_plots(run, tmp_path: Path):
    out = tmp_path / "c"
    code, text, _ = run(
        *("certify", "--quick", "--out", out),
        *("--solver", "euler", "--solver", "plms", "--solver", "accelerated_ddpm"),
    )
    assert code == 0
    record = json.loads((out / "certificates.json").read_text())
    assert record["passed"]
    assert record["quick"]
    kinds = {certificate["kind"] for certificate in record["certificates"]}
    assert kinds == {"euler", "plms", "accelerated_ddpm"}
    groups = {certificate["group"] for certificate in record["certificates"]}
    assert groups == {"order", "order in law", "total variation"}
    count = len(record["certificates"])
    assert f"{count} of {count} certificates hold" in text
    table = (out / "certificates.md").read_text()
    assert table.count("| holds |") == count
    # Slope, expected, declared, and the error beside its known value: another's, or our own.
    assert "| euler | 1.00 | 1.00 | 1 | 1.000 |" in table
    assert "| plms | 2.00 | 2.00 | 2 | 1.000* |" in table
    assert "│ 1.000* │" in text
    ratios = {entry["kind"]: entry["ratio"] for entry in record["certificates"][:2]}
    assert ratios == pytest.approx({"euler": 1.0, "plms": 1.0}, rel=1e-4)
    for name in ("certificate-orders.png", "certificate-tv.png"):
        with Image.open(out / name) as picture:
            assert picture.width > 400
        assert (out / name).stat().st_size < 200_000


def test_a_failing_certificate_is_named_and_ends_with_one(run, tmp_path, monkeypatch):
    def wrong(case, steps):
        return Certificate(
            group="order",
            kind="euler",
            solver="euler",
            problem="p; l",
            sizes=(1.0, 2.0),
            errors=(1.0, 1.0),
            slope=0.0,
            expected=1.0,
            declared=1,
            failures=slope_failures(0.0, 1.0, 1),
        )

    monkeypatch.setattr(orders, "certify_order", wrong)
    code, text, _ = run("certify", "--quick", "--solver", "euler", "--out", tmp_path / "c")
    assert code == 1
    assert "0 of 1 certificates hold" in text
    failed = certifying.certify(out=None, quick=True, solvers=["euler"])
    assert not failed.passed
    assert "slope 0.000, expected 1.00" in markdown(failed)


def test_an_unknown_kind_is_refused_with_those_there_are(run, tmp_path):
    code, _, err = run("certify", "--solver", "amed", "--out", tmp_path / "c")
    assert code == 2
    assert "--solver amed is not certified" in err
    assert "unipc" in err
    assert not (tmp_path / "c").exists()


def test_points_that_five_steps_do_not_share_are_refused(run, tmp_path):
    code, _, err = run("trajectory", tmp_path, "--points", 40, "--out", tmp_path / "t")
    assert code == 2
    assert "nearest that works: 41" in err
