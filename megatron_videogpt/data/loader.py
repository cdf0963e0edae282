"""Samples in micro-batches, by number: sample g is the same whatever the ranks, micro-batch sizes or loader processes."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from megatron_videogpt.config.schema import DataConfig
from megatron_videogpt.data.clips import Sample
from megatron_videogpt.data.codec import Codec
from megatron_videogpt.data.decode import BadVideo, to_model_range
from megatron_videogpt.data.index import Source, Split

log = logging.getLogger(__name__)

ATTEMPTS = 50  # replacements tried for one sample
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # ask the trainer to save and end
WINDOW = 1000  # samples over which data.max_bad_fraction is taken


class Loader:
    """Iterator over micro-batches (lists of `Sample`) of one data parallel rank; never ends.

    Global sample g maps to (epoch, index) = divmod(g, samples per epoch).  Each global batch of B consecutive samples is dealt to
    the ranks contiguously (rank r takes its samples r*B/dp .. (r+1)*B/dp - 1) and from there into micro-batches, so the same global
    batch forms at any data parallel and micro-batch size.  State is the number of consumed samples and nothing else.

    A sample that cannot be read is named in the log, counted in ``rejected`` and replaced by one that its key determines.

    Args:
        source, codec: from `open_source` and `build_codec`; a codec on an accelerator encodes in this process, one on the CPU in the workers.
        config: workers, prefetch, max_bad_fraction.
        seed: of data order, frames and clips.
        global_batch_size, micro_batch_size, dp_rank, dp_size: samples a step over all ranks, samples per list, this rank.
        consumed: samples (of all ranks) used up by earlier steps.
        keep_pixels: also give each sample's frames.

    Raises:
        ValueError: sizes that do not divide; later, too many bad samples.
    """

    def __init__(
        self,
        source: Source,
        codec: Codec,
        config: DataConfig,
        seed: int,
        global_batch_size: int,
        micro_batch_size: int,
        dp_rank: int = 0,
        dp_size: int = 1,
        consumed: int = 0,
        keep_pixels: bool = False,
    ) -> None:
        if global_batch_size < 1 or micro_batch_size < 1 or global_batch_size % (micro_batch_size * dp_size):
            raise ValueError(
                f"train.global_batch_size={global_batch_size}: must be a multiple of "
                f"train.micro_batch_size={micro_batch_size} times {dp_size} data parallel ranks"
            )
        self.rejected = 0
        self.consumed = consumed
        self._config, self._codec, self._keep_pixels = config, codec, keep_pixels
        self._per_list = micro_batch_size * dp_size
        self._recent: deque[int] = deque(maxlen=WINDOW)
        on_cpu = codec.device.type == "cpu"
        self._encode_here = not on_cpu
        dataset = _MicroBatches(source.train, codec if on_cpu else None, seed, global_batch_size, micro_batch_size, dp_rank, dp_size, consumed, keep_pixels)
        options: dict[str, Any] = {}
        if config.workers:
            # forkserver: a fork of this process would inherit locks held by communication and OpenMP threads.
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["megatron_videogpt.data.loader"])
            options = {"multiprocessing_context": context, "prefetch_factor": max(1, config.prefetch), "worker_init_fn": _start_worker}
        with _deaf_children():
            self._batches = iter(DataLoader(dataset, batch_size=None, sampler=_Endless(), num_workers=config.workers, collate_fn=_as_is, **options))
        self._end = weakref.finalize(self, _end_workers, self._batches)

    def __iter__(self) -> Iterator[list[Sample]]:
        return self

    def __next__(self) -> list[Sample]:
        samples, rejections, failure = next(self._batches)
        self._note(len(samples), rejections)
        if failure:
            raise ValueError(failure)
        self.consumed += self._per_list
        if self._encode_here:
            return [_encode(sample, self._codec, self._keep_pixels) for sample in samples]
        return [_tensors(sample) for sample in samples]

    def close(self) -> None:
        """Stop the worker processes."""
        self._end()

    def _note(self, good: int, rejections: list[BadVideo]) -> None:
        for error in rejections:
            log.warning("rejected sample of %s", error)
        self.rejected += len(rejections)
        self._recent.extend([1] * len(rejections) + [0] * good)
        bad = sum(self._recent)
        if bad > self._config.max_bad_fraction * WINDOW:
            raise ValueError(
                f"{bad} of the last {len(self._recent)} samples could not be read, over data.max_bad_fraction={self._config.max_bad_fraction:g} of {WINDOW}; "
                f"the last one: {rejections[-1] if rejections else 'see the log'}"
            )


class _Endless:
    """Micro-batch numbers 0, 1, 2, ..."""

    def __iter__(self) -> Iterator[int]:
        number = 0
        while True:
            yield number
            number += 1


class _MicroBatches(Dataset):
    """Micro-batch number -> (samples, rejections, failure), in this process or in a worker.

    A failure travels as its message: torch would wrap an exception of a worker in that worker's traceback.
    """

    def __init__(
        self,
        split: Split,
        codec: Codec | None,
        seed: int,
        global_batch_size: int,
        micro_batch_size: int,
        dp_rank: int,
        dp_size: int,
        consumed: int,
        keep_pixels: bool,
    ) -> None:
        self.split, self.codec, self.seed, self.keep_pixels, self.micro = split, codec, seed, keep_pixels, micro_batch_size
        self.global_batch, self.share, self.rank, self.consumed = global_batch_size, global_batch_size // dp_size, dp_rank, consumed

    def __getitem__(self, number: int) -> tuple[list[Sample], list[BadVideo], str]:
        step, within = divmod(number * self.micro, self.share)
        first = self.consumed + step * self.global_batch + self.rank * self.share + within
        samples: list[Sample] = []
        rejections: list[BadVideo] = []
        for g in range(first, first + self.micro):
            epoch, index = divmod(g, len(self.split))
            sample, bad = load_sample(self.split, self.seed, epoch, index)
            rejections += bad
            if sample is None:
                return samples, rejections, f"no readable sample in {ATTEMPTS} attempts; the last: {bad[-1]}"
            samples.append(_arrays(_encode(sample, self.codec, self.keep_pixels)) if self.codec is not None else sample)
        return samples, rejections, ""


def load_sample(split: Split, seed: int, epoch: int, index: int) -> tuple[Sample | None, list[BadVideo]]:
    """A sample with pixels but without latents (None: no replacement could be read either), and the bad ones that came before it."""
    rejections: list[BadVideo] = []
    for attempt in range(ATTEMPTS):
        plan = split.plan(seed, epoch, index, attempt)
        try:
            pixels = split.pixels(plan)
        except BadVideo as error:
            rejections.append(error)
            continue
        return Sample(plan.key, split.label(plan), torch.empty(0), None, plan.clips, pixels), rejections
    return None, rejections


def validation_samples(source: Source, codec: Codec, config: DataConfig, seed: int, count: int, keep_pixels: bool = True) -> list[Sample]:
    """``count`` held-out samples, the same at every call (when fewer are held out, the same videos at other places).

    Raises:
        ValueError: more than data.max_bad_fraction of them (and more than one) could not be read.
    """
    samples, rejected = [], 0
    for number in range(count):
        epoch, index = divmod(number, len(source.validation))
        sample, rejections = load_sample(source.validation, seed, epoch, index)
        for error in rejections:
            log.warning("rejected validation sample of %s", error)
        rejected += len(rejections)
        if sample is None or rejected > max(1, config.max_bad_fraction * count):
            raise ValueError(f"{rejected} of {count} validation samples could not be read; the last: {rejections[-1]}")
        samples.append(_encode(sample, codec, keep_pixels))
    return samples


def _encode(sample: Sample, codec: Codec, keep_pixels: bool) -> Sample:
    assert sample.pixels is not None
    mean, logvar = codec.encode(to_model_range(sample.pixels).to(codec.device))
    return replace(sample, mean=mean, logvar=logvar, pixels=sample.pixels if keep_pixels else None)


def _arrays(sample: Sample) -> Sample:
    """Arrays travel through the pipe; tensors would take shared memory and open files, which containers limit."""
    return replace(sample, mean=sample.mean.numpy(), logvar=None if sample.logvar is None else sample.logvar.numpy())  # type: ignore[arg-type]


def _tensors(sample: Sample) -> Sample:
    mean, logvar = torch.from_numpy(np.asarray(sample.mean)), sample.logvar
    return replace(sample, mean=mean, logvar=None if logvar is None else torch.from_numpy(np.asarray(logvar)))


def _as_is(batch: Any) -> Any:
    return batch


def _start_worker(number: int) -> None:
    """Signals are for the trainer, which saves first; one thread, because there are as many workers as cores."""
    for name in STOP_SIGNALS:
        signal.signal(name, signal.SIG_IGN)
    threading.Thread(target=_end_with_trainer, daemon=True).start()
    torch.set_num_threads(1)


def _end_with_trainer() -> None:
    """A killed trainer cannot stop its workers, and torch's own check sees only the fork server, which lives as long as they do."""
    trainer = multiprocessing.parent_process()
    if trainer is not None:
        trainer.join()
        os._exit(1)


def _end_workers(batches: Any) -> None:
    """Stop the worker processes of an iterator over a DataLoader; those that do not listen are killed."""
    shutdown = getattr(batches, "_shutdown_workers", None)
    if shutdown is not None:
        shutdown()
    for worker in getattr(batches, "_workers", ()):
        if worker.is_alive():
            worker.kill()


@contextlib.contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes started meanwhile ignore `STOP_SIGNALS`, the fork server too: torchrun and Slurm signal a whole session, and the trainer still needs them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {name: signal.signal(name, signal.SIG_IGN) for name in STOP_SIGNALS}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
