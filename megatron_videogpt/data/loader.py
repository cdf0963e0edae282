"""Whole steps of packed rows, by sample number: sample g is the same whatever the ranks, row packing, micro-batch sizes
or reader processes.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..codec.base import Codec
from ..config.schema import Config
from ..errors import UserError
from .bad import BadVideo, Rejections
from .conditioning import UNCONDITIONAL, Conditioning
from .encoding import encode, is_encoded, latent_shape
from .jobs import Job
from .packing import StepPlanner
from .plans import Sample, SamplePlan
from .sample_work import SampleWork
from .sources.open import Source
from .workers import Pool


@dataclass(frozen=True)
class Batch:
    """One row: its samples, at least one, and the tokens that it is padded to."""

    samples: list[Sample]
    length: int


class Loader:
    """Iterator over the steps of one data parallel rank: all rows of its part of a global batch.  Never ends.

    State is the number of consumed samples and nothing else: the plan of every step follows from it
    (`packing.StepPlanner`), on every rank alike.

    A sample that cannot be read is counted and named by ``rejections``, and a blank of its shape holds its place, which
    the objective does not score. So no other sample depends on what could be read.

    Args:
        source, codec: from `open_source` and `build_codec`; a codec on an accelerator encodes in this process, one on
            the CPU in the readers.
        config: of the run.
        work: of the objective's samples.
        dp_rank, dp_size: this data parallel rank and how many there are.
        consumed: samples (of all ranks) used up by earlier steps.
        keep_pixels: also give each sample's frames; where there are none, but latents, what the codec makes of them.
        encodes: False leaves samples as they were read, those of videos with frames and without latents.
        rejected_file, write_rejected: gets a JSON line for each name that was rejected; how.

    Raises:
        ValueError: one line: a layout that does not divide; later, too many bad samples.
    """

    def __init__(
        self,
        source: Source,
        codec: Codec,
        config: Config,
        work: SampleWork,
        dp_rank: int = 0,
        dp_size: int = 1,
        consumed: int = 0,
        keep_pixels: bool = False,
        rejected_file: Path | None = None,
        write_rejected: Callable[[Path, BadVideo], None] | None = None,
        encodes: bool = True,
    ) -> None:
        self.consumed = consumed
        self.rejections = Rejections(config.data.max_bad_fraction, rejected_file, write_rejected)
        self._config, self._split, self._codec, self._rank = config, source.train, codec, dp_rank
        self._planner = StepPlanner(source.train, config.train.seed, config, work, dp_size)
        self._reading = Reading(source.train, codec, config, keep_pixels, source.conditioning, encodes)
        self._planned = consumed
        self._ahead: deque[list[tuple[list[SamplePlan], int]]] = deque()

    def __iter__(self) -> Iterator[list[Batch]]:
        return self

    def __next__(self) -> list[Batch]:
        while len(self._ahead) <= self._config.data.prefetch:
            self._ahead.append(self._start())
        step = [
            Batch([self._sample(plan) for plan in plans] or [self._filler()], length)
            for plans, length in self._ahead.popleft()
        ]
        self.rejections.check()
        self.consumed += self._config.train.global_batch_size
        return step

    def close(self) -> None:
        """Stop the reader processes."""
        self._reading.close()

    def _start(self) -> list[tuple[list[SamplePlan], int]]:
        """Plan the next step and have its samples read: for each row its samples' plans and its length."""
        step = self._planner.step(self._planned)
        rows = [([step.plans[place] for place in row.samples], row.length) for row in step.rows[self._rank]]
        for plan in (plan for plans, _ in rows for plan in plans):
            self._reading.start(plan)
        self._planned += self._config.train.global_batch_size
        return rows

    def _sample(self, plan: SamplePlan) -> Sample:
        try:
            sample = self._reading.finish(plan)
        except BadVideo as error:
            self.rejections.add(error)
            return blank(plan, error.path, self._reading.shape(plan))
        self.rejections.good()
        return sample

    def _filler(self) -> Sample:
        """What a row without samples holds: the smallest blank."""
        side = self._config.model.patch_size
        return Sample(0, "nothing", torch.zeros(1, self._codec.channels, side, side), None, (1,), scored=False)


def blank(plan: SamplePlan, name: str, shape: tuple[int, ...]) -> Sample:
    """A sample of zeros that is not scored: latents of this shape [N, C, h, w], without a condition."""
    return Sample(
        plan.key,
        name,
        torch.zeros(shape),
        None,
        plan.clips,
        scored=False,
        number=plan.number,
        given=plan.given,
        dropped=plan.dropped,
    )


class Reading:
    """Samples of a split from plans: read by processes, encoded there by a codec and a text encoder on the CPU, and
    here by those on an accelerator.

    encodes: whether the codec is at work here at all; without, videos stay frames.
    """

    def __init__(
        self,
        split: Any,
        codec: Codec,
        config: Config,
        keep_pixels: bool,
        conditioning: Conditioning = UNCONDITIONAL,
        encodes: bool = True,
    ) -> None:
        self.split, self.codec, self.keep_pixels, self.conditioning = split, codec, keep_pixels, conditioning
        self.encodes, self.here = encodes, encodes and codec.device.type != "cpu"
        encoder = conditioning.encoder
        self.texts_here = encoder is not None and encoder.device.type != "cpu"
        run = _Read(None if self.here or not encodes else codec, keep_pixels, None if self.texts_here else conditioning)
        self.pool = Pool(run, config.data.workers, config.data.worker_timeout, label=_label)
        self.close = self.pool.close

    def shape(self, plan: SamplePlan) -> tuple[int, int, int, int]:
        """Of a sample's latents."""
        height, width = (side // self.codec.spatial_stride for side in plan.size)
        return sum(plan.clips), self.codec.channels, height, width

    def start(self, plan: SamplePlan) -> None:
        """Have a sample read."""
        self.pool.submit(plan.number, self.split.job(plan))

    def finish(self, plan: SamplePlan) -> Sample:
        """The sample, once it was started; BadVideo when it cannot be read, or is not what the index promised."""
        sample = self.pool.wait(plan.number)
        if self.here or (not self.encodes and sample.pixels is None):
            sample = encode(sample, self.codec, self.keep_pixels)
        sample = self.conditioning.applied(sample) if self.texts_here else sample
        mean, logvar, condition = (
            None if part is None else torch.from_numpy(np.asarray(part))
            for part in (sample.mean, sample.logvar, sample.condition)
        )
        assert mean is not None
        found = tuple(mean.shape)
        if sample.pixels is not None and not is_encoded(sample):
            found = latent_shape(self.codec, sample.pixels.shape[:3])
        if found != self.shape(plan):
            message = f"gives latents {list(found)}, but by the index {list(self.shape(plan))}; build the index again"
            raise BadVideo(sample.name, message, "metadata")
        return replace(sample, mean=mean, logvar=logvar, condition=condition, number=plan.number)


@dataclass(frozen=True)
class _Read:
    """What a reader process does with a job; codec, conditioning: None leaves that to the trainer."""

    codec: Codec | None
    keep_pixels: bool
    conditioning: Conditioning | None = UNCONDITIONAL

    def __call__(self, job: Job) -> Sample:
        sample = job.read()
        sample = sample if self.conditioning is None else self.conditioning.applied(sample)
        return sample if self.codec is None else encode(sample, self.codec, self.keep_pixels)


def _label(job: Job) -> str:
    return job.label


class HeldOut:
    """Held-out samples by number, each read once; a context manager, since there are reader processes.

    samples: with their latents, and with their frames where `keep_pixels` says so; videos: (data set, number
    in it) of each, which for generated scenes is the sample's own; encodes: see `Reading`.
    """

    def __init__(
        self, source: Source, codec: Codec, config: Config, keep_pixels: bool = True, encodes: bool = True
    ) -> None:
        self._split, self._seed = source.validation, config.train.seed
        self._reading = Reading(source.validation, codec, config, keep_pixels, source.conditioning, encodes)
        self.samples: dict[int, Sample] = {}
        self.videos: dict[int, tuple[int, int]] = {}

    def __enter__(self) -> HeldOut:
        return self

    def __exit__(self, *error: object) -> None:
        self._reading.close()

    def read(self, numbers: Sequence[int]) -> dict[int, BadVideo]:
        """Read those that are missing; those among them that cannot be read."""
        failed: dict[int, BadVideo] = {}
        plans = [self._split.plans(self._seed, [number])[0] for number in numbers if number not in self.samples]
        for plan in plans:
            self._reading.start(plan)
        for plan in plans:
            try:
                self.samples[plan.number] = self._reading.finish(plan)
                self.videos[plan.number] = plan.dataset, plan.item if plan.item >= 0 else -1 - plan.number
            except BadVideo as error:
                failed[plan.number] = error
        return failed


def readable(config: Config, count: int, read: Callable[[list[int]], dict[int, BadVideo]]) -> list[int]:
    """Numbers of the first ``count`` held-out samples that can be read, ascending.

    Where fewer are held out, the same videos come again, at other places in them.

    read: given all numbers, reads what is missing and says what cannot be read; called again with others in their
    places.

    Raises:
        UserError: more than data.max_bad_fraction of them (and more than one) could not be read.
    """
    rejections = Rejections(1.0)
    failed: set[int] = set()
    while True:
        numbers = list(itertools.islice((number for number in itertools.count() if number not in failed), count))
        found = read(numbers)
        if not found:
            return numbers
        for number in sorted(found):
            rejections.add(found[number])
        failed |= found.keys()
        if len(failed) > max(1, config.data.max_bad_fraction * count):
            last = found[max(found)]
            raise UserError(
                f"{len(failed)} of {numbers[-1] + 1} validation samples could not be read; the last: {last}"
            ) from last
