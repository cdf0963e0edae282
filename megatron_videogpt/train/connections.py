"""How communication libraries say that another rank is gone."""

from __future__ import annotations

LOST = (
    "gloo",
    "NCCL",
    "HCCL",
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Connection refused",
    "Timed out waiting",
)
"""What communication libraries say, beside torch.distributed's own exception types, when a peer is gone."""


def is_lost_connection(error: BaseException) -> bool:
    """Whether an exception is a communication library's way to say that another rank is gone or silent."""
    if any(kind.__name__ == "DistError" for kind in type(error).__mro__):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in LOST)
