"""`fleetstep export mlflow`: a run's snapshot becomes a logged model of the tracker and, on
request, a version of a registered one.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from fleetstep import __version__
from fleetstep.config import Experiment, load
from fleetstep.errors import CheckpointError, TrackingError, UsageError
from fleetstep.orchestration import model_flavor, tracking_store
from fleetstep.orchestration.cells import SnapshotRef
from fleetstep.orchestration.history import History, records
from fleetstep.orchestration.run_folder import RunCard, RunFolder
from fleetstep.orchestration.snapshots import find_snapshots
from fleetstep.orchestration.sweep_job import tracking_uri
from fleetstep.orchestration.tracking import Tracker
from fleetstep.reporting.records import Score
from fleetstep.training.snapshot import FACTS, REPORTED, damages_of

_DIGEST = "fleetstep.checkpoint"
_VERSIONS = "mlflow.modelVersions"
_USUAL_KIND = "fd"


@dataclass(frozen=True, kw_only=True)
class LoggedSnapshot:
    """A snapshot in the tracker.

    Attributes:
        model_id: of the logged model.
        uri: what `mlflow.pyfunc.load_model` takes.
        registered: name of the registered model; None if it was not asked for.
        version: of it.
        score: what the version's tags say; None if nothing was measured.
    """

    model_id: str
    uri: str
    registered: str | None = None
    version: str | None = None
    score: Score | None = None

    def text(self) -> str:
        """One line, for the terminal."""
        scored = f", {self.score.metric} {self.score.value:.4g}" if self.score is not None else ""
        known = f" (version {self.version} of {self.registered}{scored})" if self.version else ""
        return f"logged as {self.uri}{known}"

    def as_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return asdict(self) | {"score": None if self.score is None else _tags_of(self.score)}


def export_to_mlflow(
    source: Path, *, register: str | None = None, metric: str | None = None, ema: str = "ema"
) -> LoggedSnapshot:
    """Log a run's snapshot as a model, in the tracker that the run is in.

    Args:
        source: a run folder (its last snapshot) or a snapshot folder of a run.
        register: name of the registered model to add a version to; it is made if missing.
        metric: whose best value over solvers and network calls is the version's score, see
            `best_score`.
        ema: the EMA track that was scored.

    Raises:
        UsageError: as `best_score`.
        CheckpointError: there is no snapshot, it is damaged, or no run of a tracker has it.
        TrackingError: the tracker does not answer.
    """
    (snapshot,) = find_snapshots([str(source)], which="last", track=ema)
    folder = RunFolder(snapshot.path.parents[1])
    card = RunCard.read(folder.card)
    if snapshot.kind == "exact" or card is None or not folder.config.is_file():
        raise CheckpointError(
            f"a model is logged under the run that trained it, and {source} is of none",
            "name the folder of a training run, or a snapshot in it",
        )
    experiment = load(Experiment, folder.config, data_required=False)
    uri = tracking_uri(experiment.tracking.uri, folder.root.parent)
    history = History(uri, card.experiment)
    measured = [
        score
        for run in records(history, [card.run_id])
        for score in run.scores
        if score.checkpoint == snapshot.digest and score.ema == ema
    ]
    return log_snapshot_model(
        Tracker(uri, card.experiment),
        card.run_id,
        snapshot,
        track=ema,
        name=folder.root.name,
        register_as=register,
        score=best_score(measured, metric),
    )


def best_score(scores: Sequence[Score], metric: str | None) -> Score | None:
    """The best of one metric's scores; None if nothing was measured.

    Args:
        scores: of one snapshot.
        metric: its full name or, where one metric is of that kind, its kind; None is "fd", or the
            only one there is.

    Raises:
        UsageError: that was not measured, or it could be one of several metrics.
    """
    kinds = {score.metric: score.kind for score in scores}
    if metric is None and len(kinds) > 1:
        metric = _USUAL_KIND
    chosen = {name for name, kind in kinds.items() if metric in (None, name, kind)}
    if len(chosen) != 1 and (kinds or metric is not None):
        raise UsageError(
            f"a version has one score, and {metric!r} names {len(chosen)} of the metrics that "
            f"were measured of this snapshot: {', '.join(sorted(kinds)) or 'none'}",
            "name one of them by --metric" if kinds else "score it: fleetstep sweep --run ...",
        )
    wanted = [score for score in scores if score.metric in chosen]
    return min(wanted, key=lambda score: score.shortfall, default=None)


def log_snapshot_model(
    tracker: Tracker,
    run_id: str,
    snapshot: SnapshotRef,
    *,
    track: str = "ema",
    name: str,
    register_as: str | None = None,
    score: Score | None = None,
) -> LoggedSnapshot:
    """Log a snapshot as a model of a run; the same snapshot is logged once, whoever asks again.

    Args:
        tracker: of the run's experiment.
        run_id: the run that trained it.
        snapshot: a trained one, described under `track`.
        track: the EMA track that the model draws from unless it is asked for another.
        name: of the model, as people call it.
        register_as: the registered model to add a version to; it is made if missing.
        score: of this snapshot; its value and protocol become tags of model and version.

    Raises:
        CheckpointError: the snapshot is damaged, or too old to say what images it is for.
        TrackingError: the tracker does not take it.
    """
    _check(snapshot)
    doing = f"log {snapshot.path.name} of run {run_id} as a model"
    tags = _tags(snapshot, track) | ({} if score is None else _tags_of(score))
    client = tracking_store.connect(tracker.uri)
    with tracking_store.tracker_errors(tracker.uri, doing):
        model_id = _known_model(client, tracker.experiment_id, run_id, snapshot)
        if model_id is None:
            model_id = _log(client, tracker, run_id, snapshot, track, name, tags)
        else:
            client.set_logged_model_tags(model_id, tags)
        version = None
        if register_as is not None:
            version = _register(client, register_as, model_id, run_id, snapshot, tags)
    return LoggedSnapshot(
        model_id=model_id,
        uri=f"models:/{model_id}",
        registered=register_as,
        version=version,
        score=score,
    )


def _check(snapshot: SnapshotRef) -> None:
    damages = damages_of(snapshot.path)
    if damages:
        raise CheckpointError(f"{snapshot.path} is damaged: {damages[0]}", "log another snapshot")
    facts = json.loads((snapshot.path / FACTS).read_text(encoding="utf-8"))
    if facts.get("shape") is None:
        raise CheckpointError(
            f"{snapshot.path} does not say what images it is for: its dataset does, which a model "
            "does not take along",
            "train with this version, or log a newer snapshot",
        )


def _known_model(
    client: Any, experiment_id: str, run_id: str, snapshot: SnapshotRef
) -> str | None:
    found = client.search_logged_models(
        [experiment_id], filter_string=f"source_run_id = '{run_id}'"
    )
    for model in found:
        if model.status == "READY" and model.tags.get(_DIGEST) == snapshot.digest:
            return str(model.model_id)
    return None


def _log(
    client: Any,
    tracker: Tracker,
    run_id: str,
    snapshot: SnapshotRef,
    track: str,
    name: str,
    tags: dict[str, str],
) -> str:
    from mlflow.entities import LoggedModelOutput

    model = client.create_logged_model(
        tracker.experiment_id, name, run_id, tags, {}, model_type="diffusion"
    )
    try:
        with tempfile.TemporaryDirectory(prefix="fleetstep-") as folder:
            _save(Path(folder) / "model", snapshot, track, model.model_id, run_id)
            client.log_model_artifacts(model.model_id, str(Path(folder) / "model"))
    except BaseException:
        client.finalize_logged_model(model.model_id, "FAILED")
        raise
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, snapshot.images_seen)])
    return str(model.model_id)


def _save(path: Path, snapshot: SnapshotRef, track: str, model_id: str, run_id: str) -> None:
    """Write MLflow's model folder; what a signature and an environment say is all declared, so
    that nothing is inferred by running the model.
    """
    with warnings.catch_warnings():
        # MLflow's own annotations do not please its own check of annotations.
        warnings.simplefilter("ignore", UserWarning)
        import mlflow.pyfunc
    from mlflow.models import Model

    mlflow.pyfunc.save_model(
        path,
        loader_module=model_flavor.__name__,
        data_path=str(snapshot.path),
        mlflow_model=Model(model_id=model_id, run_id=run_id),
        signature=_signature(snapshot, track),
        input_example={"seed": [0, 1]},
        pip_requirements=[f"fleetstep=={__version__}", f"torch=={_released(torch.__version__)}"],
        metadata={"images_seen": snapshot.images_seen, "checkpoint": snapshot.digest},
    )
    (path / "data" / snapshot.path.name / REPORTED).unlink(missing_ok=True)


def _signature(snapshot: SnapshotRef, track: str) -> Any:
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec

    columns = [ColSpec("long", "seed"), ColSpec("long", "label", required=False)]
    channels, height, width = snapshot.shape
    pixels = np.dtype("uint8" if snapshot.draws_pictures else "float32")
    return ModelSignature(
        inputs=Schema(columns if snapshot.classes else columns[:1]),
        outputs=Schema(
            [
                TensorSpec(pixels, (-1, height, width, channels), "images"),
                TensorSpec(np.dtype("int64"), (-1,), "labels"),
            ]
        ),
        params=ParamSchema(
            [
                ParamSpec(name, kind, track if name == "ema" else default)
                for name, (kind, default) in model_flavor.PARAMETERS.items()
            ]
        ),
    )


def _register(
    client: Any,
    name: str,
    model_id: str,
    run_id: str,
    snapshot: SnapshotRef,
    tags: dict[str, str],
) -> str:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # "models:/..." would be looked up by MLflow's global address, which is not ours.
    source = client.get_logged_model(model_id).artifact_location
    for version in client.search_model_versions(f"name = '{_quotable(name)}'"):
        if version.source == source:
            for key, value in tags.items():
                client.set_model_version_tag(name, version.version, key, value)
            return str(version.version)
    made = client.create_model_version(
        name,
        source,
        run_id,
        tags=tags,
        description=f"{snapshot.run} after {snapshot.images_seen / 1000:g} kimg",
        model_id=model_id,
    )
    # What MLflow's own `register_model` leaves: the model's page links to its versions by it.
    link = {"name": name, "version": str(made.version)}
    tag = client.get_logged_model(model_id).tags.get(_VERSIONS, "[]")
    client.set_logged_model_tags(model_id, {_VERSIONS: json.dumps([*json.loads(tag), link])})
    return str(made.version)


def _quotable(name: str) -> str:
    if "'" in name:
        raise TrackingError(
            f"a registered model's name must not hold ', got {name!r}", "rename it"
        )
    return name


def _tags(snapshot: SnapshotRef, track: str) -> dict[str, str]:
    return {
        "fleetstep.run": snapshot.run,
        "images_seen": str(snapshot.images_seen),
        "ema": track,
        _DIGEST: snapshot.digest,
    }


def _tags_of(score: Score) -> dict[str, str]:
    """What a score says and how it was measured, for those who have only the registry."""
    return {
        "metric": score.metric,
        "score": f"{score.value:.6g}",
        "score.low": f"{score.low:.6g}",
        "score.high": f"{score.high:.6g}",
        "samples": str(score.n),
        "protocol": score.protocol_name or "own",
        "nfe": f"{score.nfe:g}",
        "solver": score.solver,
        "schedule": score.schedule,
        "guidance": score.guidance or "none",
    }


def _released(version: str) -> str:
    """Without the build: "2.13.0+cpu" is on no index."""
    return version.partition("+")[0]
