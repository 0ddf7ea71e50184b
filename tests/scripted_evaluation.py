"""An evaluation without Ray, networks or a tracker: snapshots are folders, units are only counted,
and a script says what happens when.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fleetstep.errors import CheckpointError
from fleetstep.orchestration.cells import Cell, ReferenceSet, SnapshotRef, Unit
from fleetstep.orchestration.due_snapshots import DueSnapshots
from fleetstep.orchestration.evaluator import Evaluator, Scoring
from fleetstep.orchestration.pool_status import PoolStatus, StatusFile
from fleetstep.orchestration.snapshot_scores import Asked, SnapshotScores
from fleetstep.orchestration.sweep_plan import Rules, Subject, SweepPlan, plan_sweep
from fleetstep.orchestration.sweep_solvers import Setting
from fleetstep.orchestration.tolerant_worker import Refusal
from fleetstep.sampling.spec import EulerSpec, HeunSpec

IDENTITY = "this experiment"
REFERENCE = ReferenceSet(data=Path("digits"), fingerprint="f", split="train", samples=200)
EULER, HEUN = Setting(EulerSpec(), 5), Setting(HeunSpec(), 5)

Answer = Callable[[Unit], Any]


def write_snapshot(folder: Path, images_seen: int, identity: str = IDENTITY) -> Path:
    path = folder / f"images-{images_seen:09d}"
    path.mkdir(parents=True)
    (path / "snapshot.json").write_text(json.dumps({"identity": identity}))
    return path


def snapshot_ref(path: Path) -> SnapshotRef:
    return SnapshotRef(
        path=path,
        digest=f"weights of {path.name}",
        run="edm",
        images_seen=int(path.name.removeprefix("images-")),
        shape=(1, 8, 8),
        classes=10,
        data=Path("digits"),
        dataset="f",
    )


def images_seen_of(unit: Unit) -> int | None:
    """Of a reference's unit, None."""
    return unit.source.snapshot.images_seen if isinstance(unit.source, Cell) else None


def finish(unit: Unit) -> Any:
    return SimpleNamespace(unit=unit)


def refuse(unit: Unit) -> Any:
    return Refusal(f"{unit.source} drew what is not finite")


class Disk:
    """Finished units, which outlive an evaluator, and plans as they find them.

    Args:
        settings: how each snapshot is sampled.
    """

    def __init__(self, *settings: Setting) -> None:
        self.settings = settings or (EULER,)
        self.units: set[Unit] = set()

    def plan(self, path: Path) -> SweepPlan:
        if (path / "damaged").exists():
            raise CheckpointError(f"{path.name} is damaged", "use another")
        subject = Subject(snapshot=snapshot_ref(path), track="ema", reference=REFERENCE)
        rules = Rules(samples=1000)
        return plan_sweep([subject], self.settings, [], rules, finished=self.units.__contains__)


class ScriptedPool:
    """Does one unit a turn, in the order they were fed unless `choose` says otherwise.

    Args:
        disk: where finished units go.
        turn: called with this pool before each unit.
        choose: the place among the pending units of the one that is done next.
        answer: what a unit's worker returns, or raises.
    """

    def __init__(
        self,
        disk: Disk,
        turn: Callable[[ScriptedPool], None] = lambda pool: None,
        *,
        choose: Callable[[Sequence[Unit]], int] = lambda pending: 0,
        answer: Answer = finish,
    ) -> None:
        self.disk, self.turn, self.choose, self.answer = disk, turn, choose, answer
        self.fed: list[Unit] = []
        self.done: list[Unit] = []
        self.pending: deque[Unit] = deque()
        self.training_ended = threading.Event()

    def __call__(self, *, on_result: Any, on_event: Any, on_status: Any, feed: Any) -> None:
        more = True
        while more or self.pending:
            if more:
                units = feed()
                more = units is not None
                self.fed += units or []
                self.pending.extend(units or [])
            on_status(PoolStatus(pending_units=len(self.pending), done=len(self.done)))
            self.turn(self)
            if not self.pending:
                time.sleep(0.001)  # a real pool waits for events here
                continue
            place = self.choose(self.pending)
            unit = self.pending[place]
            del self.pending[place]
            answer = self.answer(unit)
            if not isinstance(answer, Refusal):
                self.disk.units.add(unit)
            self.done.append(unit)
            on_result(unit, answer)

    def fed_points(self) -> list[int | None]:
        """Images seen of the units in the order fed, without repetitions in a row."""
        points = [images_seen_of(unit) for unit in self.fed]
        return [p for i, p in enumerate(points) if i == 0 or p != points[i - 1]]


class Tracker:
    """Remembers what was recorded, in order."""

    def __init__(self) -> None:
        self.recorded: list[int] = []
        self.cells: list[Cell] = []
        self.down: Exception | None = None

    def record(self, images_seen: int, plan: SweepPlan, scores: Sequence[Any]) -> None:
        if self.down is not None:
            raise self.down
        self.recorded.append(images_seen)
        self.cells += [score.cell for score in scores]


def score(plan: SweepPlan) -> list[Any]:
    record = SimpleNamespace(
        metric="fd1k.x", value=1.0, low=0.5, high=1.5, to_dict=lambda: {"v": 1}
    )
    return [SimpleNamespace(cell=cell, records=(record,)) for cell in plan.cells]


def evaluator(
    root: Path,
    pool: Any,
    tracker: Tracker,
    *,
    disk: Disk | None = None,
    planned: Sequence[int] = (0, 100, 200, 300),
    every: int = 100,
    measured: str = "as asked",
    said: list[str] | None = None,
) -> Evaluator:
    (root / "evaluation").mkdir(exist_ok=True)
    found = disk or pool.disk
    return Evaluator(
        DueSnapshots(root / "snapshots", IDENTITY, planned, every),
        Scoring(plan=found.plan, run=pool, score=score, record=tracker.record),
        SnapshotScores(root / "evaluation", Asked(IDENTITY, measured, "run")),
        StatusFile(root / "evaluation" / "status.json", "edm"),
        None if said is None else said.append,
    )
