"""Data ahead: items in order, one before they are asked for and never two, errors where they belong, and an end that
waits for no one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from megatron_videogpt.train.prefetch import Prefetcher


def until(holds: list[int], length: int) -> None:
    deadline = time.monotonic() + 20
    while len(holds) < length:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_one_item_ahead_and_no_more() -> None:
    taken: list[int] = []
    closed: list[str] = []

    def items() -> Iterator[int]:
        try:
            for number in range(5):
                taken.append(number)
                yield number
        finally:
            closed.append(threading.current_thread().name)

    ahead = Prefetcher(items())
    for number in range(3):
        until(taken, number + 1)
        assert taken == list(range(number + 1))
        assert next(ahead) == number
    until(taken, 4)
    ahead.close()
    # The fourth was on its way; the fifth was never taken, and the thread that took them closed their source.
    assert taken == [0, 1, 2, 3] and closed == ["data ahead"]


def test_errors_and_the_end_come_in_their_place() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("no more videos")

    ahead = Prefetcher(items())
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="no more videos"):
        next(ahead)
    ahead.close()
    assert list(Prefetcher(iter(range(4)))) == [0, 1, 2, 3]
