"""Encoding shared by the ranks of a replica: frames go out as bytes, each rank encodes its part, and all get all
latents.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..codec.base import Codec
from ..data.encoding import Call, Video, calls_of, deal_calls, encode_calls, is_encoded, join_calls, pack_frames
from ..data.loader import Loader
from ..data.plans import Sample
from ..errors import PeerFailed, is_user_error, one_line
from ..objective.base import Objective
from ..platforms.together import Failure
from .feed import StepData, broadcast_samples, is_reader, ranks_of


class Shared(NamedTuple):
    """Samples with latents, what the reader says of them, and the seconds that encoding took: what the reader needed
    alone, or from its frames to latents on this rank.
    """

    samples: list[Sample]
    note: Any
    encode_time: float


def step_data(loader: Loader | None, codec: Codec, group: Any, objective: Objective) -> StepData:
    """The next step of the reading rank's loader, on all ranks of `group`, which share it."""

    def read() -> tuple[list[Sample], Any]:
        assert loader is not None
        before = loader.rejections.counts.copy()
        rows = next(loader)
        note = [(len(row.samples), row.length) for row in rows], dict(loader.rejections.counts - before)
        return [sample for row in rows for sample in row.samples], note

    samples, (shapes, rejected), encode_time = share_samples(read if loader is not None else None, codec, group)
    rest = iter(samples)
    rows = [objective.prepare(list(itertools.islice(rest, count)), length) for count, length in shapes]
    return StepData([sample for sample in samples if sample.scored], rows, rejected, encode_time)


def share_samples(read: Callable[[], tuple[list[Sample], Any]] | None, codec: Codec, group: Any) -> Shared:
    """`feed.broadcast_samples` of samples, of which some may be frames still: all ranks of `group` encode these.

    read: of the reading rank, the first of `group`.  What one rank raises, `read` included, it raises here, and the
    others of `group` PeerFailed.  Latents are those that the codec gives of each video alone, from the same calls.
    """
    parcels: list[Tensor] = []

    def read_frames() -> tuple[list[Sample], Any]:
        # What may fail on this rank alone comes before the others learn that there is something to do.
        assert read is not None
        samples, note = read()
        pixels = {n: s.pixels for n, s in enumerate(samples) if s.pixels is not None and not is_encoded(s)}
        videos: dict[int, Any] = {number: frames.shape[:3] for number, frames in pixels.items()}
        shares = deal_calls(calls_of(list(videos.values()), codec), group.size())
        parcels.extend(pack_frames(share, list(pixels.values())) for share in shares)
        return samples, (note, videos)

    samples, told = broadcast_samples(read_frames if is_reader() else None, torch.device("cpu"), [group])
    note, videos = told
    if not videos:
        return Shared(samples, note, sum(sample.encode_time for sample in samples))
    started = time.perf_counter()
    latents = _encode(list(videos.values()), parcels, codec, group)
    for number, parts in zip(videos, latents):
        mean, logvar = parts if len(parts) == 2 else (parts[0], None)
        samples[number] = replace(samples[number], mean=mean, logvar=logvar)
    return Shared(samples, note, time.perf_counter() - started)


def _encode(videos: list[Video], parcels: list[Tensor], codec: Codec, group: Any) -> list[list[Tensor]]:
    """Of each video the mean, and the log-variance where the codec has one; a collective of `group`."""
    shares = deal_calls(calls_of(videos, codec), group.size())
    mine = shares[group.rank()]
    frames = _hand_out(shares, parcels, group)
    made: list[list[Tensor]] = []
    failed: BaseException | None = None
    try:
        made = encode_calls(mine, frames, codec)
    except BaseException as error:  # noqa: BLE001  (raised when the others know)
        failed = error
    parts = _agree(len(made[0]) if made else 0, failed, group)
    every = _gather([tensor for latents in made for tensor in latents], shares, parts, group)
    return join_calls([pair for share, its in zip(shares, every) for pair in zip(share, its)], len(videos))


def _hand_out(shares: list[list[Call]], parcels: list[Tensor], group: Any) -> Tensor:
    """This rank's frames, from the first rank of the group; ranks without calls are left alone."""
    ranks = ranks_of(group)
    if group.rank() == 0:
        sends = [
            torch.distributed.isend(parcel, rank, group=group)
            for rank, parcel in zip(ranks[1:], parcels[1:])
            if len(parcel)
        ]
        for send in sends:
            assert send is not None
            send.wait()
        return parcels[0]
    frames = torch.empty(sum(call.bytes for call in shares[group.rank()]), dtype=torch.uint8)
    if len(frames):
        torch.distributed.recv(frames, ranks[0], group=group)
    return frames


def _agree(parts: int, failed: BaseException | None, group: Any) -> int:
    """How many tensors a call gives, which ranks without calls do not know; raises on all ranks where one has
    failed.
    """
    mine = None
    if failed is not None:
        mine = Failure(torch.distributed.get_rank(), is_user_error(failed), one_line(failed))
    told: list[Any] = [None] * group.size()
    torch.distributed.all_gather_object(told, (parts, mine), group=group)
    if failed is not None:
        raise failed
    for failure in (failure for _, failure in told if failure is not None):
        raise PeerFailed(failure.rank, f"rank {failure.rank} failed: {failure.text}")
    return max(count for count, _ in told)


def _gather(mine: list[Tensor], shares: list[list[Call]], parts: int, group: Any) -> list[list[list[Tensor]]]:
    """Of each rank, for each of its calls, the tensors that it gives; mine: this rank's, one after another."""
    sizes = [[torch.Size(call.shape).numel() for call in share for _ in range(parts)] for share in shares]
    longest = max(map(sum, sizes))
    flat = torch.zeros(longest)
    if mine:
        torch.cat([tensor.flatten() for tensor in mine], out=flat[: sum(sizes[group.rank()])])
    every = [torch.empty(longest) for _ in shares]
    torch.distributed.all_gather(every, flat, group=group)
    found = []
    for share, own, values in zip(shares, sizes, every):
        rest = iter(values[: sum(own)].split(own))
        found.append([[next(rest).view(call.shape) for _ in range(parts)] for call in share])
    return found
