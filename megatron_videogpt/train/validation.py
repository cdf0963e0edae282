"""Held-out clips: validation loss, predicted videos, pixel error against simple guesses."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from megatron.core import parallel_state

from ..codec.sharing import shares_encoding
from ..config.schedules import decays
from ..data.bad import BadVideo
from ..data.loader import HeldOut, readable
from ..data.plans import Sample
from ..data.video.pictures import to_pixels
from ..errors import RunError, UserError
from ..model.ahead import planner
from ..objective.build import build_denoiser, has_sampler
from ..platforms import world
from ..platforms.together import fail_together, gather_results
from ..sample.evaluate import decode_continuation, linear_error, pixel_frames, predict, squared_errors
from ..sample.render import contact_sheet, prediction_video
from .feed import broadcast_samples, host_group, is_reader
from .metrics import MetricsWriter
from .networks import turns
from .run import Run
from .sharing import share_samples
from .standard_errors import means_with_errors
from .statistics import empty_statistics, of_samples, reduce_statistics
from .step import run_rows

T = TypeVar("T")


def _bare(model: list[Any]) -> list[Any]:
    return [getattr(chunk, "module", chunk) for chunk in model]


class Validation:
    """A fixed set of held-out samples, encoded once: every data parallel rank reads and keeps its share.

    samples: the share of this data parallel rank; read: the same with pixels, on the rank that read them; videos: which
    video each of all samples shows.
    """

    def __init__(self, run: Run) -> None:
        self.config, self.codec, self.objective, self.platform = run.config, run.codec, run.objective, run.platform
        self.turn, self.generates = next(turns(run.networks))[1], has_sampler(run.config)
        self.number, self.replicas = (
            parallel_state.get_data_parallel_rank(),
            parallel_state.get_data_parallel_world_size(),
        )
        # Of the network that is measured.
        self.planned = planner(run.networks[0].chunks, run.platform.device, trains=False)
        self.read, self.videos = self._read(run)
        self.samples = self._to_all(run)

    def _read(self, run: Run) -> tuple[list[Sample], list[tuple[int, int]]]:
        """This rank's share, where it reads, and the videos of all.  All readers find out together which samples there
        are: some cannot be read.
        """
        options, doing = self.config.eval, "reading the validation samples"
        count = max(options.samples if options.every else 0, options.final_scenes, 1)
        with ExitStack() as stack:
            held: HeldOut | None = None
            with fail_together(run.control, doing):
                if is_reader():
                    encodes = not shares_encoding(self.config)
                    held = stack.enter_context(HeldOut(run.source, self.codec, self.config, encodes=encodes))

            def read(numbers: list[int]) -> dict[int, BadVideo]:
                found = gather_results(
                    lambda: held.read(self._share(numbers)) if held is not None else {}, run.control, doing
                )
                return {number: error for part in found for number, error in part.items()}

            try:
                numbers = readable(self.config, count, read)
            except UserError as error:
                raise RunError(str(error)) from error
            shown = gather_results(lambda: held.videos if held is not None else {}, run.control, doing)
            videos = {number: video for part in shown for number, video in part.items()}
            mine = [held.samples[number] for number in self._share(numbers)] if held is not None else []
            return mine, [videos[number] for number in numbers]

    def _to_all(self, run: Run) -> list[Sample]:
        """What was read on all ranks that share it, encoded by all of them or before; where it was read, `read` has
        the latents afterwards.
        """
        read = (lambda: (self.read, None)) if is_reader() else None
        if not shares_encoding(self.config):
            return broadcast_samples(read, self.platform.device)[0]
        group = host_group(self.config.train.timeout_minutes)
        with fail_together(run.control, "encoding the validation samples"):
            samples, _, _ = share_samples(read, self.codec, group)
        self.read = [replace(one, mean=all.mean, logvar=all.logvar) for one, all in zip(self.read, samples)]
        torch.distributed.destroy_process_group(group)
        return samples

    def _share(self, items: list[T]) -> list[T]:
        """What falls to this data parallel rank."""
        return items[self.number :: self.replicas]

    def _mine(self, count: int) -> int:
        """How many of the first `count` of all samples are this data parallel rank's: the first so
        many of `samples`.
        """
        return len(range(self.number, count, self.replicas))

    def due(self, step: int) -> bool:
        """Whether `during` has something to do after `step`."""
        options = self.config.eval
        predicts = self.generates and options.predict_every and step % options.predict_every == 0
        return step < self.config.train.steps and bool(self._measures(step) or predicts)

    def _measures(self, step: int) -> bool:
        """Whether the loss is due after `step`: every so often, and where a decay of the schedule ends."""
        every, ends = self.config.eval.every, decays(self.config.optimizer, self.config.train.steps)
        return bool(every) and (step % every == 0 or step in (end for _, end in ends))

    def during(self, model: list[Any], writer: MetricsWriter, step: int) -> dict[str, float]:
        """Whatever is due after `step` (see `due`); returns the numbers.  model: this rank's chunks, wrapped or not,
        with whole parameters.
        """
        options, numbers = self.config.eval, {}
        if self._measures(step):
            numbers = self.measure(model, writer, step)
        if self.generates and options.predict_every and step % options.predict_every == 0:
            self.predict(model, writer, step)
        return numbers

    def finish(self, model: list[Any], writer: MetricsWriter, step: int) -> dict[str, float]:
        """Validation loss of the finished model, and, where its objective can generate, predicted video and pixel
        error; returns the numbers.
        """
        numbers = self.measure(model, writer, step) if self.config.eval.every else {}
        if not self.generates:
            return numbers
        self.predict(model, writer, step)
        if self.config.eval.final_scenes:
            numbers = {**numbers, **self.pixel_error(model, writer, step)}
        return numbers

    @torch.no_grad()
    def measure(self, model: list[Any], writer: MetricsWriter, step: int) -> dict[str, float]:
        """Loss on the held-out samples, with the same noise every time, what is beside it, and the standard error of
        each: what is logged.

        Every sample has a row of its own, so that each one's numbers are known.
        """
        total = self.config.eval.samples
        places = range(self.number, total, self.replicas)
        context = parallel_state.get_context_parallel_rank(), parallel_state.get_context_parallel_world_size()
        multiple, device = self.config.parallel.row_multiple, self.platform.device
        rows = [
            self.planned(self.objective.prepare([sample], multiple)).shard(*context).to(device)
            for sample in map(self._with_levels, self.samples, places)
        ]
        for chunk in model:
            chunk.eval()
        each = run_rows(model, self.objective, rows, forward_only=True, turn=self.turn) if rows else []
        for chunk in model:
            chunk.train()
        table = reduce_statistics(
            of_samples(empty_statistics(self.objective, self.platform.device), each, places, total)
        )
        sums, counts = (part.cpu().numpy() for part in (table.sums, table.counts))
        named = means_with_errors(table.names, sums, counts, self.videos[:total])
        numbers = {f"validation_{name}": value for name, value in named.items()}
        writer.log(step, numbers)
        return numbers

    def _with_levels(self, sample: Sample, place: int) -> Sample:
        """The sample, told which noise levels are its own where `eval.levels` shares them out."""
        options = self.config.eval
        return replace(sample, stratum=(place, options.samples) if options.levels == "stratified" else None)

    def _given(self) -> tuple[int, int]:
        """Latent frames given and predicted: half of a sample each, unless `sample.history` is shorter."""
        frames = self.config.data.frames
        given = max(1, min(self.config.sample.history, frames // 2))
        return given, frames - given

    def predict(self, model: list[Any], writer: MetricsWriter, step: int) -> None:
        """A continuation of the first held-out sample: a video in the log, a contact sheet in the run's folder.

        The ranks that share that sample are enough, rank 0 among them.
        """
        if self.number:
            return
        given, generated = self._given()
        denoise = build_denoiser(_bare(model), self.config, self.platform.device)
        (latents,) = predict(denoise, self.samples[:1], given, generated, self.config.sample, self.config.train.seed)
        if not world.is_rank_zero():
            return
        sample = self.read[0]
        assert sample.pixels is not None
        first = pixel_frames(self.codec, given)
        frames = to_pixels(decode_continuation(self.codec, sample.mean[:given], latents))
        truth = np.asarray(sample.pixels)
        writer.video(step, "prediction", prediction_video(truth[:first], frames, truth[first:]))
        sheet = Path(self.config.train.output) / "predictions" / f"step_{step:08d}.png"
        writer.picture(step, sheet, lambda path: contact_sheet(truth[:first], frames, truth[first:], path))

    def pixel_error(self, model: list[Any], writer: MetricsWriter, step: int) -> dict[str, float]:
        """Mean squared pixel error of predictions on `eval.final_scenes` held-out samples, and of two simple guesses
        instead: repeating the last given frame, and extrapolating the last two.

        Half of the frames given, half predicted (in the clips of `sample.clips` where they fit, in `sample.steps`
        steps), guidance 1, noise fixed by the seed; pixels in [0, 1].
        """
        given, generated = self._given()
        settings = replace(self.config.sample, guidance=1.0, history_noise=0.0)
        mine = self.samples[: self._mine(self.config.eval.final_scenes)]
        denoise = build_denoiser(_bare(model), self.config, self.platform.device)
        predicted = predict(denoise, mine, given, generated, settings, self.config.train.seed)
        sums, count = (
            torch.zeros(3, device=self.platform.device),
            torch.zeros((), dtype=torch.int64, device=self.platform.device),
        )
        if is_reader():
            for sample, latents in zip(self.read, predicted):
                assert sample.pixels is not None
                video = decode_continuation(self.codec, sample.mean[:given], latents)
                first = pixel_frames(self.codec, given)
                errors = *squared_errors(video, sample.pixels, first), linear_error(sample.pixels, first, len(video))
                sums += torch.tensor(errors, device=sums.device)
                count += 1
        for part in (sums, count):
            torch.distributed.all_reduce(part)
        (ours, repeat, linear), scenes = sums.tolist(), float(count)
        result = {
            "prediction_mse": ours / scenes,
            "repeat_last_mse": repeat / scenes,
            "linear_mse": linear / scenes,
            "prediction_ratio": ours / repeat,
            "linear_ratio": linear / repeat,
            "prediction_scenes": scenes,
        }
        writer.log(step, result)
        return result
