"""What logging metrics costs training, as a share of it: to a tracker that works, is slow, or is
down.

A is the training between two sends; B all that the logger does meanwhile: a point of ten values
every ten steps, and one send. It does so in a thread of the process that trains, so its CPU time
is what training can lose; its waiting is not.
"""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pairs import Ratio, cpu_seconds, interleaved

SECONDS_PER_CALL = 2.0
EVERY = 10

_SLOW = """
import http.server, sys, time
class Slow(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(float(sys.argv[1]))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")
    do_GET = do_POST
    def log_message(self, *_):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow)
print(server.server_port, flush=True)
server.serve_forever()
"""


def tracking(step: Callable[[], None]) -> list[Ratio]:
    """The logger's share of training, for three trackers.

    Args:
        step: one bare training step.
    """
    from fleetstep.orchestration.tracking import Tracker

    folder = Path(tempfile.mkdtemp(prefix="fs-bench-"))
    tracker = Tracker(f"sqlite:///{folder}/mlflow.db", "bench")
    run_id = tracker.start_run("bench", {})
    with _slow_server() as slow:
        return [
            _share(step, "SQLite", tracker.uri, run_id, folder / "sqlite.jsonl"),
            _share(step, f"{SECONDS_PER_CALL:g} s a call", slow, run_id, folder / "slow.jsonl"),
            # Nobody listens at port 9.
            _share(step, "down", "http://127.0.0.1:9", run_id, folder / "down.jsonl"),
        ]


def _share(step: Callable[[], None], name: str, uri: str, run_id: str, spool: Path) -> Ratio:
    from fleetstep.orchestration.metric_logger import FLUSH_S, MetricLogger

    # Sent by hand below: a send of the thread's own would fall into either of the two.
    logger = MetricLogger(uri, run_id, spool, flush_s=1e6)
    steps, done = math.ceil(FLUSH_S / _seconds_of(step)), 0

    def train() -> None:
        for _ in range(steps):
            step()

    def track() -> None:
        nonlocal done
        for _ in range(0, steps, EVERY):
            done += 1
            logger.log(done, {f"train/metric_{m}": float(m) for m in range(10)})
        logger._try()

    try:
        return interleaved(
            f"tracking ({name}), share of the {steps} steps between two sends",
            "steps", train, "metrics", track,
        )  # fmt: skip
    finally:
        logger.close(timeout=0.1)


def _seconds_of(step: Callable[[], None]) -> float:
    """CPU time: with a core that others use too, a pass takes longer and does not do less."""
    step()
    return cpu_seconds(lambda: [step() for _ in range(20)]) / 20


@contextmanager
def _slow_server() -> Iterator[str]:
    """The address of a server that takes whatever it is sent, after a while."""
    program = [sys.executable, "-c", _SLOW, str(SECONDS_PER_CALL)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.terminate()
