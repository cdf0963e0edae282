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
        rank, size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
        return samples[rank::size]
