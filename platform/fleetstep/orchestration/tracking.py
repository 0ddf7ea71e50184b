"""The driver's side of the tracker: it makes runs, says how they ended, and keeps their files.

Experiment > run > trial > sweep cell. The driver makes the database and the run before any worker
starts and alone sets the status. Metrics of training come from the worker (`metric_logger`).
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from fleetstep.addresses import redacted
from fleetstep.errors import TrackingError, UnknownRunError
from fleetstep.orchestration import tracking_store
from fleetstep.orchestration.run_notes import EXPERIMENT_TAGS, NOTE, source_tags, with_sentence
from fleetstep.orchestration.termination import sigterm_as_exit
from fleetstep.orchestration.tracking_store import to_tracker_key

_log = logging.getLogger(__name__)

Status = Literal["FINISHED", "FAILED", "KILLED"]
RESUME_TAG = "fleetstep.resume"
_LONGEST_PARAM = 6000
_LONGEST_TAG = 8000
_DIGEST = 12
_PARAMS_PER_BATCH = 100


class Tracker:
    """One experiment of the tracker, open for writing.

    Args:
        uri: MLflow tracking URI, secrets resolved; a missing SQLite database is made.
        experiment: its name; made if missing.
        artifacts: folder or URI for files of a new experiment. By default a folder `artifacts`
            beside an SQLite database, otherwise what the server decides.

    Raises:
        TrackingError: the address is not one, or does not answer, or the experiment was deleted.
    """

    def __init__(self, uri: str, experiment: str, artifacts: str | None = None) -> None:
        self.uri = tracking_store.checked_uri(uri)
        self._client = tracking_store.create(self.uri)
        self.experiment = experiment
        path = tracking_store.sqlite_path(self.uri)
        if artifacts is None and path is not None:
            artifacts = str(path.with_name("artifacts"))
        if artifacts is not None and "://" not in artifacts:
            artifacts = Path(artifacts).resolve().as_uri()
        with self._errors(f"open experiment {experiment!r}"):
            self.experiment_id = self._open(experiment, artifacts)

    def start_run(
        self,
        name: str,
        params: Mapping[str, str],
        *,
        tags: Mapping[str, str] | None = None,
        parent_run_id: str | None = None,
        run_id: str | None = None,
    ) -> str:
        """Make a run, or go on with one that exists; its id. Its status is RUNNING.

        Args:
            name: as people call it.
            params: flat parameters. Of a continued run the new ones are added; MLflow refuses to
                change a parameter, so what differs is kept in a tag `fleetstep.resume.N`.
            tags: further facts; of a continued run they replace older ones.
            parent_run_id: the run that this one is nested under.
            run_id: the run to go on with.

        Raises:
            UnknownRunError: `run_id` is unknown or was deleted.
            TrackingError: the tracker does not answer, or refuses the parameters; the run that was
                made is then FAILED.
        """
        params = {to_tracker_key(key): _cut(text, _LONGEST_PARAM) for key, text in params.items()}
        tags = dict(tags or {})
        if parent_run_id is not None:
            tags["mlflow.parentRunId"] = parent_run_id
        with self._errors(f"start run {name!r}"):
            if run_id is None:
                tags |= source_tags()
                run_id = str(
                    self._client.create_run(
                        self.experiment_id, run_name=name, tags=_cut_tags(tags)
                    ).info.run_id
                )
            else:
                run = self._existing(run_id)
                tags |= _resume_tag(run.data.params, run.data.tags, params)
                params = {k: v for k, v in params.items() if k not in run.data.params}
                self._client.update_run(run_id, status="RUNNING")
            with self._failed_on_error(run_id):
                # Of a new run they were set when it was made.
                self._set_tags(run_id, tags)
                self._log_params(run_id, params)
        return run_id

    def describe(self, run_id: str, sentence: str) -> None:
        """Say on the run's page what it is, in place of what was said by us before; what people
        wrote there stays.

        Args:
            run_id: the run.
            sentence: Markdown in one paragraph; see `with_sentence`.
        """
        with self._errors(f"describe run {run_id}"):
            note = self._existing(run_id).data.tags.get(NOTE, "")
            self._set_tags(run_id, {NOTE: with_sentence(note, sentence)})

    def finish(self, run_id: str, status: Status) -> None:
        """Record how the run ended."""
        with self._errors(f"record that run {run_id} is {status}"):
            self._client.set_terminated(run_id, status)

    @contextlib.contextmanager
    def ending(self, run_id: str) -> Iterator[None]:
        """Set the status right at the end of a block, whichever way it ends.

        FINISHED at its end, FAILED on an error, KILLED on Ctrl-C and SIGTERM (which becomes a
        SystemExit inside the block, so that clean-up code runs).

        Raises:
            TrackingError: the block ended well and the status could not be set. If it did not, its
                own exception is the one that matters and goes on.
        """
        try:
            with sigterm_as_exit():
                yield
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)
            try:
                self.finish(run_id, "KILLED" if stopped else "FAILED")
            except TrackingError as refusal:
                _log.error("%s", refusal)
            raise
        self.finish(run_id, "FINISHED")

    @contextlib.contextmanager
    def _failed_on_error(self, run_id: str) -> Iterator[None]:
        """A run whose start fails has no owner yet: nobody else would ever end it."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(TrackingError):
                self.finish(run_id, "FAILED")
            raise

    def log_metrics(self, run_id: str, images_seen: int, metrics: Mapping[str, float]) -> None:
        """Record values of the driver's own, such as scores; repeated points are dropped, and late
        ones, below a curve's last, are not. Another value at a step replaces the one before as
        the curve's: the tracker keeps both, and the last one counts.

        For single values: it asks the tracker what it has. Training logs through `MetricLogger`.
        """
        from mlflow.entities import Metric

        keys = {to_tracker_key(key): float(value) for key, value in metrics.items()}
        now = time.time_ns() // 1_000_000
        with self._errors(f"take metrics of run {run_id}"):
            fresh = [
                Metric(key, value, now, images_seen)
                for key, value in keys.items()
                if self._logged(run_id, key).get(images_seen) != value
            ]
            if fresh:
                self._client.log_batch(run_id, fresh, synchronous=True)

    def log_artifact(self, run_id: str, path: Path, folder: str | None = None) -> None:
        """Keep a file with the run, under `folder`; an older one of that name is replaced."""
        with self._errors(f"keep {path.name} with run {run_id}"):
            self._client.log_artifact(run_id, str(path), folder)

    def log_dict(self, run_id: str, value: Any, file: str) -> None:
        """Keep JSON values with the run as `file`, for example "scores.json"."""
        text = json.dumps(value, indent=1, allow_nan=False)
        with self._errors(f"keep {file} with run {run_id}"):
            self._client.log_text(run_id, text, file)

    def log_dataset(self, run_id: str, name: str, fingerprint: str, source: str) -> None:
        """Record what the run reads: the dataset's name, content fingerprint and path.

        The digest is the fingerprint's first 12 characters, as messages have it; the whole one is
        in the tag `dataset.fingerprint`.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(name, fingerprint[:_DIGEST], "local", json.dumps({"uri": source}))
        tags = [InputTag("mlflow.data.context", "training")]
        with self._errors(f"record the dataset of run {run_id}"):
            self._client.log_inputs(run_id, datasets=[DatasetInput(dataset, tags)])
            self._set_tags(run_id, {"dataset.name": name, "dataset.fingerprint": fingerprint})

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Add facts to a run, or replace them."""
        with self._errors(f"tag run {run_id}"):
            self._set_tags(run_id, tags)

    def find_run(self, tags: Mapping[str, str]) -> str | None:
        """Id of the run that has all these tags, None if there is none.

        Raises:
            TrackingError: several have; their ids are listed.
        """
        with self._errors("search runs"):
            found = self._client.search_runs([self.experiment_id], _filter(tags), max_results=10)
        if len(found) > 1:
            wanted = ", ".join(f"{key}={value}" for key, value in tags.items())
            ids = ", ".join(run.info.run_id for run in found)
            raise TrackingError(
                f"one run of experiment {self.experiment!r} must have {wanted}, "
                f"but these have: {ids}",
                "delete all but one in the MLflow UI",
            )
        return str(found[0].info.run_id) if found else None

    def has_run(self, run_id: str) -> bool:
        """Whether this experiment holds the run, and it is not deleted."""
        with self._errors(f"look up run {run_id}"):
            try:
                run = self._existing(run_id)
            except UnknownRunError:
                return False
        return bool(run.info.experiment_id == self.experiment_id)

    def _errors(self, doing: str) -> contextlib.AbstractContextManager[None]:
        return tracking_store.tracker_errors(self.uri, doing)

    def _open(self, name: str, artifacts: str | None) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                made = self._client.create_experiment(
                    name, artifact_location=artifacts, tags=EXPERIMENT_TAGS
                )
                return str(made)
            except MlflowException as error:
                # Another driver was faster.
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = self._client.get_experiment_by_name(name)
        if found.lifecycle_stage != "active":
            raise TrackingError(
                f"experiment {name!r} was deleted",
                "choose another `tracking.experiment`, or bring it back with `mlflow experiments "
                f"restore --experiment-id {found.experiment_id}`",
            )
        return str(found.experiment_id)

    def _existing(self, run_id: str) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            run = None
        if run is None or run.info.lifecycle_stage != "active":
            raise UnknownRunError(
                f"run {run_id} cannot go on: the tracker at {redacted(self.uri)} "
                f"{'does not know it' if run is None else 'holds it as deleted'}",
                "name the tracker that it was started with, or restore it in the MLflow UI",
            )
        return run

    def _logged(self, run_id: str, key: str) -> dict[int, float]:
        """The last value at each step."""
        points = self._client.get_metric_history(run_id, key)
        return {point.step: point.value for point in sorted(points, key=lambda p: p.timestamp)}

    def _log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        entries = [Param(key, text) for key, text in params.items()]
        for first in range(0, len(entries), _PARAMS_PER_BATCH):
            part = entries[first : first + _PARAMS_PER_BATCH]
            self._client.log_batch(run_id, params=part, synchronous=True)

    def _set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        entries = [RunTag(key, text) for key, text in _cut_tags(tags).items()]
        self._client.log_batch(run_id, tags=entries, synchronous=True)


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _cut_tags(tags: Mapping[str, str]) -> dict[str, str]:
    return {key: _cut(text, _LONGEST_TAG) for key, text in tags.items()}


def _resume_tag(
    old: Mapping[str, str], tags: Mapping[str, str], params: Mapping[str, str]
) -> dict[str, str]:
    """What a resume changed: {"time": ..., "changed": {key: [before, now]}} under the next number.

    "Before" is the value of the last resume that changed it, else the parameter itself.
    """
    count = 0
    before = dict(old)
    while (text := tags.get(f"{RESUME_TAG}.{count + 1}")) is not None:
        count += 1
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            before |= {key: now for key, (_, now) in json.loads(text)["changed"].items()}
    changed = {
        key: [before[key], text]
        for key, text in params.items()
        if key in before and before[key] != text
    }
    event = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "changed": changed}
    return {f"{RESUME_TAG}.{count + 1}": json.dumps(event)}


def _filter(tags: Mapping[str, str]) -> str:
    for text in (*tags, *tags.values()):
        if "'" in text or "`" in text:
            raise TrackingError(
                f"a tag that is searched for must not hold ' or `, got {text!r}", "rename it"
            )
    return " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
