"""Progress of a training job as its driver shows it: read from the run's own spool, so it works
from any worker on any node.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from fleetstep.orchestration.spool import SpoolReader

_LOOK_S = 1.0
_LINE_S = 5.0


class Follower:
    """Prints a line every few seconds from what rank 0 logs; use it in a `with` block.

    Args:
        spool: the run's spool.
        budget: images of the whole run.
        say: where lines go; None follows nothing.
    """

    def __init__(self, spool: Path, budget: int, say: Callable[[str], None] | None) -> None:
        self._spool, self._budget, self._say = SpoolReader(spool), budget, say
        self._latest: dict[str, float] = {}
        self._images = self._shown = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="progress", daemon=True)

    def __enter__(self) -> Follower:
        # What an earlier start of this run logged is not this one's progress.
        for point in self._spool.read():
            self._images = self._shown = max(self._images, point.images_seen)
        if self._say is not None:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
            self._show()

    def _follow(self) -> None:
        last = time.monotonic()
        while not self._stop.wait(_LOOK_S):
            if time.monotonic() - last >= _LINE_S:
                last = time.monotonic()
                self._show()

    def _show(self) -> None:
        for point in self._spool.read():
            self._latest[point.key] = point.value
            self._images = max(self._images, point.images_seen)
        if self._images > self._shown and self._say is not None:
            self._shown = self._images
            self._say(line(self._images, self._budget, self._latest))


def line(images_seen: int, budget: int, latest: dict[str, float]) -> str:
    """The progress line: kimg, loss, rate, share of time spent waiting for data, time left, and
    the last held-out loss.
    """
    parts = [f"  {images_seen / 1000:.1f}/{budget / 1000:g} kimg {images_seen / budget:4.0%}"]
    for key, text in (
        ("train/loss", "loss {:.3g}"),
        ("train/images_per_s", "{:.0f} img/s"),
        ("train/data_wait_share", "data wait {:.1%}"),
        ("held_out/loss", "held-out {:.4f}"),
    ):
        if key in latest:
            parts.append(text.format(latest[key]))
    if (rate := latest.get("train/images_per_s", 0.0)) > 0:
        left = max(budget - images_seen, 0) / rate
        parts.append(f"{int(left // 60)}:{int(left % 60):02d} left")
    return "  ".join(parts)
