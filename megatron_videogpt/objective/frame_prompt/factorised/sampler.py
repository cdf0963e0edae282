"""Videos that go on chunk by chunk with the factorised network: the sampler of exported folders
(`hub/frame_prompt/sampling_frameprompt.py`) on the megatron-core model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ....config.schema import Config, SampleConfig
from ....errors import UserError
from ....hub.common.ddpm import schedule_of
from ....hub.common.ddpm_solvers import solver_of
from ....hub.frame_prompt.sampling_frameprompt import Chunks, Memory, Step, prompt_blur, rollout
from ....model.cache import DTYPES
from ...base import Watch
from ...noise import normal
from ..given import check_given
from ..options import UNCACHED
from .memory import CachedMemory, Told, WholeMemory
from .options import variant_of_run
from .rows import Text
from .variant import FIXED


class FactorisedSampler:
    """`Sampler` of a network that predicts noise and variance."""

    def __init__(self, chunks: list[Any], config: Config, device: torch.device) -> None:
        self.chunks, self.config, self.device = chunks, config, device

    def rollout(
        self,
        histories: list[Tensor],
        settings: SampleConfig,
        keys: Sequence[int],
        seed: int,
        conditions: list[Tensor | None] | None = None,
        watch: Watch | None = None,
    ) -> Iterator[list[Tensor]]:
        """See `Sampler`; videos of one size and history go through the model together."""
        patch = self.config.model.patch_size
        check_given(histories, patch, self.chunks[0].embedding.patch.in_features // patch**2)
        if not all(map(len, histories)):
            raise UserError(
                "no frames are given, and a model of objective.network = factorised goes on from some; give the first "
                "ones, of a scene, a video or a picture"
            )
        told = conditions or [None] * len(histories)
        groups: dict[torch.Size, list[int]] = {}
        for number, history in enumerate(histories):
            groups.setdefault(history.shape, []).append(number)
        made = [
            self._of_one_size(
                torch.stack([histories[number] for number in members]),
                settings,
                [keys[number] for number in members],
                seed,
                [told[number] for number in members],
                watch,
            )
            for members in groups.values()
        ]
        for frames in settings.clips:
            found: dict[int, Tensor] = {}
            for members, source in zip(groups.values(), made):
                parts = torch.cat([next(source) for _ in range(frames // self.config.objective.chunk)], dim=1)
                found.update(zip(members, parts))
            yield [found[number] for number in range(len(histories))]

    def _of_one_size(
        self,
        given: Tensor,
        settings: SampleConfig,
        keys: list[int],
        seed: int,
        conditions: list[Tensor | None],
        watch: Watch | None,
    ) -> Iterator[Tensor]:
        """Chunks ``[B, chunk, C, h, w]`` of videos ``[B, F, C, h, w]``."""
        config = self.config
        options, chunk = config.objective.factorised, config.objective.chunk
        if any(frames % chunk for frames in settings.clips):
            raise UserError(f"clips of {list(settings.clips)} frames: use multiples of objective.chunk = {chunk}")
        window = min(settings.window, options.places) - chunk
        wanted = Chunks(chunk, sum(settings.clips) // chunk, window, settings.guidance)
        try:
            wanted.check(given.shape[1])
            solver = solver_of(options.solver, settings.steps)
            blur = prompt_blur(schedule_of(settings.steps), options.sample_prompt_step)
        except ValueError as error:
            # Stand-alone code, which knows no other type.
            raise UserError(str(error)) from error
        texts = self._texts(conditions)
        guided = texts is not None and settings.guidance != 1.0
        keep = settings.window_end == "keep"
        self._check_end(keep, given.shape[1] + sum(settings.clips))
        memory = self._memory(texts, guided, window)

        def noise(video: int, number: int, purpose: str, shape: tuple[int, ...]) -> Tensor:
            return normal(keys[video], f"sample/{seed}/{purpose}/{number}", shape)

        def observe(step: Step) -> None:
            if watch is not None:
                watch(step.z.shape[0] * step.z.shape[1] / settings.steps, 0)

        return rollout(memory, given.float(), wanted, solver, noise, blur, observe, anew=not keep)

    def _memory(self, texts: list[Text] | None, guided: bool, window: int) -> Memory:
        config, sample = self.config, self.config.sample
        patch, multiple = config.model.patch_size, config.parallel.row_multiple
        told = Told(self.chunks, variant_of_run(config), patch, multiple, self.device, texts, guided)
        if not sample.cache:
            return WholeMemory(told)
        dtype = DTYPES.get(sample.cache_dtype)
        # A dtype that the keys have anyway needs no conversion.
        dtype = None if dtype is self.chunks[0].config.params_dtype else dtype
        return CachedMemory(told, window, dtype, sample.cache_offload)

    def _check_end(self, keep: bool, frames: int) -> None:
        """UserError for a window's end that cannot be had; frames: of the whole video."""
        options, cache = self.config.objective.factorised, self.config.sample.cache
        if keep and not cache:
            raise UserError(f'sample.window_end = "keep": must {UNCACHED}; use sample.cache=true')
        if keep and options.positions == FIXED and frames > options.places:
            must = f"be recompute for {frames} frames, given ones among them, of a model with {options.places} fixed"
            raise UserError(f'sample.window_end = "keep": must {must} positions; use recompute, or fewer frames')

    def _texts(self, conditions: list[Tensor | None]) -> list[Text] | None:
        variant = variant_of_run(self.config)
        if not variant.text_width:
            return None
        nothing = Text(torch.zeros(1, variant.text_width), dropped=True)
        return [nothing if text is None else Text(text.cpu()) for text in conditions]
