"""`fleetstep compare`: from the tracker alone to a table, pictures and one page."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.table import Table

from fleetstep.errors import ComparisonError
from fleetstep.orchestration.history import History
from fleetstep.orchestration.sweep_job import tracking_uri
from fleetstep.orchestration.tracked_searches import named
from fleetstep.reporting import arm_terminal, search_tables
from fleetstep.reporting.answer import headline
from fleetstep.reporting.comparison import Comparison, compare
from fleetstep.reporting.exports import write_exports
from fleetstep.reporting.grids import side_by_side
from fleetstep.reporting.page import write_page
from fleetstep.reporting.parallel import parallel_plot
from fleetstep.reporting.parallel_picture import write_parallel
from fleetstep.reporting.plots import write_plot, write_plots
from fleetstep.reporting.search_page import SearchReport, write_search_page
from fleetstep.reporting.search_words import search_headline
from fleetstep.reporting.tables import comparison_table, config_table, metrics_table, sweep_table


@dataclass(frozen=True)
class ComparisonFiles:
    """A comparison and what was written of it.

    Args:
        comparison: of the runs; None where only searches were named.
        searches: the searches, each with what mattered in it.
        exports: comparison.json and comparison.csv.
    """

    comparison: Comparison | None
    searches: tuple[SearchReport, ...]
    page: Path
    plots: tuple[Path, ...]
    exports: tuple[Path, ...]
    uri: str

    @property
    def tables(self) -> list[Table]:
        """The tables for a terminal: the answer over seeds and by run, speed-ups, the headline
        sweep, all metrics, how the configurations differ; then each search.
        """
        tables = [] if self.comparison is None else _tables(self.comparison)
        for report in self.searches:
            tables.append(search_tables.trials_table(report.record))
            tables.append(search_tables.importance_table(report.importance))
        return tables

    def as_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        runs = [] if self.comparison is None else [headline(self.comparison)]
        searches = [search_headline(report.record) for report in self.searches]
        return {
            "answer": ". ".join([*runs, *searches]),
            "baseline": None if self.comparison is None else self.comparison.baseline,
            "page": str(self.page),
            "plots": [str(path) for path in self.plots],
            "exports": [str(path) for path in self.exports],
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
    """Compare runs of an experiment and write page, pictures and data into `out`.

    Args:
        names: names or ids of runs, trials and searches, told apart by what the tracker says they
            are; none takes every training run of the experiment, but no trials.
        baseline: the run, or the setting with several seeds, that the others are compared with;
            the first run if None.
        out: folder for the page, the pictures and the data; made if missing.
        storage: folder of the runs, for the default tracker's address.
        experiment: the tracker's experiment.
        uri: the tracker's address; may hold `${env:NAME}`.

    Raises:
        ComparisonError: there are no runs to compare, or a search keeps no record.
        TrackingError: the tracker or a run cannot be found.
    """
    address = tracking_uri(uri, storage.expanduser())
    found = named(History(address, experiment), names)
    if not found.runs and not found.searches:
        raise ComparisonError(
            f"experiment {experiment!r} holds no training runs",
            "train one first: fleetstep train ...",
        )
    if baseline is not None and not found.runs:
        raise ComparisonError(
            f"the baseline {baseline!r} is compared with runs, but only searches were named",
            "name runs too, or leave the baseline out",
        )
    result = compare(found.runs, baseline or found.runs[0].run_id) if found.runs else None
    searches = tuple(SearchReport.of(record) for record in found.searches)
    out.mkdir(parents=True, exist_ok=True)
    page = out / "index.html"
    if result is None:
        write_search_page(searches, page)
    else:
        write_page(result, page, searches)
    plots = [*_search_plots(searches, out)]
    if result is not None:
        plots = [*write_plots(result, out), *_samples(result, out), *plots]
    exports = write_exports(result, [(one.record, one.importance) for one in searches], out)
    return ComparisonFiles(result, searches, page, tuple(plots), exports, address)


def _tables(comparison: Comparison) -> list[Table]:
    arms = comparison.arms
    tables = [arm_terminal.arms_table(comparison)] if arms.over_seeds else []
    tables.append(comparison_table(comparison))
    tables += [arm_terminal.speedups_table(comparison, key) for key in arms.curves]
    if comparison.sweep is not None:
        tables.append(sweep_table(comparison.sweep))
    tables += [metrics_table(g) for g in comparison.by_samples if g != (comparison.sweep,)]
    return [*tables, config_table(comparison)] if comparison.config else tables


def _search_plots(searches: Sequence[SearchReport], out: Path) -> Iterator[Path]:
    """Each figure of each search, under the search's place in the order they were named."""
    for place, report in enumerate(searches, start=1):
        for figure in report.figures:
            path = out / f"search{place}-{figure.key}.png"
            write_plot(figure, path)
            yield path
        if (plot := parallel_plot(report.record)) is not None:
            path = out / f"search{place}-parallel.png"
            write_parallel(plot, path)
            yield path


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
