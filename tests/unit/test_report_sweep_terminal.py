"""A sweep in the terminal."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from fleetstep.reporting.sweep_record import SweepRecord
from fleetstep.reporting.sweep_terminal import answer, cells_table
from synthetic_sweep import cell, demo_sweep, record, sweep


def read(*cells: dict[str, Any], **parts: Any) -> SweepRecord:
    return SweepRecord.from_dict(sweep(*cells, **parts))


def printed(found: SweepRecord, width: int = 120) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(cells_table(found))
    return console.export_text()


def test_every_cell_fits_in_120_columns():
    found = SweepRecord.from_dict(demo_sweep())
    text = printed(found)

    assert max(map(len, text.splitlines())) <= 120
    rows = [line for line in text.splitlines() if " ± " in line]
    assert len(rows) == len(found.entries) == 70
    assert "…" not in text
    for network in found.networks:
        assert [line.strip() for line in text.splitlines()].count(network) == 1
    for name in ("solver", "NFE", "FD (fs-rn20)", "KID", "precision", "recall"):
        assert name in text


def test_cells_that_are_not_ranked_say_how_many_images_they_had():
    early = record(solver="rk45", blocks=[0.1, 0.11, 0.09], n=300)
    text = printed(read(cell("1", record()), cell("2", record(nfe=5)), cell("3", early)))

    assert text.count("(n = 300)") == 1
    assert "n = 300 to 1,000" in text


def test_a_sweep_without_scores_says_so():
    assert "no cell has enough images" in printed(read(complete=False))
    assert answer(read(complete=False)) == ()


def test_names_are_text():
    text = printed(read(cell("1", record(solver="[bold]x[/bold]"))))

    assert "[bold]x[/bold]" in text


def test_the_answer_names_the_reference_where_there_are_several():
    two = record("b", reference="cifar/train", reference_sha256="00" * 32)

    first, second = answer(read(cell("1", record("a")), cell("2", two)))

    assert first.startswith("Against digits/train: Ship heun")
    assert second.startswith("Against cifar/train: Ship heun")
