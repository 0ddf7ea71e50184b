"""Batches prepared in a background thread while the step runs."""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

from fleetstep.data.batch import Batch

T = TypeVar("T")


class BatchSource(Protocol):
    """Anything that gives the batch at a stream position, such as a `Stream`."""

    def batch(self, first: int, count: int) -> Batch:
        """The batch at positions first .. first+count-1."""
        ...


class _End:
    """Put in the queue after the last batch; carries the error that ended it, if one did."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class Prefetched(Generic[T]):
    """Iterator over (batch, extra) made ahead of time; see `prefetched`.

    Attributes:
        wait_s: seconds the consumer has waited for batches: its share of the run is what data
            costs.
    """

    def __init__(
        self,
        source: BatchSource,
        positions: Iterable[tuple[int, int]],
        depth: int,
        extra: Callable[[Batch], T],
    ) -> None:
        if depth < 1:
            raise ValueError(f"`depth >= 1` must hold, got {depth=}")
        self.wait_s = 0.0
        self._ended = False
        self._queue: queue.Queue[tuple[Batch, T] | _End] = queue.Queue(depth)
        self._stop = threading.Event()
        # The thread holds queue and event, not this object: one that is dropped unfinished is
        # collected and stops it.
        self._thread = threading.Thread(
            target=_produce,
            args=(source, positions, extra, self._queue, self._stop),
            name="fleetstep-prefetch",
            daemon=True,
        )
        self._finalizer = weakref.finalize(self, _stop, self._queue, self._stop)
        self._thread.start()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[Batch, T]:
        if self._ended:
            raise StopIteration
        start = time.perf_counter()
        item = self._queue.get()
        self.wait_s += time.perf_counter() - start
        if isinstance(item, _End):
            self.close()
            if item.error is not None:
                raise item.error
            raise StopIteration
        return item

    def close(self) -> None:
        """Stop the thread and wait for it (at most the batch it is making); may be repeated."""
        self._ended = True
        self._finalizer()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _produce(
    source: BatchSource,
    positions: Iterable[tuple[int, int]],
    extra: Callable[[Batch], T],
    ready: queue.Queue[tuple[Batch, T] | _End],
    stop: threading.Event,
) -> None:
    error: BaseException | None = None
    try:
        for first, count in positions:
            batch = source.batch(first, count)
            ready.put((batch, extra(batch)))
            if stop.is_set():
                return
    except BaseException as caught:
        error = caught
    if not stop.is_set():
        ready.put(_End(error))


def _stop(ready: queue.Queue[tuple[Batch, T] | _End], stop: threading.Event) -> None:
    """Ends the producer: it puts at most one more item, for which emptying makes room."""
    stop.set()
    while True:
        try:
            ready.get_nowait()
        except queue.Empty:
            return


def prefetched(
    stream: BatchSource,
    positions: Iterable[tuple[int, int]],
    depth: int,
    extra: Callable[[Batch], T],
) -> Prefetched[T]:
    """Iterate over (batch, extra(batch)), made up to `depth` ahead in a background thread.

    `extra` is for what the step needs besides images (noise levels, noise); numpy releases the
    interpreter while it draws, so the thread costs the step little. Errors of the thread are
    raised by the consumer's `next`. Use it in a `with` block, or call `close`, so that the thread
    ends with the loop.

    Args:
        stream: gives the batches.
        positions: (first, count) of each batch; an endless iterator is fine.
        depth: batches kept ready.
        extra: made from each batch, in the background thread.
    """
    return Prefetched(stream, positions, depth, extra)
