"""What HCCL keeps on an Ascend NPU: buffers of every communicator, which the device's allocator does not show."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from ..config.derived import dp_size
from ..config.schema import Config
from ..errors import UserError

BUFFER_MB, PAIR_BUFFER_MB = 200, 20
"""Defaults of HCCL_BUFFSIZE and P2P_HCCL_BUFFSIZE in MB, which are 2^20 bytes there: one buffer to send, one to
receive."""


class Communicator(NamedTuple):
    """A process group whose collectives run on the device.  pairs: it also carries messages from rank to rank."""

    what: str
    ranks: int
    pairs: bool


def communicators(config: Config, world_size: int) -> list[Communicator]:
    """Those that a run uses on every rank.  megatron-core makes some twenty groups, but HCCL sets one up when it is
    used first; groups of one rank and those of the host, over gloo, are left out.
    """
    layout = config.parallel
    # megatron-core sends one way of an interleaved pipeline of two through the group of all ranks (p2p_communication).
    borrowed = layout.pipeline == 2 and layout.virtual_pipeline > 1
    found = [
        Communicator("all ranks: start, validation", world_size, borrowed),
        Communicator("norm of the gradients", world_size, False),
        Communicator("TP", layout.tensor, False),
        Communicator("CP", layout.context, False),
        Communicator("PP", layout.pipeline, True),
        Communicator("DP x CP", dp_size(config, world_size) * layout.context, False),
    ]
    return [one for one in found if one.ranks > 1]


def communicator_bytes(config: Config, world_size: int, environ: Mapping[str, str] = os.environ) -> float:
    """Bytes of their buffers on each rank where `train.platform` is npu, else 0: CUDA's are part of `memory.RESERVE`.

    Raises UserError where a variable of `environ` is not a size.
    """
    if config.train.platform != "npu":
        return 0.0
    whole = _megabytes("HCCL_BUFFSIZE", BUFFER_MB, environ)
    # 0 shares the others.
    pair = _megabytes("P2P_HCCL_BUFFSIZE", PAIR_BUFFER_MB, environ)
    every = communicators(config, world_size)
    return 2.0 * 2**20 * (whole * len(every) + pair * sum(one.pairs for one in every))


def _megabytes(name: str, default: int, environ: Mapping[str, str]) -> int:
    text = environ.get(name) or str(default)
    if not text.isdecimal():
        raise UserError(f"{name} = {text}: must be a whole number of MB, as HCCL takes it; unset it for {default}")
    return int(text)
