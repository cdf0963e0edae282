"""Decoding and nothing else, in as many processes: what `benchmark_data.py` compares the loader with."""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from megatron_videogpt.codec.build import build_codec
from megatron_videogpt.codec.options import CodecConfig
from megatron_videogpt.config.schema_data import DataConfig
from megatron_videogpt.data.decode import read_clip
from megatron_videogpt.data.video.container import Blob
from megatron_videogpt.data.video.pictures import resize_frames


class NoEncoder:
    """The tiny codec's shape without its work: what is read goes through the loader as it does for an encoder on an
    accelerator.
    """

    device = torch.device("meta")

    def __init__(self) -> None:
        codec = build_codec(CodecConfig())
        self.name, self.fingerprint, self.channels = codec.name, codec.fingerprint, codec.channels
        self.spatial_stride, self.temporal_stride = codec.spatial_stride, codec.temporal_stride

    def encode(self, video: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Zeros of the latents' shape."""
        return torch.zeros(
            len(video), self.channels, video.shape[2] // self.spatial_stride, video.shape[3] // self.spatial_stride
        ), None


@dataclass(frozen=True)
class Clip:
    """What bare PyAV decodes: frame numbers of a video file.  table: see `VideoInfo`; ours has it from an index."""

    path: str
    frames: tuple[int, ...]
    table: bytes = b""


def decode_bare(clip: Clip, longest_side: int, multiple: int) -> np.ndarray:
    """uint8 [F, h, w, 3]: PyAV's own way, with frame numbers taken from times and the average rate."""
    pictures: list[np.ndarray] = []
    with av.open(clip.path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        base, rate = stream.time_base, stream.average_rate or stream.guessed_rate
        assert base and rate
        begin = stream.start_time or 0
        container.seek(begin + int(clip.frames[0] / rate / base), stream=stream)
        for frame in container.decode(stream):
            if frame.pts is not None and (frame.pts - begin) * base * rate >= clip.frames[len(pictures)] - 0.5:
                pictures.append(resize_frames(frame.to_ndarray(format="rgb24")[None], longest_side, multiple)[0])
                if len(pictures) == len(clip.frames):
                    break
    return np.stack(pictures)


def reader_by_bare(clips: list[Clip], longest_side: int, multiple: int, rounds: int) -> list[float]:
    """Speed of our reader (`read_clip`) by that of bare PyAV in each round: one process, the same clips in turn, and
    nothing handed over to anybody.
    """
    ratios = []
    blobs = {clip.path: Blob(clip.path, Path(clip.path).read_bytes()) for clip in clips}
    for _ in range(rounds):
        seconds = [0.0, 0.0]
        for clip in clips:
            started = time.perf_counter()
            decode_bare(clip, longest_side, multiple)
            between = time.perf_counter()
            read_clip(blobs[clip.path], clip.frames, longest_side, multiple, table=clip.table)
            seconds[0] += between - started
            seconds[1] += time.perf_counter() - between
        ratios.append(seconds[0] / seconds[1])
    return ratios


def work_bare(clips: list[Clip], longest_side: int, multiple: int, rounds: Any, next_one: Any, done: Any) -> None:
    """A process: rounds over the clips, which it takes from the same list as the others."""
    torch.set_num_threads(1)
    while True:
        rounds.wait()
        frames = 0
        while True:
            with next_one.get_lock():
                number = next_one.value
                next_one.value += 1
            if number >= len(clips):
                break
            frames += len(decode_bare(clips[number], longest_side, multiple))
        done.put(frames)


class Bare:
    """Processes that decode the clips when they are told to."""

    def __init__(self, clips: list[Clip], workers: int, config: DataConfig) -> None:
        context = multiprocessing.get_context("forkserver")
        self.rounds, self.next_one, self.done, self.workers = (
            context.Barrier(workers + 1),
            context.Value("q", 0),
            context.Queue(),
            workers,
        )
        given = (clips, config.longest_side, config.size_multiple, self.rounds, self.next_one, self.done)
        self.processes = [context.Process(target=work_bare, args=given, daemon=True) for _ in range(workers)]
        for process in self.processes:
            process.start()

    def rate(self) -> float:
        """Frames per second of one round."""
        self.next_one.value = 0
        self.rounds.wait()
        started = time.perf_counter()
        frames = sum(self.done.get() for _ in range(self.workers))
        return frames / (time.perf_counter() - started)

    def close(self) -> None:
        """End the processes."""
        for process in self.processes:
            process.terminate()
            process.join()
