"""Samples to every rank that works on them (TP x CP x PP): one rank reads and encodes, the others receive latents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from megatron.core import parallel_state

from ..data.clips import Sample
from . import distributed


def is_reader() -> bool:
    """Whether this rank reads data for the ranks that share its samples: the first one of all but the data parallel axis."""
    context = parallel_state.get_context_parallel_rank()
    return _is_first() and context == 0


def _is_first() -> bool:
    return torch.distributed.get_rank() == _ranks(parallel_state.get_model_parallel_group())[0]


def _ranks(group: Any) -> list[int]:
    return torch.distributed.get_process_group_ranks(group)


def _groups() -> list[Any]:
    """The way of the samples: over context parallel ranks first, then from each of these to its tensor and pipeline parallel ranks."""
    first, second = parallel_state.get_context_parallel_group(), parallel_state.get_model_parallel_group()
    return [group for group, here in ((first, _is_first()), (second, True)) if here and group.size() > 1]


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
    groups = _groups()
    for group in groups:
        torch.distributed.broadcast_object_list(header, _ranks(group)[0], group=group)
    if isinstance(header[0], str):
        raise distributed.RunError(header[0])
    if is_reader() and not groups:
        return [replace(sample, pixels=None) for sample in samples]

    sizes = [torch.Size(shape).numel() * (2 if posterior else 1) for _, _, _, shape, posterior in header[0]]
    if is_reader():
        parts = [part.flatten() for s in samples for part in ((s.mean,) if s.logvar is None else (s.mean, s.logvar))]
        flat = torch.cat(parts).float().to(device)
    else:
        flat = torch.empty(sum(sizes), device=device)
    for group in groups:
        torch.distributed.broadcast(flat, _ranks(group)[0], group=group)
    received = []
    for (key, name, clips, shape, posterior), part in zip(header[0], flat.cpu().split(sizes)):
        both = part.reshape(-1, *shape)
        received.append(Sample(key=key, name=name, mean=both[0], logvar=both[1] if posterior else None, clips=tuple(clips)))
    return received
