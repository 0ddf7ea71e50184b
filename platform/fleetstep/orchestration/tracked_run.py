"""The tracker's run of a training job: the one its folder had before or a new one, and what the
workers left for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fleetstep.errors import ResumeError, TrackingError, UnknownRunError
from fleetstep.orchestration.metric_logger import drain
from fleetstep.orchestration.run_folder import RunCard, RunFolder
from fleetstep.orchestration.tracking import Tracker
from fleetstep.orchestration.trainer import Say, tell
from fleetstep.training.checkpoint_format import RunFacts


def check_metrics(folder: RunFolder, facts: RunFacts) -> None:
    """Refuse to add to another experiment's metrics: below its last point they would be dropped
    as repeated, beyond it they would go on as one curve.

    Raises:
        ResumeError: the spool holds another experiment's.
    """
    if not folder.spool.is_file() or folder.spool.stat().st_size == 0:
        return
    card = RunCard.read(folder.card)
    if card is None or card.identity != facts.identity:
        theirs = "unknown" if card is None else card.identity
        raise ResumeError(
            f"the run starts from nothing, but {folder.spool} holds metrics of another experiment "
            f"(identity fingerprint): {theirs}, this run has {facts.identity}",
            "choose another run name, or remove the run's folder",
        )


def start_run(
    tracker: Tracker,
    name: str,
    params: Mapping[str, str],
    *,
    kind: str,
    folder: RunFolder,
    facts: RunFacts,
) -> str:
    """The tracker's run: the one this folder had, or a new one."""
    card = RunCard.read(folder.card)
    known = card.run_id if card is not None and card.experiment == tracker.experiment else None
    start: dict[str, Any] = {
        "tags": {
            "fleetstep.kind": kind,
            "fleetstep.identity": facts.identity,
            "fleetstep.folder": str(folder.root),
        }
    }
    try:
        run_id = tracker.start_run(name, params, run_id=known, **start)
    except UnknownRunError:
        # Another database than last time: the folder is the truth, so the run is made anew there.
        run_id = tracker.start_run(name, params, **start)
    RunCard(run_id, tracker.experiment, facts.identity).write(folder.card)
    return run_id


def collect(tracker: Tracker, run_id: str, folder: RunFolder, say: Say | None) -> None:
    """Whatever the workers left: metrics in the spool, grids on disk. A tracker that is down
    loses nothing of it.
    """
    try:
        drain(tracker.uri, run_id, folder.spool)
        for grid in sorted(folder.grids.glob("*.png")):
            tracker.log_artifact(run_id, grid, "grids")
    except TrackingError as error:
        tell(say, f"  the tracker did not take everything, it stays in {folder.root}: {error}")
