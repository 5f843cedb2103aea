"""Two small helpers that let reading, computing and writing overlap."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")

_TICK_S = 0.1


class _End:
    """What a producer puts behind its last item: its error, if it had one."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


@contextmanager
def prefetch(make: Callable[[], Iterable[T]], depth: int) -> Iterator[Iterator[T]]:
    """Run an iterable in a thread, at most ``depth`` items ahead. Its errors come out where its items do.

    ``make`` is called in the thread.  On leaving the context the thread is stopped, and has ended.
    """
    items: queue.Queue[T | _End] = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def put(item: T | _End) -> bool:
        while not stop.is_set():
            try:
                items.put(item, timeout=_TICK_S)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in make():
                if not put(item):
                    return
            put(_End())
        except BaseException as error:
            put(_End(error))

    def consume() -> Iterator[T]:
        while True:
            item = items.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item

    thread = threading.Thread(target=work, name="corpus-reader", daemon=True)
    thread.start()
    try:
        yield consume()
    finally:
        stop.set()
        thread.join()


class Background(Generic[T]):
    """Runs ``work`` on items in one thread, in order; its error comes out of the next :meth:`put`, or at the end."""

    def __init__(self, work: Callable[[T], None], depth: int) -> None:
        self._work = work
        self._items: queue.Queue[T | _End] = queue.Queue(maxsize=depth)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="corpus-writer", daemon=True)

    def __enter__(self) -> Background[T]:
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Finish what was put, also where the caller failed: it is whole."""
        self._items.put(_End())
        self._thread.join()
        if error is None:
            self._raise()

    def put(self, item: T) -> None:
        """Hand over an item; waits while ``depth`` items are waiting."""
        self._raise()
        self._items.put(item)

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while True:
            item = self._items.get()
            if isinstance(item, _End):
                return
            if self._error is not None:
                continue  # behind a failed window nothing may be written; only drain
            try:
                self._work(item)
            except BaseException as error:
                self._error = error
