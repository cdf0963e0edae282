"""Frames by the packets they come from, learned by decoding a whole file once: for files whose times do not tell which
frame is which (AVI, MPEG-PS, raw streams, fields, cuts, edit lists).
"""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import av
import numpy as np

from ..bad import BadVideo
from .container import Limits, Opened, Video, check_count, check_size, identity, name_of, opened

GAP = 12  # frames from one entry to the next
COMPARED = 2  # frames after each entry
HEAD = struct.Struct("<4sQdII")  # mark, bytes of the video, frames a second, frames, entries
MARK = b"MVF1"
Entry = tuple[int, int, int, int, int]
"""A row of `Learned.entries`."""


@dataclass(frozen=True, eq=False)
class Learned:
    """Where frames are in a file that was decoded once.

    packets: int32, of each frame the number of the packet that it came from, in the order of the file; entries: int64
    [n, 5], of each packet that decoding can begin with: its frame's number, its own number, its decoding time (by which
    it is sought), place in the file and size (by which it is known again); fps: frames a second; size: bytes of the
    file.
    """

    packets: np.ndarray
    entries: np.ndarray
    fps: float
    size: int

    @property
    def count(self) -> int:
        """Number of frames."""
        return len(self.packets)

    def pack(self) -> bytes:
        """For an index."""
        head = HEAD.pack(MARK, self.size, self.fps, len(self.packets), len(self.entries))
        steps = np.diff(self.packets, prepend=np.int32(0)).astype("<i4")
        return head + zlib.compress(steps.tobytes() + np.diff(self.entries, axis=0, prepend=0).astype("<i8").tobytes())


def unpack(data: bytes, video: Video, limits: Limits) -> Learned | None:
    """What `Learned.pack` gave; None where it is damaged, or of another video."""
    try:
        mark, size, fps, frames, entries = HEAD.unpack_from(data)
        if mark != MARK or size != identity(video, limits)[1] or frames > limits.frames or entries > frames:
            return None
        wanted = 4 * frames + 40 * entries
        inflate = zlib.decompressobj()
        rows = inflate.decompress(data[HEAD.size :], wanted + 1)
    except (struct.error, zlib.error):
        return None
    if len(rows) != wanted or not inflate.eof:
        return None
    packets = np.frombuffer(rows, "<i4", frames).cumsum(dtype=np.int32)
    table = np.frombuffer(rows, "<i8", 5 * entries, 4 * frames).reshape(entries, 5).cumsum(0)
    return Learned(packets, table, fps, size)


@dataclass
class _Pass:
    """A whole sequential decode.  packets: (presentation time, decoding time, place, size, key) of each; frames: number
    of its packet for each, -1 where the decoder lost it; sums: checksums of key frames and of those after them, by
    number.
    """

    packets: list[tuple[int | None, int | None, int, int, bool]]
    frames: list[int]
    sums: dict[int, int]
    fps: float


def learn(video: Video, limits: Limits) -> Learned:
    """Decode a whole file and note where its frames come from.

    A packet that the decoder refuses gives no frame, as in FFmpeg's own programs.  An entry is kept only when decoding
    from there gave the very pictures that decoding from the start gave.

    Raises:
        BadVideo: over the limits, or not a single frame.
    """
    whole = _decode_all(video, limits)
    entries = _entries(whole)
    kept = [entry for entry, good in zip(entries, _try(video, limits, whole, entries)) if good]
    table = np.array(kept, np.int64).reshape(-1, 5)
    return Learned(np.array(whole.frames, np.int32), table, whole.fps, identity(video, limits)[1])


def _decode_all(video: Video, limits: Limits) -> _Pass:
    whole = _Pass([], [], {}, 0.0)
    refused: av.FFmpegError | None = None
    with opened(video, limits, 1) as source:
        context = source.stream.codec_context
        for packet in chain(source.packets(), [None]):
            if packet is not None:
                place = -1 if packet.pos is None else packet.pos
                whole.packets.append((packet.pts, packet.dts, place, packet.size, packet.is_keyframe))
                packet.pts = len(whole.packets) - 1
            try:
                frames = context.decode(packet)
            except av.FFmpegError as error:
                refused = error
                continue
            for frame in frames:
                check_size(video, frame.width, frame.height, limits)
                _note(whole, frame)
                check_count(video, len(whole.frames), limits)
        whole.fps = _rate(source, [whole.packets[number][0] for number in whole.frames if number >= 0])
    if not whole.frames:
        raise refused or BadVideo(name_of(video), "no frames", "no_frames")
    return whole


def _note(whole: _Pass, frame: av.VideoFrame) -> None:
    number = -1 if frame.pts is None else int(frame.pts)
    if any(n >= 0 and whole.packets[n][4] for n in (number, *whole.frames[-1:])):
        whole.sums[len(whole.frames)] = checksum(frame)
    whole.frames.append(number)


def checksum(frame: av.VideoFrame) -> int:
    """Of a picture's grey values."""
    return zlib.crc32(frame.to_ndarray(format="gray").tobytes())


def _rate(source: Opened, times: list[int | None]) -> float:
    """Frames a second: by the times of the frames where they ascend, else as the file says."""
    base = source.stream.time_base
    known = [time for time in times if time is not None]
    if "avi" not in source.formats and base and len(known) == len(times) > 1:
        if all(later > earlier for earlier, later in zip(known, known[1:])):
            return float((len(known) - 1) / ((known[-1] - known[0]) * base))
    return float(source.stream.average_rate or source.stream.guessed_rate or 25)


def _entries(whole: _Pass) -> list[Entry]:
    """Key packets, `GAP` frames apart at least, that can be sought and known again; none where two frames come from one
    packet, so that its number tells nothing.
    """
    if len(set(whole.frames)) < len(whole.frames) or -1 in whole.frames:
        return []
    places = Counter(packet[2:4] for packet in whole.packets if packet[4])
    found: list[Entry] = []
    for frame, number in enumerate(whole.frames):
        _, decoded, place, size, key = whole.packets[number]
        far = not found or frame >= found[-1][0] + GAP
        if key and far and decoded is not None and place >= 0 and places[place, size] == 1:
            found.append((frame, number, decoded, place, size))
    return found


def _try(video: Video, limits: Limits, whole: _Pass, entries: list[Entry]) -> Iterator[bool]:
    """Whether decoding from each entry gives the pictures of the sequential decode."""
    position = {number: frame for frame, number in enumerate(whole.frames)}
    with opened(video, limits, 1) as source:
        for entry in entries:
            wanted = {n: whole.sums[n] for n in range(entry[0], entry[0] + COMPARED) if n in whole.sums}
            found: dict[int, int] = {}
            try:
                source.container.seek(entry[2], stream=source.stream)
                for number, frame in numbered_from(source, entry):
                    if position.get(number, -1) >= entry[0]:
                        found[position[number]] = checksum(frame)
                    if len(found) == len(wanted):
                        break
            except (av.FFmpegError, OSError):
                pass
            yield found == wanted


def numbered_from(source: Opened, entry: Entry) -> Iterator[tuple[int, av.VideoFrame]]:
    """(number of its packet, picture), from the packet of an entry on; nothing where that does not come any more."""
    number = -1

    def packets() -> Iterator[av.Packet]:
        nonlocal number
        for packet in source.packets():
            if number < 0 and (packet.pos, packet.size) != entry[3:]:
                continue
            number = entry[1] if number < 0 else number + 1
            packet.pts = number
            yield packet

    for picture in source.frames(packets()):
        yield (-1 if picture.pts is None else int(picture.pts)), picture
