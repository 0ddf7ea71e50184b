"""The status file, and what `fleetstep status` makes of it."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fleetstep.orchestration import pool_status
from fleetstep.orchestration.pool_status import PoolStatus, StatusFile
from fleetstep.orchestration.status import find_status

POOL = PoolStatus(wanted=3, starting=1, running=2, pending_units=70, in_flight=4, done=26)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Both clocks, to be set by hand."""
    clock = {"now": 1000.0}
    monkeypatch.setattr(time, "monotonic", lambda: clock["now"])
    monkeypatch.setattr(time, "time", lambda: clock["now"])
    return clock


def write(path: Path, **changes: Any) -> None:
    """A status file of this process, then changed."""
    file = StatusFile(path, path.parent.name)
    file.update(POOL, 26, 100, 12.5, 90.0)
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(content))


class TestFile:
    def test_it_is_written_at_most_once_a_second_and_the_last_word_is_kept(
        self, tmp_path: Path, clock: dict[str, float]
    ):
        path = tmp_path / "sweeps" / "digits" / "status.json"
        file = StatusFile(path, "digits")
        seen = []
        for clock["now"] in (1000.0, 1000.4, 1000.9, 1001.1, 1001.2):
            file.update(POOL, int(10 * clock["now"]), 20_000, 1.0, None)
            seen.append(json.loads(path.read_text())["units_done"])
        assert seen == [10_000, 10_000, 10_000, 10_011, 10_011]
        file.close("interrupted")
        last = json.loads(path.read_text())
        assert (last["units_done"], last["state"]) == (10_012, "interrupted")
        assert (last["what"], last["pid"], last["host"], last["time"]) == (
            "digits",
            os.getpid(),
            socket.gethostname(),
            1001.2,
        )
        assert last["pool"]["running"] == 0
        assert last["pool"]["done"] == 26
        assert [entry.name for entry in path.parent.iterdir()] == ["status.json"]

    def test_a_disk_that_is_full_ends_nothing(
        self, tmp_path: Path, clock: dict[str, float], monkeypatch: pytest.MonkeyPatch
    ):
        def full(path: Path, content: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        path = tmp_path / "status.json"
        file = StatusFile(path, "digits")
        with monkeypatch.context() as patch:
            patch.setattr(pool_status, "write_json", full)
            file.update(POOL, 26, 100, 1.0, None)
            file.close("finished")
        assert not path.exists()
        clock["now"] += 1
        file.update(POOL, 27, 100, 1.0, None)
        assert json.loads(path.read_text())["units_done"] == 27

    def test_it_ends_before_it_began(self, tmp_path: Path):
        StatusFile(tmp_path / "status.json", "early").close("failed")
        assert json.loads((tmp_path / "status.json").read_text())["units"] == 0


class TestSightings:
    def test_sweeps_and_evaluations_are_found_newest_first(
        self, tmp_path: Path, clock: dict[str, float]
    ):
        write(tmp_path / "sweeps" / "first" / "status.json")
        clock["now"] += 20
        write(tmp_path / "digits-edm" / "evaluation" / "status.json")
        write(tmp_path / "elsewhere" / "status.json")
        clock["now"] += 10
        seen = find_status(tmp_path)
        assert [(s.path.parent.name, s.age_s, s.state) for s in seen] == [
            ("evaluation", 10.0, "running"),
            ("first", 30.0, "running"),
        ]
        assert seen[0].pool == POOL
        assert (seen[0].units_done, seen[0].units, seen[0].eta_s) == (26, 100, 90.0)

    def test_silence_is_not_taken_for_work(self, tmp_path: Path, clock: dict[str, float]):
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait()
        write(tmp_path / "sweeps" / "dead" / "status.json", pid=gone.pid)
        write(tmp_path / "sweeps" / "far" / "status.json", pid=gone.pid, host="another")
        write(tmp_path / "sweeps" / "done" / "status.json", pid=gone.pid, state="finished")
        write(tmp_path / "sweeps" / "root" / "status.json", pid=1)

        def states() -> dict[str, str]:
            return {seen.what: seen.state for seen in find_status(tmp_path)}

        assert states() == {
            "dead": "silent",
            "far": "running",
            "done": "finished",
            "root": "running",
        }
        clock["now"] += 61
        assert states() == {
            "dead": "silent",
            "far": "silent",
            "done": "finished",
            "root": "silent",
        }

    @pytest.mark.parametrize("text", ["{", "[]", '{"state": "running"}', "\xff"])
    def test_a_damaged_file_hides_no_other(self, text: str, tmp_path: Path):
        write(tmp_path / "sweeps" / "sound" / "status.json")
        bad = tmp_path / "sweeps" / "bad" / "status.json"
        bad.parent.mkdir()
        bad.write_text(text, encoding="latin-1")
        assert {s.what: s.state for s in find_status(tmp_path)} == {
            "sound": "running",
            "bad": "unreadable",
        }


class TestVerb:
    def test_the_table_says_what_actors_do_and_the_json_says_it_all(
        self, tmp_path: Path, run: Callable[..., tuple[int, str, str]], clock: dict[str, float]
    ):
        write(tmp_path / "sweeps" / "digits" / "status.json")
        write(tmp_path / "sweeps" / "old" / "status.json", time=clock["now"] - 7200)
        folder = tmp_path / "sweeps" / "done"
        write(folder / "status.json", time=clock["now"] - 600, state="finished")
        code, out, _ = run("status", "--storage", tmp_path)
        assert code == 0
        head, digits, done, old = (" ".join(line.split()) for line in out.splitlines())
        assert head.split()[-4:] == ["wanted", "starting", "running", "idle"]
        assert digits == "digits running 26/100 12.5 90 s 3 1 2 0"
        assert old == "old no sign for 2.0 h 26/100"
        assert done == "done finished 10 min ago 26/100"
        code, out, _ = run("status", "--storage", tmp_path, "--json")
        assert json.loads(out)[0] == {
            "path": str(tmp_path / "sweeps" / "digits" / "status.json"),
            "what": "digits",
            "state": "running",
            "age_s": 0.0,
            "pool": POOL.__dict__,
            "units_done": 26,
            "units": 100,
            "calls_per_s": 12.5,
            "eta_s": 90.0,
        }

    def test_nothing_to_see_is_said(
        self, tmp_path: Path, run: Callable[..., tuple[int, str, str]]
    ):
        code, out, _ = run("status", "--storage", tmp_path)
        assert (code, out.split()[:2]) == (0, ["no", "sweep"])
