"""Ray Tune's events as the driver's: results, and an end on Ctrl-C that loses nothing."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from ray import tune

from fleetstep.orchestration.search_records import Life
from fleetstep.orchestration.search_schedule import TrialJob
from fleetstep.orchestration.search_trial import GRACE_S
from fleetstep.orchestration.search_watch import SearchWatch
from fleetstep.orchestration.trainer import Say, tell


class SearchCallback(tune.Callback):  # type: ignore[misc]
    """Told by Ray Tune in the driver's own thread.

    On Ctrl-C or SIGTERM every trial is asked to save and leave, and Ray's loop ends when all have,
    or their time is up; the second time it ends at once.

    Args:
        watch: what remembers.
        say: where progress lines go.
        tidy: called all the time with the lives that Ray has in mind for unfinished trials.

    Attributes:
        signal: the number of the signal that ended the search; None if none did.
    """

    def __init__(
        self, watch: SearchWatch, say: Say | None, tidy: Callable[[Mapping[str, Life]], None]
    ) -> None:
        self._watch, self._say, self._tidy = watch, say, tidy
        self.signal: int | None = None
        self._deadline = 0.0
        self._before: dict[int, Any] = {}

    def setup(self, **info: Any) -> None:
        """Take the signals from Ray, which would end the actors five seconds later."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._take_signal)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """See `SearchWatch.started`."""
        self._watch.started(TrialJob.of(trial.config))

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Any],
        trial: Any,
        result: Mapping[str, Any],
        **info: Any,
    ) -> None:
        """See `SearchWatch.heard`."""
        self._watch.heard(TrialJob.of(trial.config), result)

    def on_trial_complete(
        self, iteration: int, trials: list[Any], trial: Any, **info: Any
    ) -> None:
        """See `SearchWatch.ended`."""
        self._watch.ended(TrialJob.of(trial.config), trial.last_result)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """See `SearchWatch.lost`."""
        error = trial.get_error()
        self._watch.lost(TrialJob.of(trial.config), _last_line(error))

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Ray looked at everything once."""
        for trial in trials:
            if trial.status == "PAUSED":
                self._watch.paused(TrialJob.of(trial.config))
        self._watch.look()
        # Here, because Ray takes an error raised where a trial ends for the trial's own.
        self._watch.check_hope()
        jobs = [TrialJob.of(trial.config) for trial in trials if not trial.is_finished()]
        self._tidy({job.trial: job.life for job in jobs})
        if all(trial.is_finished() for trial in trials):
            self._watch.wait_for_leaving()
        over = self._watch.idle() or time.monotonic() > self._deadline
        if self.signal is not None and over and signal.SIGINT in self._before:
            # Ray's own handler: its loop ends, and its actors with it.
            self._before.pop(signal.SIGINT)(signal.SIGINT, None)

    def _take_signal(self, number: int, frame: object) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
        self._deadline = time.monotonic() + GRACE_S
        self._watch.folder.stop.touch()
        tell(
            self._say,
            "stopping: the trials save a checkpoint first; press Ctrl-C again to give up on that",
        )


def _last_line(error: object) -> str:
    lines = str(error or "its process died").strip().splitlines()
    return lines[-1][:500]
