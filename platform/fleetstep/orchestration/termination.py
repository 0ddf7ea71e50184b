"""SIGTERM as an orderly end: what ends in a `finally` ends, as with Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

TERMINATED = 128 + signal.SIGTERM
"""Exit code of a program that SIGTERM ended, as a shell gives it."""


@contextlib.contextmanager
def sigterm_as_exit() -> Iterator[None]:
    """Let SIGTERM raise SystemExit(143), where nobody else has taken it and Python allows.

    Inside another such block nothing changes. `ray.init` takes the signal for itself, and raises
    SystemExit(15).
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def is_terminated(end: BaseException) -> bool:
    """Whether SIGTERM raised it, here or in Ray's handler."""
    return isinstance(end, SystemExit) and end.code in (TERMINATED, int(signal.SIGTERM))
