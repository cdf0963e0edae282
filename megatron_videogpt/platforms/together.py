"""What one rank alone sees, told to all: none goes on, or waits, where another cannot follow."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, NoReturn, TypeVar

import torch

from .. import signals
from ..errors import PeerFailed, RunError, Stopped, is_user_error, one_line

log = logging.getLogger(__name__)
T = TypeVar("T")


class Failure(NamedTuple):
    """What became of a rank; user: whether its user can mend it; text: in one line."""

    rank: int
    user: bool
    text: str


@contextlib.contextmanager
def fail_together(group: Any, doing: str) -> Iterator[None]:
    """A block that every rank of the run leaves, or none; a collective of all ranks at its end.  See `gather_results`.

    Within it there may be collectives only among ranks that fail together.
    """
    error: BaseException | None = None
    try:
        yield
    except Exception as problem:  # noqa: BLE001  (raised again, here or on all ranks)
        error = problem
    gather_outcomes(None, error, group, doing)


def gather_results(action: Callable[[], T], group: Any, doing: str) -> list[T]:
    """What `action` gives on every rank, in their order; a collective of all ranks, for small results.

    group: of all ranks, or None for the default one; doing: what the action is, for messages.

    Raises, where it failed on any rank:
        RunError: on all ranks, when users can mend it: the reason of the first rank.
        Exception: a fault, on the first rank that has one, as it is.
        PeerFailed: a fault of another rank.
    """
    result: Any = None
    error: BaseException | None = None
    try:
        result = action()
    except Exception as problem:  # noqa: BLE001  (raised again, here or on all ranks)
        error = problem
    return gather_outcomes(result, error, group, doing)


def gather_outcomes(result: Any, error: BaseException | None, group: Any, doing: str) -> list[Any]:
    """`gather_results`, of an action that has ended."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        if error is not None:
            raise error
        return [result]
    mine = None
    # The rank that failed tells itself; those that only shared its work have nothing to add.
    if error is not None and not isinstance(error, PeerFailed):
        mine = Failure(torch.distributed.get_rank(), is_user_error(error), one_line(error))
    told: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(told, (result, mine), group=group)
    failures = [failure for _, failure in told if failure is not None]
    if failures:
        _end(failures, error, doing)
    if error is not None:
        raise error
    return [value for value, _ in told]


def _end(failures: list[Failure], error: BaseException | None, doing: str) -> NoReturn:
    faults = [failure for failure in failures if not failure.user]
    first = (faults or failures)[0]
    # Rank 0 speaks for all: of itself it need not say who it is.
    where = f"rank {first.rank}, {doing}: " if first.rank else ""
    if not faults:
        raise RunError(where + first.text) from error
    if error is not None and first.rank == torch.distributed.get_rank():
        raise error
    if error is not None:
        log.error("this rank failed as well", exc_info=error)
    raise PeerFailed(first.rank, f"rank {first.rank} failed, {doing}: {first.text}")


def from_rank_zero(decide: Callable[[], T], group: Any, doing: str) -> T:
    """What `decide` gives on rank 0, on every rank; raises as `gather_results`; a collective of all ranks.

    For whatever ranks may see differently, such as a shared file system.
    """
    speaks = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
    return gather_results(lambda: decide() if speaks else None, group, doing)[0]  # type: ignore[return-value]


def first_error(error: str, group: Any, doing: str) -> str:
    """The first rank's error message that is not empty, the same on every rank; a collective."""
    return next(filter(None, gather_results(lambda: error, group, doing)), "")


def raise_together(error: str, group: Any, doing: str) -> None:
    """Raise RunError on every rank if some rank has an `error`, naming the ranks unless all have the same; a
    collective.
    """
    errors = gather_results(lambda: error, group, doing)
    found = {
        text: [rank for rank, other in enumerate(errors) if other == text] for text in dict.fromkeys(errors) if text
    }
    named = [
        text if len(ranks) == len(errors) else f"{name_ranks(ranks)} of {len(errors)}: {text}"
        for text, ranks in found.items()
    ]
    if named:
        raise RunError("; ".join(named))


def stop_together(group: Any) -> None:
    """Raise Stopped on every rank where a signal has asked one of them to stop, before the first step; a collective."""
    asked = torch.tensor(signals.asked())
    torch.distributed.all_reduce(asked, op=torch.distributed.ReduceOp.MAX, group=group)
    if asked.item():
        raise Stopped


def name_ranks(ranks: list[int]) -> str:
    """`rank 3`, or `ranks 0, 4-7` for a sorted list."""
    starts = [rank for rank in ranks if rank - 1 not in ranks]
    ends = [rank for rank in ranks if rank + 1 not in ranks]
    runs = [str(start) if start == end else f"{start}-{end}" for start, end in zip(starts, ends)]
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(runs)}"
