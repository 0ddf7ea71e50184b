"""The way to MLflow: addresses, names, and errors that say what to do.

MLflow is imported when it is first needed and always through a client, never through its global
"active run", which two runs in one process would share.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fleetstep.addresses import ADVICE, SCHEMES, is_tracker, redacted
from fleetstep.errors import FleetstepError, TrackingError

_SQLITE = "sqlite:///"
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # A server's address is otherwise printed at each end of a run, into the output of --json too.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # Its own patience (7 tries, 120 s each) would hold a driver for minutes before it may say that
    # the server is down; a worker's metrics are repeated from the spool for as long as it lives.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "GIT_PYTHON_REFRESH": "quiet",
}
_KEY = re.compile(r"[A-Za-z0-9_\-. @/]+")
MAX_KEY = 250


def default_uri(storage: Path) -> str:
    """The database that is used when the configuration names none: one file beside the runs."""
    return f"{_SQLITE}{(storage / 'mlflow.db').resolve()}"


def checked_uri(uri: str) -> str:
    """`uri` with a relative SQLite path made absolute, as workers run in other folders.

    Raises:
        TrackingError: not a database or server address, for example a plain folder.
    """
    if not is_tracker(uri):
        raise TrackingError(
            f"`tracking.uri` must begin with one of {', '.join(SCHEMES)}, got {redacted(uri)!r}",
            ADVICE,
        )
    path = sqlite_path(uri)
    return f"{_SQLITE}{path}" if path is not None else uri


def sqlite_path(uri: str) -> Path | None:
    """The file of an SQLite address, absolute; None for other addresses."""
    return Path(uri.removeprefix(_SQLITE)).resolve() if uri.startswith(_SQLITE) else None


@contextlib.contextmanager
def tracker_errors(uri: str, doing: str) -> Iterator[None]:
    """Turn what MLflow, SQLAlchemy, a disk or the network raise into a TrackingError.

    It holds the first line of the cause, without the address's password.
    """
    try:
        yield
    except FleetstepError:
        raise
    except Exception as error:
        if not isinstance(error, _outside_causes()):
            raise
        lines = redacted(str(error), uri).strip().splitlines()
        cause = lines[0][:300] if lines else ""
        # `from None`: the chained original would print the address with its password.
        raise TrackingError(
            f"the tracker at {redacted(uri)} could not {doing}: {type(error).__name__}: {cause}",
            "check that the database or server is up and may be written, or set `tracking.uri`; "
            "metrics wait in the run's spool until then",
        ) from None


def _outside_causes() -> tuple[type[Exception], ...]:
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    # ValueError: addresses that SQLAlchemy or requests cannot take apart; ImportError: a database
    # whose driver is not installed. Errors of requests are OSErrors.
    return (MlflowException, SQLAlchemyError, sqlite3.Error, OSError, ValueError, ImportError)


def connect(uri: str) -> Any:
    """An `MlflowClient` of an existing tracker. Any of MLflow's own exceptions may come out.

    Raises:
        TrackingError: an SQLite file that is not there; MLflow would make an empty one.
    """
    path = sqlite_path(uri)
    if path is not None and not path.is_file():
        raise TrackingError(
            f"there is no tracker database at {path}",
            "train a run first, or name the right one by --storage or --tracking-uri",
        )
    return _library()(tracking_uri=uri)


def create(uri: str) -> Any:
    """An `MlflowClient`; a missing SQLite database is made, in write-ahead mode.

    With a write-ahead log several processes write without waiting seconds for each other, and
    readers (the UI, `compare`) do not block them. It needs a local disk.

    Raises:
        TrackingError: the database cannot be opened or made, or the server does not answer.
    """
    with tracker_errors(uri, "be opened"):
        client = _library()
        path = sqlite_path(uri)
        if path is None:
            if urlsplit(uri).scheme not in ("http", "https", "databricks", ""):
                _probe(uri)
            return client(tracking_uri=uri)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(path.with_name(path.name + ".lock")):
            with contextlib.closing(sqlite3.connect(path, timeout=20)) as database:
                database.execute("PRAGMA journal_mode=WAL")
            return client(tracking_uri=uri)


def _probe(uri: str) -> None:
    """Fail at once where MLflow would try ten times, for 100 s."""
    import sqlalchemy

    engine = sqlalchemy.create_engine(uri)
    try:
        engine.connect().close()
    finally:
        engine.dispose()


@contextlib.contextmanager
def _one_at_a_time(lock: Path) -> Iterator[None]:
    # Two processes that both find an empty database would both make its tables: one would fail.
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _library() -> Any:
    """MLflow's client class, with the settings that must stand before its import."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    # Thirty lines about migrations at the first run, or that a model's own example fits it, are no
    # news to anyone.
    for name in ("alembic", "mlflow.store.db.utils", "mlflow.pyfunc"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient


def to_tracker_key(key: str) -> str:
    """A metric or parameter name as MLflow allows it: `@` becomes `:`.

    Raises:
        TrackingError: a name that MLflow would refuse, or that could not be turned back.
    """
    parts = key.split("/")
    if not _KEY.fullmatch(key) or len(key) > MAX_KEY or not {"", ".", ".."}.isdisjoint(parts):
        raise TrackingError(
            "a metric name must be letters, digits and _ - . @ / or space, at most "
            f"{MAX_KEY} of them, with no empty part between slashes, got {key!r}",
            "rename it",
        )
    return key.replace("@", ":")


def from_tracker_key(key: str) -> str:
    """The inverse of `to_tracker_key`."""
    return key.replace(":", "@")
