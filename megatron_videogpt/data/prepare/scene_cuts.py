"""Cutting videos where the picture changes at once, without encoding anything again: pieces are runs of the source's
own packets.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import av
import numpy as np

from ...errors import UserError
from ..bad import BadVideo
from ..decode import find_frames
from ..video.access import sequential
from ..video.container import DEFAULTS, Limits, Video, check_size, clear_errors, identity, name_of, opened
from ..video.times import Times

THRESHOLD = 27.0  # PySceneDetect's own default for ContentDetector
DETECTION_WIDTH = 256  # pixels to which pictures are brought before they are compared, as PySceneDetect does
MUXERS = {
    ".mp4": "mp4",
    ".m4v": "mp4",
    ".mov": "mov",
    ".webm": "webm",
    ".avi": "avi",
}  # all else goes into Matroska, which takes nearly every codec


@dataclass(frozen=True)
class Piece:
    """A scene, or what can be taken out of it.  first, frames: in the source's numbers; start, end: seconds after the
    source's first frame.
    """

    first: int
    frames: int
    start: float
    end: float
    suffix: str
    data: bytes


@dataclass(frozen=True)
class _Packets:
    """Packets in decoding order.  number: frame numbers int64 (-1: not shown); key: bool; times: seconds by frame
    number, and the end as one more.
    """

    number: np.ndarray
    key: np.ndarray
    times: np.ndarray


def require_scenedetect() -> None:
    """ValueError, one line, when PySceneDetect is not there."""
    try:
        import scenedetect.common  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"--scenes needs PySceneDetect 0.7 or newer ({error}); pip install scenedetect-headless"
        ) from error


def cut_scenes(
    video: Video, suffix: str, min_frames: int, threshold: float = THRESHOLD, limits: Limits = DEFAULTS
) -> list[Piece]:
    """Scenes of a video as files of their own, without sound.

    A piece begins at its scene's first key frame to which no later frame refers back, and ends at the last packet up to
    which nothing is missing: frames before and after, which could be kept by encoding only, are left out.

    Args:
        video: path or bytes.
        suffix: of the source's name, with its dot; it chooses the container.
        min_frames: shorter pieces are dropped.
        threshold: of `detect_cuts`.
        limits: see `Limits`.

    Raises:
        BadVideo: unreadable.
    """
    identity(video, limits)
    with clear_errors(video):
        packets = _packets(video, limits)
        cuts = detect_cuts(video, threshold, limits)
        runs = piece_runs(packets.number, packets.key, cuts)
        runs = [run for run in runs if run[1] - run[0] >= min_frames]
        return list(_remux(video, suffix, runs, packets, limits))


def detect_cuts(video: Video, threshold: float = THRESHOLD, limits: Limits = DEFAULTS) -> list[int]:
    """Numbers of the frames that begin a new scene (0 is not among them), by PySceneDetect's ContentDetector.

    Args:
        video: path or bytes.
        threshold: mean change of hue, saturation and brightness (0..255) from one frame to the next that makes a cut.
        limits: see `Limits`.

    Raises:
        BadVideo: a frame cannot be decoded.
    """
    import cv2
    from scenedetect.common import FrameTimecode
    from scenedetect.detectors import ContentDetector

    cv2.setNumThreads(1)  # several videos are looked at side by side
    # Every change counts, flashes too: what lies between two of them is too short for a sample anyway.
    detector = ContentDetector(threshold=threshold, min_scene_len=0)
    cuts: list[int] = []
    count = 0
    with clear_errors(video), opened(video, limits, 1) as source:
        for count, frame in enumerate(sequential(source), 1):
            check_size(video, frame.width, frame.height, limits)
            factor = max(1, round(frame.width / DETECTION_WIDTH))
            picture = frame.to_ndarray(
                width=max(1, frame.width // factor), height=max(1, frame.height // factor), format="bgr24"
            )
            cuts += [cut.frame_num for cut in detector.process_frame(FrameTimecode(count - 1, 25.0), picture)]
    if not count:
        raise BadVideo(name_of(video), "no frame in it", "no_frames")
    return [cut for cut in cuts if cut]


def piece_runs(number: np.ndarray, key: np.ndarray, cuts: Sequence[int]) -> list[tuple[int, int]]:
    """Packets [first, last) of the piece of every scene that has one, in order.

    Args:
        number: frame number of every packet in decoding order (int64, -1: not shown).
        key: which of them are key frames (bool).
        cuts: frame numbers that begin scenes, ascending.
    """
    runs = []
    later = np.minimum.accumulate(np.append(number, np.iinfo(np.int64).max)[::-1])[::-1][1:]
    closed = np.flatnonzero(key & (number >= 0) & (later > number))
    for start, end in zip([0, *cuts], [*cuts, int(number.max()) + 1]):
        first = next((int(packet) for packet in closed if start <= number[packet] < end), None)
        if first is None:
            continue
        highest = np.maximum.accumulate(number[first:])
        inside = highest < end
        complete = inside & (highest - number[first] == np.arange(len(highest)))
        if complete.any():
            runs.append((first, first + int(np.flatnonzero(complete)[-1]) + 1))
    return runs


def _packets(video: Video, limits: Limits) -> _Packets:
    table, _ = find_frames(video, limits)
    stamps: list[int | None] = []
    keys = []
    with opened(video, limits, 1) as source:
        for packet in source.packets():
            stamps.append(packet.pts)
            keys.append(packet.is_keyframe)
        base = float(source.stream.time_base or 0)
    if isinstance(table, Times):
        times = (table.times - table.times[0]) * base
        return _Packets(
            np.searchsorted(table.times, np.array(stamps, np.int64)),
            np.array(keys),
            np.append(times, times[-1] + 1 / table.fps),
        )
    number = np.full(len(stamps), -1, np.int64)
    known = np.flatnonzero(table.packets >= 0)
    number[table.packets[known]] = known
    return _Packets(number, np.array(keys), np.arange(table.count + 1) / table.fps)


def _remux(
    video: Video, suffix: str, runs: Sequence[tuple[int, int]], packets: _Packets, limits: Limits
) -> Iterator[Piece]:
    """The pieces' files, with time stamps from 0, in one pass over the source."""
    if not runs:
        return
    target = suffix if suffix in MUXERS else ".mkv"
    waiting = iter(runs)
    first, last = next(waiting)
    taken: list = []
    with opened(video, limits, 1) as source:
        for position, packet in enumerate(source.packets()):
            if first <= position < last:
                taken.append(packet)
            if position + 1 < last:
                continue
            yield _piece(taken, source.stream, target, packets, first, last)
            taken = []
            first, last = next(waiting, (0, 0))
            if not last:
                return


def _piece(taken: list, stream, suffix: str, packets: _Packets, first: int, last: int) -> Piece:
    # Without bitexact Matroska writes random numbers and all write FFmpeg's version: equal input must give equal bytes.
    file = io.BytesIO()
    with av.open(file, "w", format=MUXERS.get(suffix, "matroska"), options={"fflags": "+bitexact"}) as output:
        copy = output.add_stream_from_template(stream)
        copy.time_base = stream.time_base
        shift = taken[0].pts if taken[0].pts is not None else taken[0].dts or 0
        for packet in taken:
            packet.pts, packet.dts = (None if stamp is None else stamp - shift for stamp in (packet.pts, packet.dts))
            packet.stream = copy
            output.mux(packet)
    number = int(packets.number[first])
    count = last - first
    return Piece(
        number, count, float(packets.times[number]), float(packets.times[number + count]), suffix, file.getvalue()
    )
