"""Random access to the frames of a video: from the last packet before them that decoding can begin with, or, where that
does not do, from the start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache

import av
import numpy as np
from av.video.frame import PictureType

from ..bad import BadVideo
from .container import Blob, Limits, Opened, Video, check_count, check_size, identity, name_of, opened
from .display import PLAIN
from .learned import Entry, Learned, numbered_from, unpack
from .times import Times, read_times

Table = Times | Learned
Convert = Callable[[Opened, av.VideoFrame], np.ndarray]


class OtherOrder(BadVideo):
    """Decoding gives frames in another order than their times say."""


def decode(
    video: Video, wanted: list[int], limits: Limits, threads: int, convert: Convert, packed: bytes = b""
) -> tuple[Table | None, dict[int, np.ndarray]]:
    """Decode the frames with the given numbers.

    Args:
        wanted: ascending numbers.
        convert: what is kept of a frame.
        packed: see `Learned.pack`; used where nothing is remembered of the file.

    Returns:
        Where frames are, or None where only decoding all of the file can tell; and what was kept, by number.

    Raises:
        BadVideo: frames missing or damaged, or `OtherOrder`.
        av.FFmpegError, OSError and others that `clear_errors` knows.
    """
    remembered = _remembered(*identity(video, limits))
    table = remembered[0] if remembered else None
    # Who read the file before may have had no table.
    if table is None and packed:
        table = unpack(packed, video, limits)
    with opened(video, limits, threads) as source:
        if table is None and not remembered:
            table = read_times(video, source, limits)
        remember(video, limits, table)
        check_count(video, 0 if table is None else table.count, limits)
        if table is not None and wanted[-1] >= table.count:
            raise too_short(video, wanted[-1], table.count)
        found = _from_entry(video, source, wanted, table, limits, convert) if table is not None else {}
        if len(found) == len(wanted):
            return table, found
    with opened(video, limits, threads) as source:
        return table, _from_start(video, source, wanted, table, limits, convert)


def plain_times(video: Video, limits: Limits) -> np.ndarray | None:
    """Presentation times of all frames in seconds, float64; None where times do not tell which frame is which, or where
    a container has pictures cropped or stretched before they are shown.  Raises what `decode` does.
    """
    remembered = _remembered(*identity(video, limits))
    with opened(video, limits, 1) as source:
        table = remembered[0] if remembered else read_times(video, source, limits)
        remember(video, limits, table)
        if not isinstance(table, Times) or source.display != PLAIN or not source.stream.time_base:
            return None
        return table.times * float(source.stream.time_base)


def too_short(video: Video, wanted: int, count: int) -> BadVideo:
    """What is raised for a frame behind the last one."""
    return BadVideo(name_of(video), f"frame {wanted} asked for, but it has {count} frames", "too_short")


def _from_start(
    video: Video, source: Opened, wanted: list[int], table: Table | None, limits: Limits, convert: Convert
) -> dict[int, np.ndarray]:
    """Wanted frames by counting."""
    found: dict[int, np.ndarray] = {}
    needed = set(wanted)
    count = -1
    for count, frame in enumerate(sequential(source)):
        if isinstance(table, Times) and frame.pts != table.times[min(count, table.count - 1)]:
            raise OtherOrder(
                name_of(video),
                f"frame {count} comes at time {frame.pts}, which is not what the packets say",
            )
        if count in needed:
            if frame.is_corrupt:
                raise BadVideo(name_of(video), f"frame {count} is damaged")
            check_size(video, frame.width, frame.height, limits)
            found[count] = convert(source, frame)
        if count == wanted[-1]:
            return found
    if count < 0:
        raise BadVideo(name_of(video), "no frames", "no_frames")
    if table is None:
        raise too_short(video, wanted[-1], count + 1)
    missing = next(index for index in wanted if index not in found)
    raise BadVideo(name_of(video), f"frame {missing} could not be decoded (truncated or damaged file?)")


def sequential(source: Opened) -> Iterator[av.VideoFrame]:
    """All frames of an open video.  Packets refused before the first one lean on what a cut took away."""
    context = source.stream.codec_context
    begun = False
    refused: av.FFmpegError | None = None
    for packet in source.packets():
        try:
            frames = context.decode(packet)
        except av.FFmpegError as error:
            if begun:
                raise
            refused = error
            continue
        begun = begun or bool(frames)
        yield from frames
    frames = context.decode(None)
    if refused is not None and not begun and not frames:
        raise refused
    yield from frames


def _from_entry(
    video: Video, source: Opened, wanted: list[int], table: Table, limits: Limits, convert: Convert
) -> dict[int, np.ndarray]:
    """Wanted frames by decoding from the last entry before them; not all of them where that does not do."""
    place = int(np.searchsorted(table.entries[:, 0], wanted[0], "right")) - 1
    if place < 0:
        return {}
    entry = tuple(table.entries[place].tolist())
    # Some formats are sought by presentation times, some by decoding times.
    for time in dict.fromkeys(entry[1:3] if isinstance(table, Times) else entry[2:3]):
        found: dict[int, np.ndarray] = {}
        try:
            source.container.seek(time, stream=source.stream)
            frames = (
                _by_time(source, table, entry, wanted)
                if isinstance(table, Times)
                else _by_packet(source, table, entry, wanted)
            )
            for number, frame in frames:
                if not frame.is_corrupt:
                    check_size(video, frame.width, frame.height, limits)
                    found[number] = convert(source, frame)
                if number == wanted[-1]:
                    break
        except (av.FFmpegError, OSError):
            continue
        if len(found) == len(wanted):
            return found
    return {}


def _by_packet(source: Opened, table: Learned, entry: Entry, wanted: list[int]) -> Iterator[tuple[int, av.VideoFrame]]:
    """(number, frame) of the wanted frames, decoding from an entry on."""
    number_of = {int(table.packets[number]): number for number in wanted}
    for packet, frame in numbered_from(source, entry):
        if packet in number_of:
            yield number_of[packet], frame


def _by_time(
    source: Opened, table: Times, entry: tuple[int, ...], wanted: list[int]
) -> Iterator[tuple[int, av.VideoFrame]]:
    """(number, frame) of the wanted frames, decoding from an entry on; nothing where its own frame does not come, or
    leans on others.
    """
    number_of = {int(table.times[number]): number for number in wanted}
    begun = False

    def packets() -> Iterator[av.Packet]:
        met = False
        for packet in source.packets():
            met = met or packet.pts == entry[1]
            if met:
                yield packet

    for frame in source.frames(packets()):
        begun = begun or (frame.pts == entry[1] and (frame.key_frame or frame.pict_type == PictureType.I))
        if begun and frame.pts in number_of:
            yield number_of[frame.pts], frame


@lru_cache(maxsize=64)
def _remembered(path: str, size: int, modified: int) -> list[Table | None]:
    """Where the first reader of a file leaves what it found out for the next (bytes leave nothing)."""
    return []


def forget() -> None:
    """Forget what this process found out about files."""
    _remembered.cache_clear()


def remember(video: Video, limits: Limits, table: Table | None) -> None:
    """Keep what was found out about a file for its next reader in this process."""
    if not isinstance(video, Blob):
        _remembered(*identity(video, limits))[:] = [table]
