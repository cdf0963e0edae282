"""Videos for the tests: three real clips (`tests/videos`), and what is made of them here, for other containers and
shapes.

`MVG_VIDEOS` may name a folder of more videos, on which the tests that hold for any video run too.
"""

from __future__ import annotations

import itertools
import os
import shutil
import struct
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

HERE = Path(__file__).resolve().parent / "videos"
TRAILER, CARS, BIRD = "bbb_trailer_cuts.mp4", "intel_cars.mp4", "intel_sign_bird.mkv"
REAL = (TRAILER, CARS, BIRD)
CINEPAK, ODD, SOUND = "cinepak.avi", "odd_height.mov", "sound.webm"
SMALL, TALL, SCENES = "cars_small.mp4", "tall.mp4", "scenes.mp4"
MADE = (CINEPAK, ODD, SOUND, SMALL, TALL, SCENES)
EVERY_CONTAINER = (CINEPAK, BIRD, ODD, SOUND, SMALL)
SHOTS = (30, 46, 61, 50, 55, 8)
"""Frames of each shot of `SCENES`, all of which begin with a key frame."""
CLAIMED_FRAMES = 444
"""What the header of `CINEPAK` says of its 68 frames."""
_SUFFIXES = (".avi", ".mkv", ".mov", ".mp4", ".webm")


def more() -> dict[str, Path]:
    """The videos of `MVG_VIDEOS` by their names below it, without those that are here anyway."""
    folder = Path(os.environ.get("MVG_VIDEOS") or HERE)
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix in _SUFFIXES and path.name not in (*REAL, *MADE)]
    return {path.relative_to(folder).as_posix(): path.resolve() for path in paths}


def collect(folder: Path) -> Path:
    """Put the real and the made clips into `folder`, and links to those of `MVG_VIDEOS`; returns `folder`."""
    for name in REAL:
        shutil.copyfile(HERE / name, folder / name)
    for name, path in more().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(path)
    make(folder)
    return folder


def pictures(name: str, first: int, count: int, width: int, height: int) -> Iterator[np.ndarray]:
    """Frames of a real clip from frame `first` on: uint8 ``[height, width, 3]``; it plays backwards after its end."""
    with av.open(str(HERE / name)) as container:
        frames = list(itertools.islice(container.decode(video=0), first, first + count))
    around = 2 * len(frames) - 2
    for number in range(count):
        step = number % around
        yield frames[min(step, around - step)].to_ndarray(format="rgb24", width=width, height=height)


def encode(
    path: Path,
    codec: str,
    rate: Fraction,
    frames: Sequence[np.ndarray],
    pixels: str = "yuv420p",
    keys: Sequence[int] = (),
    sound: str = "",
    ticks: int = 1,
    options: Mapping[str, str] | None = None,
) -> None:
    """Write a video.

    keys: numbers of frames that must be key frames.  sound: codec of a tone, none where empty.
    ticks: units of time a frame, of which the last frame takes one only.
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=dict(options or {}))
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixels
        stream.codec_context.time_base = 1 / (rate * ticks)
        # One thread: the same bytes read_on_all_ranks.
        stream.codec_context.thread_count = 1
        tone = container.add_stream(sound, rate=48000) if sound else None
        packets = []
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number * ticks, 1 / (rate * ticks)
            if number in keys:
                frame.pict_type = av.video.frame.PictureType.I
            packets += stream.encode(frame)
        packets += stream.encode(None)
        packets[-1].duration = 1
        container.mux(packets)
        if tone is not None:
            _sing(container, tone, len(frames) / float(rate))


def _sing(container: av.container.OutputContainer, stream: av.AudioStream, seconds: float) -> None:
    samples = np.sin(np.arange(int(48000 * seconds)) * (2 * np.pi * 440 / 48000)).astype(np.float32)
    for first in range(0, len(samples), 960):
        both = np.repeat(samples[None, first : first + 960], 2, 0)
        frame = av.AudioFrame.from_ndarray(both, format="fltp", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = 48000, first, Fraction(1, 48000)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def make(folder: Path) -> None:
    """All of `MADE`: small, and seconds of work."""
    frames = list(pictures(BIRD, 0, 68, 160, 128))
    encode(folder / CINEPAK, "cinepak", Fraction(15), frames, "rgb24", options={"max_strips": "1", "g": "25"})
    overstate(folder / CINEPAK)
    encode(folder / ODD, "mpeg4", Fraction(24), list(pictures(BIRD, 0, 62, 320, 233)), sound="aac", ticks=25)
    frames, options = list(pictures(TRAILER, 40, 110, 320, 180)), {"g": "74", "deadline": "realtime"}
    encode(folder / SOUND, "libvpx", Fraction(24), frames, sound="libopus", options=options)
    frames = list(pictures(CARS, 0, 120, 176, 144))
    encode(folder / SMALL, "libx264", Fraction(30000, 1001), frames, options={"bf": "3"})
    encode(folder / TALL, "libx264", Fraction(20), list(pictures(BIRD, 0, 100, 144, 256)))
    sources = ((TRAILER, 60), (CARS, 0), (BIRD, 0), (TRAILER, 150), (CARS, 200), (BIRD, 20))
    shots = [list(pictures(name, first, count, 320, 136)) for (name, first), count in zip(sources, SHOTS)]
    frames = [frame for shot in shots for frame in shot]
    keys, options = [0, *np.cumsum(SHOTS[:-1]).tolist()], {"x264-params": "scenecut=0:keyint=250"}
    encode(folder / SCENES, "libx264", Fraction(25), frames, keys=keys, options=options)


def overstate(path: Path) -> None:
    """Make the stream's header of an AVI claim `CLAIMED_FRAMES` frames."""
    data = bytearray(path.read_bytes())
    place = data.index(b"strh") + 8 + 32
    data[place : place + 4] = struct.pack("<I", CLAIMED_FRAMES)
    path.write_bytes(data)
