"""Samples to every rank of a model parallel group: one rank reads and encodes, the others receive latents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from megatron.core import parallel_state

from ..data.clips import Sample
from . import distributed


def is_reader() -> bool:
    """Whether this rank reads data for its model parallel group."""
    return torch.distributed.get_rank() == _source()


def _group() -> Any:
    return parallel_state.get_model_parallel_group()


def _source() -> int:
    return torch.distributed.get_process_group_ranks(_group())[0]


def share(read: Callable[[], list[Sample]] | None, device: torch.device) -> list[Sample]:
    """`read()` on the reading rank, its samples (without pixels) on all; a ValueError of the reader becomes a RunError on every rank.

    Latents travel as one float32 tensor; clips, names and keys beside it.
    """
    samples: list[Sample] = []
    header: list[Any] = [None]
    if is_reader():
        assert read is not None
        try:
            samples = read()
            header = [[(s.key, s.name, s.clips, tuple(s.mean.shape), s.logvar is not None) for s in samples]]
        except ValueError as error:
            header = [str(error)]
    if torch.distributed.get_world_size(_group()) > 1:
        torch.distributed.broadcast_object_list(header, _source(), group=_group())
    if isinstance(header[0], str):
        raise distributed.RunError(header[0])
    if torch.distributed.get_world_size(_group()) == 1:
        return [replace(sample, pixels=None) for sample in samples]

    sizes = [torch.Size(shape).numel() * (2 if posterior else 1) for _, _, _, shape, posterior in header[0]]
    if is_reader():
        parts = [part.flatten() for s in samples for part in ((s.mean,) if s.logvar is None else (s.mean, s.logvar))]
        flat = torch.cat(parts).float().to(device)
    else:
        flat = torch.empty(sum(sizes), device=device)
    torch.distributed.broadcast(flat, _source(), group=_group())
    received = []
    for (key, name, clips, shape, posterior), part in zip(header[0], flat.cpu().split(sizes)):
        both = part.reshape(-1, *shape)
        received.append(Sample(key=key, name=name, mean=both[0], logvar=both[1] if posterior else None, clips=tuple(clips)))
    return received
