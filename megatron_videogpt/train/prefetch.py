"""The next step's data, read and prepared while this one is worked on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """An iterator that takes its items from another one in a thread of its own, one item before they are asked for.

    Ranks that ask for the same number of items take the same number, so that the other iterator may hold collectives
    (in groups that nobody else uses).
    """

    def __init__(self, items: Iterator[T]) -> None:
        self._items = items
        self._asked: SimpleQueue[bool] = SimpleQueue()
        self._answers: SimpleQueue[tuple[bool, Any]] = SimpleQueue()
        # A daemon: a run that fails must not wait for a rank that is gone.
        self._thread = threading.Thread(target=self._serve, name="data ahead", daemon=True)
        self._thread.start()
        self._waiting = True
        self._asked.put(True)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        self._waiting, (good, item) = False, self._answers.get()
        if not good:
            raise item
        self._waiting = True
        self._asked.put(True)
        return item

    def close(self) -> None:
        """Wait for the item that is on its way, and close the other iterator."""
        if self._waiting:
            self._answers.get()
        self._asked.put(False)
        self._thread.join()

    def _serve(self) -> None:
        while self._asked.get():
            try:
                self._answers.put((True, next(self._items)))
            except BaseException as error:  # noqa: BLE001  (raised where the item is asked for)
                self._answers.put((False, error))
        close = getattr(self._items, "close", None)
        if close is not None:
            close()
