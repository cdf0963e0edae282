"""Python's garbage is collected when the loop says so, and at no other time."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from megatron_videogpt.train.garbage import collected_every


class Ring:
    """Garbage that only the collector finds."""

    def __init__(self) -> None:
        self.self = self


@pytest.fixture
def collections() -> Any:
    """The generations that the collector looked at, in order."""
    seen: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            seen.append(info["generation"])

    gc.callbacks.append(note)
    yield seen
    gc.callbacks.remove(note)


def test_collections_come_at_the_same_steps_only(collections: list[int]) -> None:
    with collected_every(3) as collect:
        at: dict[int, int] = {}
        for step in range(1, 10):
            # Many times what makes Python collect by itself.
            for _ in range(5000):
                Ring()
            before = len(collections)
            collect(step)
            at[step] = len(collections) - before
            assert gc.get_count()[0] < 100 or step % 3
        assert at == {step: int(step % 3 == 0) for step in range(1, 10)} and len(collections) == 4
    assert gc.isenabled() and gc.get_freeze_count() == 0


def test_what_survived_one_collection_is_found_by_a_later_one(collections: list[int]) -> None:
    import weakref

    with collected_every(1) as collect:
        ring = Ring()
        alive = weakref.ref(ring)
        for step in (1, 2, 3):
            collect(step)
        del ring
        assert alive() is not None
        collect(4)
        assert alive() is None


def test_python_collects_by_itself_without_the_option(collections: list[int]) -> None:
    with collected_every(0) as collect:
        for step in range(1, 10):
            for _ in range(5000):
                Ring()
            collect(step)
    assert len(collections) > 20 and gc.isenabled()


def test_the_collector_comes_back_after_an_error() -> None:
    with pytest.raises(KeyError), collected_every(3):
        raise KeyError
    assert gc.isenabled()
