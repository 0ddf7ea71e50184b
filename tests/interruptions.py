"""Ways in which a worker dies, or is asked to stop, at a named point of a run, once."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path


@dataclass
class KillOnce:
    """An `on_event` that SIGKILLs its process when `event` happens for the nth time in it.

    Args:
        marker: file that remembers, across processes and restarts, that it was done.
        event: name of the point.
        nth: which time.
    """

    marker: Path
    event: str
    nth: int = 1
    seen: int = 0

    def __call__(self, name: str) -> None:
        if name != self.event:
            return
        self.seen += 1
        if self.seen < self.nth:
            return
        try:
            # Exclusive creation: of two workers that get here only one dies, and only once.
            self.marker.touch(exist_ok=False)
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class Several:
    """Several interruptions of one run."""

    parts: tuple[KillOnce, ...]

    def __call__(self, name: str) -> None:
        for part in self.parts:
            part(name)


@dataclass
class AskToStop:
    """Asks a run to save and stop when `event` happens for the nth time, as Ctrl-C does.

    Args:
        request: the run's file that asks for it.
        event: name of the point.
        nth: which time.
    """

    request: Path
    event: str
    nth: int = 1
    seen: int = 0

    def __call__(self, name: str) -> None:
        self.seen += name == self.event
        if self.seen == self.nth:
            self.request.touch()
