"""Connecting to Ray, with Ray replaced: which cluster is meant, and what a failure leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray

from fleetstep.errors import ResourceError
from fleetstep.orchestration.session import connect


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What `ray.init` was called with; it leaves logs as Ray does."""
    asked: dict[str, Any] = {}

    def init(**options: Any) -> None:
        asked.update(options)
        if "_temp_dir" in options:
            session = Path(options["_temp_dir"]) / "session_1"
            (session / "logs").mkdir(parents=True)
            (session / "logs" / "worker.err").write_text("killed")
            session.with_name("session_latest").symlink_to(session)

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return asked


def test_no_address_is_a_local_cluster_whatever_the_environment_says(
    asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")
    with connect(None):
        assert asked["address"] == "local"
    assert list(tmp_path.iterdir()) == []
    with connect("here:6379"):
        assert asked["address"] == "here:6379"


def test_logs_outlive_a_failure_but_not_a_refusal(
    asked: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(ResourceError), connect(None):
        raise ResourceError("too big")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ZeroDivisionError), connect(None):
        raise ZeroDivisionError
    (kept,) = tmp_path.glob("fleetstep-ray-logs-*/logs")
    assert (kept / "worker.err").read_text() == "killed"
    assert str(kept) in capsys.readouterr().err
    assert not Path(asked["_temp_dir"]).exists()
