"""Wall and CPU seconds of what this process and all that it has started do, Ray's actors too."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import psutil

T = TypeVar("T")

_EVERY_S = 0.2


@dataclass(frozen=True)
class Took(Generic[T]):
    """Wall and CPU seconds of what gave `value`."""

    wall: float
    cpu: float
    value: T


def timed(run: Callable[[], T]) -> Took[T]:
    """Run it once."""
    meter = _Meter()
    started = time.perf_counter()
    value = run()
    wall = time.perf_counter() - started
    return Took(wall, meter.stop(), value)


class _Meter:
    """Looks at every process again and again: what a dead actor has used, its parent, which does
    not wait for it, is never told.
    """

    def __init__(self) -> None:
        self._used = self._before = dict[int, float]()
        self._look()
        self._before = dict(self._used)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> float:
        """CPU seconds since it was made, but for the last moments of those that died."""
        self._over.set()
        self._thread.join()
        self._look()
        return sum(used - self._before.get(pid, 0.0) for pid, used in self._used.items())

    def _watch(self) -> None:
        while not self._over.wait(_EVERY_S):
            self._look()

    def _look(self) -> None:
        this = psutil.Process()
        for process in (this, *this.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                times = process.cpu_times()
                self._used[process.pid] = times.user + times.system
