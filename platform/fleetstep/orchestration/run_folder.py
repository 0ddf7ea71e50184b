"""A run's folder: where everything of it lies, and the small file that ties it to the tracker.

<storage>/<name>/config.resolved.yaml   the configuration, as it can be run again
                 run.json               the tracker's run id, so that a resumed run goes on in it
                 spool/metrics.jsonl    every metric, before the tracker has it
                 checkpoints/ snapshots/ grids/
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from fleetstep import errors
from fleetstep.durable import write_json, write_text
from fleetstep.errors import CheckpointError, FleetstepError


@dataclass(frozen=True)
class RunFolder:
    """Paths inside a run's folder."""

    root: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.root / "config.resolved.yaml"

    @property
    def card(self) -> Path:
        """The tie to the tracker."""
        return self.root / "run.json"

    @property
    def spool(self) -> Path:
        """Metrics on their way to the tracker."""
        return self.root / "spool" / "metrics.jsonl"

    @property
    def stop_request(self) -> Path:
        """Exists while a run is asked to save and stop."""
        return self.root / "stop"

    @property
    def fatal(self) -> Path:
        """The error that made a job give up: one that would only happen again."""
        return self.root / "fatal.json"

    def give_up(self, error: FleetstepError) -> None:
        """Say that starting again cannot help, and why; the first worker's error stays.

        A note that cannot be written (a full disk, say) costs restarts, never the error itself.
        """
        text = json.dumps({"type": type(error).__name__, "arguments": error.args})
        with contextlib.suppress(OSError), self.fatal.open("x", encoding="utf-8") as file:
            file.write(text)

    def reason_to_give_up(self) -> FleetstepError | None:
        """The error of `give_up`, None if nobody gave up."""
        try:
            found = json.loads(self.fatal.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        kind = getattr(errors, found["type"], FleetstepError)
        error: FleetstepError = kind(*found["arguments"])
        return error

    @property
    def figures(self) -> Path:
        """The run's own figures."""
        return self.root / "figures"

    @property
    def checkpoints(self) -> Path:
        """Complete and incomplete checkpoints."""
        return self.root / "checkpoints"

    @property
    def snapshots(self) -> Path:
        """EMA snapshots."""
        return self.root / "snapshots"

    @property
    def grids(self) -> Path:
        """Sample grids."""
        return self.root / "grids"

    def prepare(self, resolved: str) -> None:
        """Make the folder and keep the resolved configuration there.

        Raises:
            CheckpointError: the folder cannot be made or written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self.stop_request.unlink(missing_ok=True)
            self.fatal.unlink(missing_ok=True)
            write_text(self.config, resolved)
        except OSError as error:
            raise CheckpointError(
                f"the run's folder {self.root} cannot be written: {error}",
                "choose another `storage`",
            ) from error

    def grid(self, images_seen: int) -> Path:
        """The sample grid of a snapshot."""
        return self.grids / f"images-{images_seen:09d}.png"


@dataclass(frozen=True)
class RunCard:
    """Which run of which tracker a folder belongs to. The address is left out: it may hold a
    secret.

    Attributes:
        run_id: the run in the tracker.
        experiment: the tracker's experiment that holds it.
        identity: of the training experiment whose metrics the spool holds.
    """

    run_id: str
    experiment: str
    identity: str

    @classmethod
    def read(cls, path: Path) -> RunCard | None:
        """The card in a file, None if there is none or it is not a card."""
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            return cls(*(str(fields[key]) for key in ("run_id", "experiment", "identity")))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, path: Path) -> None:
        """Write the card whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(self))
