"""A real `mlflow server` of a test's own, and a proxy that makes it slow."""

from __future__ import annotations

import http.client
import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

START_S = 90.0


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class TrackingServer:
    """`mlflow server` on an SQLite database, keeping files itself; killed and started again on
    the same port.

    Args:
        folder: of the database, the artifacts and the server's own output.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.database = folder / "server.db"
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start and wait until it answers."""
        command = [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"),
            *("--port", str(self.port), "--workers", "1"),
            *("--backend-store-uri", f"sqlite:///{self.database}"),
            *("--artifacts-destination", str(self.folder / "artifacts")),
        ]
        quiet = {
            # It would start eight more processes, 1.4 GB.
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "GIT_PYTHON_REFRESH": "quiet",
        }
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=os.environ | quiet,
                # A group of its own, to be ended by its id with all its workers.
                start_new_session=True,
            )
        self._wait()

    def kill(self) -> None:
        """SIGKILL, as a machine that goes down."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it for good; nothing of it stays."""
        if self._process is not None:
            self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, number)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process = None

    def _wait(self) -> None:
        deadline = time.monotonic() + START_S
        while True:
            assert self._process is not None
            assert self._process.poll() is None, (self.folder / "server.log").read_text()
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                    return
            except OSError:
                assert time.monotonic() < deadline, (self.folder / "server.log").read_text()
                time.sleep(0.1)


class SlowProxy:
    """Passes requests on after a delay, and counts them.

    Attributes:
        uri: its address.
        received: requests so far.
        most_at_once: the most that waited at the same time.
        open: while it is cleared, requests wait for it.
    """

    def __init__(self, server: TrackingServer, delay_s: float) -> None:
        self.received = self.most_at_once = 0
        self.open = threading.Event()
        self.open.set()
        self._waiting = 0
        self._lock = threading.Lock()
        self._target, self._delay_s = server.port, delay_s
        self._listener = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._listener.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self._listener.server_port}"

    @contextmanager
    def running(self) -> Iterator[SlowProxy]:
        """Serve inside the block."""
        thread = threading.Thread(target=self._listener.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._listener.shutdown()
            self._listener.server_close()
            thread.join()

    def _answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        with self._lock:
            self.received += 1
            self._waiting += 1
            self.most_at_once = max(self.most_at_once, self._waiting)
        self.open.wait(60)
        time.sleep(self._delay_s)
        try:
            self._pass_on(request)
        finally:
            with self._lock:
                self._waiting -= 1

    def _pass_on(self, request: http.server.BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        onward = http.client.HTTPConnection("127.0.0.1", self._target, timeout=30)
        headers = {"Content-Type": request.headers.get("Content-Type", "application/json")}
        onward.request(request.command, request.path, body, headers)
        answer = onward.getresponse()
        content = answer.read()
        request.send_response(answer.status)
        request.send_header("Content-Type", answer.getheader("Content-Type", ""))
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)
        onward.close()

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                proxy._answer(self)

            do_POST = do_PATCH = do_PUT = do_DELETE = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        return Handler
