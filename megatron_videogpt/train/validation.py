"""Held-out clips: validation loss, predicted videos, pixel error against repeating the last frame."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from megatron.core import parallel_state

from ..config.schema import Config
from ..data.clips import Sample
from ..data.codec import Codec, encode_samples
from ..data.loader import validation_samples
from ..model.denoiser import model_denoiser
from ..objective.base import Objective
from ..platforms import Platform
from .feed import is_reader, share
from .step import describe, reduce_statistics, run_schedule


class Validation:
    """A fixed set of held-out samples, encoded once; every data parallel rank takes its share."""

    def __init__(self, config: Config, source: Any, codec: Codec, objective: Objective, platform: Platform) -> None:
        self.config, self.codec, self.objective, self.platform = config, codec, objective, platform
        count = max(config.eval.samples if config.eval.every else 0, config.eval.final_scenes, 1)
        self.read: list[Sample] = []

        def read() -> list[Sample]:
            self.read = encode_samples(validation_samples(source, config.data, config.train.seed, count), codec, keep_pixels=True)
            return self.read

        self.samples = share(read if is_reader() else None, platform.device)

    def _mine(self, samples: list[Sample]) -> list[Sample]:
        return samples[parallel_state.get_data_parallel_rank() :: parallel_state.get_data_parallel_world_size()]

    def during(self, model: Any, writer: MetricsWriter, step: int) -> None:
        """Whatever is due after `step`."""
        options = self.config.eval
        if options.every and step % options.every == 0 and step < self.config.train.steps:
            self.measure(model, writer, step)
        if options.predict_every and step % options.predict_every == 0 and step < self.config.train.steps:
            self.predict(model, writer, step)

    def finish(self, model: Any, writer: MetricsWriter, step: int) -> None:
        """Validation loss, predicted video and pixel error of the finished model."""
        if self.config.eval.every:
            self.measure(model, writer, step)
        self.predict(model, writer, step)
        if self.config.eval.final_scenes:
            self.pixel_error(model, writer, step)

    @torch.no_grad()
    def measure(self, model: Any, writer: MetricsWriter, step: int) -> float:
        """Loss on the held-out samples, with the same noise every time."""
        size = self.config.train.micro_batch_size
        mine = self._mine(self.samples[: self.config.eval.samples])
        packs = [mine[start : start + size] for start in range(0, len(mine), size)]
        rows = [self.objective.prepare(pack, self.config.parallel.tensor).to(self.platform.device) for pack in packs]
        model.eval()
        totals = run_schedule(model, self.objective, rows, forward_only=True) if rows else empty_statistics(self.platform.device)
        model.train()
        named = describe(reduce_statistics(totals))
        writer.log(step, {f"validation_{name}": value for name, value in named.items()})
        return named["loss"]

    def _settings(self, steps: int, guidance: float) -> tuple[int, SampleConfig]:
        """Half of the frames given, the other half predicted as one clip, at most."""
        frames = self.config.data.frames
        given = min(self.config.sample.history, frames // 2)
        return given, replace(self.config.sample, clips=(frames - given,), window=frames, steps=steps, guidance=guidance)

    def predict(self, model: Any, writer: MetricsWriter, step: int) -> None:
        """A predicted continuation of the first held-out sample, as a video in the log and a picture in the run's folder."""
        options = self.config.sample
        given, settings = self._settings(options.steps, options.guidance)
        denoise = model_denoiser(unwrapped(model), self.config, self.platform.device)
        sample = self.samples[0]
        (predicted,) = rollout(denoise, [sample.mean[:given]], settings, seed=self.config.train.seed)
        if not is_reader() or parallel_state.get_data_parallel_rank():
            return
        truth = self.read[0].pixels
        assert truth is not None
        frames = decode_frames(self.codec, torch.cat([sample.mean[:given], predicted]))[given:]
        true_frames = truth.numpy()
        writer.video(step, "prediction", prediction_video(true_frames[:given], frames, true_frames[given:]))
        folder = Path(self.config.train.output) / "predictions"
        folder.mkdir(exist_ok=True)
        contact_sheet(true_frames[:given], frames, true_frames[given:], folder / f"step_{step:08d}.png")

    def pixel_error(self, model: Any, writer: MetricsWriter, step: int) -> dict[str, float]:
        """Mean squared pixel error over `eval.final_scenes` held-out samples: half given, half predicted, guidance 1, 20 steps, fixed noise; and that
        of repeating the last given frame."""
        given, settings = self._settings(20, 1.0)
        chosen = self._mine(list(range(min(self.config.eval.final_scenes, len(self.samples)))))
        denoise = model_denoiser(unwrapped(model), self.config, self.platform.device)
        sums = torch.zeros(3, dtype=torch.float64, device=self.platform.device)
        for start in range(0, len(chosen), self.config.eval.batch):
            numbers = chosen[start : start + self.config.eval.batch]
            latents = [self.samples[n].mean for n in numbers]
            predicted = rollout(denoise, [item[:given] for item in latents], settings, seed=numbers[0])
            if is_reader():
                for n, history, future in zip(numbers, latents, predicted):
                    sums += squared_errors(self.codec, history[:given], future, self.read[n].pixels)
        torch.distributed.all_reduce(sums)
        model_error, repeat_error, scenes = sums.tolist()
        result = {"prediction_mse": model_error / scenes, "repeat_last_mse": repeat_error / scenes, "prediction_ratio": model_error / repeat_error}
        writer.log(step, result)
        return result
