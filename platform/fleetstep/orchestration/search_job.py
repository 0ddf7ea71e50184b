"""`fleetstep tune`: a search by Ray Tune, from the driver's side.

Everything is checked before anything starts. What happened is on disk before anyone acts on it
(`search_records`), and a search that goes on is a new one of Ray's, told those results first:
trials that ended are not repeated, and those that did not go on from their own checkpoints.
"""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from rich.table import Table

from fleetstep import config
from fleetstep.config import Experiment, SearchSpec, rungs
from fleetstep.durable import write_json, write_text
from fleetstep.errors import ResumeError, UsageError
from fleetstep.orchestration.evaluator_setup import check_evaluation, check_pool
from fleetstep.orchestration.fit_worker import facts_of
from fleetstep.orchestration.search_confirm import baseline_text, compared, sides
from fleetstep.orchestration.search_preview import (
    SearchPreview,
    experiments_of,
    fitting,
    preview_search,
)
from fleetstep.orchestration.search_records import (
    Goal,
    Ledger,
    SearchFolder,
)
from fleetstep.orchestration.search_result import SearchResult, standing_table
from fleetstep.orchestration.search_run import SearchRun
from fleetstep.orchestration.search_setup import experiment_of, goals_of
from fleetstep.orchestration.search_tracking import SearchTracker
from fleetstep.orchestration.search_watch import SearchWatch, Standing
from fleetstep.orchestration.session import alive_nodes, connect
from fleetstep.orchestration.sweep_job import tracking_uri
from fleetstep.orchestration.tracking import Status
from fleetstep.orchestration.trainer import Say, tell
from fleetstep.training.resume import Resume

Show = Callable[[Table], None]
_HOPELESS = 3


def search_folder(search: SearchSpec) -> SearchFolder:
    """Where a search is kept, absolute."""
    return SearchFolder(Path(search.storage).absolute() / "searches" / search.name)


def preview(search: SearchSpec) -> SearchPreview:
    """What a search would do; nothing is started or written."""
    folder = search_folder(search)
    return preview_search(search, folder, experiments_of(search, folder), rungs(search))


def run_search(
    search: SearchSpec,
    *,
    resume: Resume = "auto",
    say: Say | None = None,
    show: Show | None = None,
) -> SearchResult:
    """Search to the end, and hold the winner against the baseline if that is asked for.

    Args:
        search: checked.
        resume: "auto" goes on if the search was begun, "must" never begins one, "never" wants an
            empty folder.
        say: where lines go; None keeps quiet.
        show: where the table of all trials goes, now and then.

    Raises:
        ResumeError: the policy cannot be kept, or the folder holds another search.
        ResourceError: a trial could never be placed.
        TrainingError: the first trials all failed.
        KeyboardInterrupt, SystemExit: stopped by Ctrl-C or SIGTERM; it can be resumed.
    """
    folder = search_folder(search)
    check_folder(search, folder, resume)
    experiments = experiments_of(search, folder)
    check_measures(experiments)
    with connect(search.cluster.address, dashboard=True), only_driver(folder):
        for pool in {one.evaluate.pool for one in experiments if one.evaluate is not None}:
            check_pool(pool)
        result, tracker = _searched(search, folder, experiments, say, show)
        winner = result.winner
        if search.confirm is None or winner is None:
            return result
        tell(say, result.text())
        ends = {
            side: run_search(one, say=say, show=show)
            for side, one in sides(search, winner.assignment).items()
        }
    confirmation = compared(
        result.goals[0],
        ends["winner"].standing.records,
        ends["baseline"].standing.records,
        trial=winner.trial,
        against=baseline_text(search),
    )
    write_json(folder.root / "confirmation.json", confirmation.as_dict())
    result = replace(result, confirmation=confirmation)
    tracker.keep(result.as_dict())
    return result


def _searched(
    search: SearchSpec,
    folder: SearchFolder,
    experiments: Sequence[Experiment],
    say: Say | None,
    show: Show | None,
) -> tuple[SearchResult, SearchTracker]:
    """The search itself, on the cluster that is connected, and who tells the tracker of it."""
    began, goals = time.monotonic(), goals_of(search)
    at_a_time = fitting(search, experiments, alive_nodes())
    seen = preview_search(search, folder, experiments, rungs(search), at_a_time)
    tell(say, seen.text())
    folder.stop.unlink(missing_ok=True)
    write_text(folder.resolved, config.dump(search))
    ledger = Ledger(folder.results)
    tracker = _tracker_of(search, folder, ledger, say)
    watch = SearchWatch(
        ledger,
        folder,
        goals,
        trials=seen.trials,
        budget=seen.budget,
        scheduler=search.scheduler.kind,
        hopeless=max(_HOPELESS, at_a_time),
        show=_shower(show, goals, search),
    )

    def result() -> SearchResult:
        return SearchResult(
            folder=folder.root,
            goals=goals,
            standing=watch.standing(),
            title=search.space.title,
            seconds=time.monotonic() - began,
        )

    status: Status = "FAILED"
    try:
        with tracker:
            SearchRun(search, folder, ledger, goals, at_a_time).run(watch, say)
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    finally:
        watch.look(status.lower())
        tracker.close(status, result().as_dict())
    return result(), tracker


@contextlib.contextmanager
def only_driver(folder: SearchFolder) -> Iterator[None]:
    """One process at a time runs a search; one that is killed stands in nobody's way.

    Raises:
        UsageError: another does.
    """
    folder.root.mkdir(parents=True, exist_ok=True)
    with (folder.root / "driver.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                f"another process runs the search in {folder.root}",
                "wait for it or stop it, or choose another name",
            ) from error
        yield


def check_measures(experiments: Sequence[Experiment]) -> None:
    """Find all that scores need, hours before the first.

    Raises:
        ExtractorError, DataError, UsageError: as `check_evaluation`.
    """
    checked = set()
    for experiment in experiments:
        evaluate = experiment.evaluate
        if evaluate is not None and (key := evaluate.model_dump_json()) not in checked:
            checked.add(key)
            check_evaluation(evaluate, config.manifest_of(experiment))


def check_folder(search: SearchSpec, folder: SearchFolder, resume: Resume) -> None:
    """Refuse to mix two searches.

    Raises:
        ResumeError: the policy cannot be kept, or another search has this name.
        UsageError: the kind of trial cannot be searched yet.
    """
    if search.trial.kind != "train":
        raise UsageError(f"trial.kind: {search.trial.kind} cannot be searched yet", "use train")
    there = folder.resolved.is_file()
    if resume == "never" and there:
        raise ResumeError(
            f"resume is never, but {folder.root} holds a search",
            "choose another name, or resume with auto",
        )
    if resume == "must" and not there:
        raise ResumeError(
            f"resume is must, but {folder.root} holds no search",
            "check the search's name and storage, or start it with resume auto",
        )
    if there:
        before = config.load(SearchSpec, folder.resolved)
        if changed := _changed(before, search):
            raise ResumeError(
                f"{folder.root} holds a search with other settings: {', '.join(changed)}",
                "restore them, or choose another name",
            )


def _changed(before: SearchSpec, now: SearchSpec) -> list[str]:
    """Sections that decide which trials there are and what they do, and differ."""
    decided = ("trial", "space", "searcher", "scheduler", "objectives")
    theirs, ours = before.model_dump(mode="json"), now.model_dump(mode="json")
    return [name for name in decided if theirs[name] != ours[name]]


def _shower(
    show: Show | None, goals: Sequence[Goal], search: SearchSpec
) -> Callable[[Standing], None] | None:
    if show is None:
        return None
    return lambda standing: show(standing_table(standing, goals, search.space.title))


def _tracker_of(
    search: SearchSpec, folder: SearchFolder, ledger: Ledger, say: Say | None
) -> SearchTracker:
    def identity_of(experiment: Experiment) -> str:
        return facts_of(experiment, config.manifest_of(experiment)).identity

    flat = config.flatten(search)
    return SearchTracker(
        uri=tracking_uri(search.tracking.uri, Path(search.storage)),
        experiment=search.tracking.experiment,
        folder=folder,
        ledger=ledger,
        params={
            key: text
            for key, text in flat.items()
            if key.split(".")[0] in ("searcher", "scheduler", "objectives", "concurrent")
        },
        title=search.space.title,
        experiment_of=lambda trial, life: experiment_of(search, folder, trial, life),
        identity_of=identity_of,
        population=search.scheduler.kind == "pbt",
        dimensions=search.space.dimensions,
        say=say,
    )
