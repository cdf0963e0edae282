"""What megatron-core and torch raise where a checkpoint cannot be written or read, and the reason in it."""

from __future__ import annotations

from torch.distributed.checkpoint.api import CheckpointException

FAILURES = (Exception, CheckpointException)
"""megatron-core wraps whatever went wrong on any rank (a full disk, a lost mount) in exceptions of several kinds, one
of them no Exception.
"""


def root_cause(problem: BaseException) -> str:
    """The innermost message of a chain of exceptions, on one line."""
    seen: BaseException = problem
    failures = getattr(problem, "failures", None)
    if failures:
        first = next(iter(failures.values()))
        seen = first[0] if isinstance(first, tuple) else first
    while True:
        inner = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
        if inner is None:
            return f"{type(seen).__name__}: {' '.join(str(seen).split())[:300]}".removesuffix(": ")
        seen = inner
