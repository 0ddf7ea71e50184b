"""`fleetstep compare`: from the tracker alone to a table, pictures and one page."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.table import Table

from fleetstep.errors import ComparisonError
from fleetstep.orchestration.history import History, records
from fleetstep.orchestration.sweep_job import tracking_uri
from fleetstep.reporting.answer import headline
from fleetstep.reporting.comparison import Comparison, compare
from fleetstep.reporting.grids import side_by_side
from fleetstep.reporting.page import write_page
from fleetstep.reporting.plots import write_plots
from fleetstep.reporting.tables import comparison_table, config_table, metrics_table, sweep_table


@dataclass(frozen=True)
class ComparisonFiles:
    """A comparison and what was written of it."""

    comparison: Comparison
    page: Path
    plots: tuple[Path, ...]
    uri: str

    @property
    def tables(self) -> list[Table]:
        """The tables for a terminal: the answer, the headline sweep, all metrics, and how the
        configurations differ.
        """
        comparison = self.comparison
        tables = [comparison_table(comparison)]
        if comparison.sweep is not None:
            tables.append(sweep_table(comparison.sweep))
        tables += [metrics_table(g) for g in comparison.by_samples if g != (comparison.sweep,)]
        return [*tables, config_table(comparison)] if comparison.config else tables

    def as_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return {
            "answer": headline(self.comparison),
            "baseline": self.comparison.baseline,
            "page": str(self.page),
            "plots": [str(path) for path in self.plots],
        }


def compare_runs(
    names: Sequence[str],
    *,
    baseline: str | None,
    out: Path,
    storage: Path,
    experiment: str,
    uri: str | None = None,
) -> ComparisonFiles:
    """Compare runs of an experiment and write page and pictures into `out`.

    Args:
        names: run names or ids; none takes every training run of the experiment.
        baseline: the run that the others are compared with; the first one if None.
        out: folder for the page and the pictures; made if missing.
        storage: folder of the runs, for the default tracker's address.
        experiment: the tracker's experiment.
        uri: the tracker's address; may hold `${env:NAME}`.

    Raises:
        ComparisonError: there are no runs to compare.
        TrackingError: the tracker or a run cannot be found.
    """
    address = tracking_uri(uri, storage.expanduser())
    found = records(History(address, experiment), names)
    if not found:
        raise ComparisonError(
            f"experiment {experiment!r} holds no training runs",
            "train one first: fleetstep train ...",
        )
    result = compare(found, baseline or found[0].run_id)
    out.mkdir(parents=True, exist_ok=True)
    page = out / "index.html"
    write_page(result, page)
    return ComparisonFiles(
        result, page, (*write_plots(result, out), *_samples(result, out)), address
    )


def _samples(comparison: Comparison, out: Path) -> list[Path]:
    """The last grids of all runs side by side, if every run has one of the same size."""
    grids = [(run.name, _pixels(run.grids[-1].png)) for run in comparison.runs if run.grids]
    if len(grids) < len(comparison.runs) or len({pixels.shape for _, pixels in grids}) != 1:
        return []
    path = out / "samples.png"
    side_by_side(grids, path, columns=1)
    return [path]


def _pixels(png: bytes) -> npt.NDArray[np.uint8]:
    """A picture as one image, uint8 [1, 3, H, W]."""
    with Image.open(io.BytesIO(png)) as picture:
        return np.asarray(picture.convert("RGB")).transpose(2, 0, 1)[None]
