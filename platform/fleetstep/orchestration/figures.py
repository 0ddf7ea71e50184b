"""A run's own figures: drawn from the tracker, kept in the run's folder and with the run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fleetstep.errors import ComparisonError, TrackingError
from fleetstep.orchestration.history import FIGURES, History, records
from fleetstep.orchestration.tracking import Tracker
from fleetstep.reporting.comparison import compare
from fleetstep.reporting.plots import write_plots


def keep_figures(
    tracker: Tracker, run_id: str, folder: Path, say: Callable[[str], None] | None
) -> None:
    """Draw what the tracker holds of a run into `folder` and keep it with the run.

    Best effort: what was trained and measured is worth more than its pictures, and `compare`
    draws them again.
    """
    try:
        found = records(History(tracker.uri, tracker.experiment), [run_id])
        folder.mkdir(parents=True, exist_ok=True)
        for path in write_plots(compare(found, run_id), folder):
            tracker.log_artifact(run_id, path, FIGURES)
    except (TrackingError, ComparisonError, OSError) as error:
        if say is not None:
            say(f"  the figures of run {run_id} were not kept: {error}")
