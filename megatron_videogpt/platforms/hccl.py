"""Time limits of HCCL, Ascend's communication library, beside those of process groups and of a run."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import MutableMapping

from ..errors import UserError

log = logging.getLogger(__name__)

CONNECT = 120
"""Seconds of HCCL_CONNECT_TIMEOUT where it is not set."""

AIV = 1091
"""Seconds after which a collective ends under HCCL_OP_EXPANSION_MODE=AIV, whatever is set (docs/ascend.md)."""

AFTER_PHASE, AFTER_COLLECTIVE = 36, 32
"""Seconds between the limits of a run, of a collective and of the wait for its end: with `train.timeout_minutes` = 30
HCCL's own defaults, 1836 and 1868.
"""


def fit_timeouts(timeout_minutes: float, environ: MutableMapping[str, str] = os.environ) -> float:
    """Set HCCL's limits by that of a phase (`train.timeout_minutes`) where they are not set; HCCL reads them as it
    joins the ranks.

    So the watchdog of the rank that hangs speaks first, then HCCL, then the process group, and no message names the
    wrong culprit.  Returns the seconds that process groups must outlast; 0 in a variable means without end, which
    nothing outlasts: of HCCL_EXEC_TIMEOUT on A2 and A3 CANN's page says so (docs/ascend.md), of the other two it is
    assumed.  Warns where a collective would end before a phase may; raises UserError where a variable is no number of
    seconds, or the wait for a collective shorter than the collective.
    """
    environ.setdefault("HCCL_EXEC_TIMEOUT", str(math.ceil(60 * timeout_minutes) + AFTER_PHASE))
    collective = _seconds("HCCL_EXEC_TIMEOUT", environ)
    environ.setdefault("HCCL_EVENT_TIMEOUT", str(collective + AFTER_COLLECTIVE if collective else 0))
    event = _seconds("HCCL_EVENT_TIMEOUT", environ)
    if 0 < event <= collective or (event and not collective):
        raise UserError(
            f"HCCL_EVENT_TIMEOUT = {event}: must be above HCCL_EXEC_TIMEOUT = {collective or '0 (without end)'}, or an "
            "error names the wrong operation; unset it"
        )
    if 0 < collective < 60 * timeout_minutes:
        log.warning(
            "HCCL_EXEC_TIMEOUT = %d s ends a collective before train.timeout_minutes = %g does; unset it, or lower "
            "train.timeout_minutes",
            collective,
            timeout_minutes,
        )
    if environ.get("HCCL_OP_EXPANSION_MODE") == "AIV" and 60 * timeout_minutes > AIV:
        log.warning(
            "HCCL_OP_EXPANSION_MODE = AIV ends a collective after %d s at most, before train.timeout_minutes = %g "
            "does; unset it, or train.timeout_minutes=%d",
            AIV,
            timeout_minutes,
            AIV // 60,
        )
    return max(collective, _seconds("HCCL_CONNECT_TIMEOUT", environ, CONNECT))


def _seconds(name: str, environ: MutableMapping[str, str], default: int = 0) -> int:
    text = environ.get(name) or str(default)
    if not text.isdecimal():
        raise UserError(f"{name} = {text}: must be a whole number of seconds; unset it for the default")
    return int(text)
