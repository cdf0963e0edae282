"""Videos that go on chunk by chunk with the factorised network: the sampler of exported folders
(`hub/frame_prompt/sampling_frameprompt.py`) on the megatron-core model, which is shown the whole window at every step.
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
from ....hub.frame_prompt.sampling_frameprompt import Chunks, Step, prompt_blur, rollout
from ....model.forward import forward_row
from ....model.patches import grid_of, unpatchify
from ...base import Watch
from ...noise import normal
from ..given import check_given
from .options import variant_of_run
from .rows import Text, Video, assemble
from .variant import Variant, temporal_places


class WholeMemory:
    """`Memory` of a network that is shown all frames anew; every rank of a model parallel group must use it alike.

    patch: `model.patch_size`; multiple: of tokens in a row; texts: one for each video, None without; guided: whether a
    prediction without the text is wanted too.
    """

    cached = False

    def __init__(
        self,
        chunks: list[Any],
        variant: Variant,
        patch: int,
        multiple: int,
        device: torch.device,
        texts: list[Text] | None = None,
        guided: bool = False,
    ) -> None:
        self.chunks, self.variant, self.patch, self.multiple, self.device = chunks, variant, patch, multiple, device
        self.texts, self.guided = texts, guided
        self.frames, self.start = torch.zeros(0), 0

    def begin(self) -> None:
        """See `Memory`: nothing is kept from one rollout to the next."""

    def show(self, frames: Tensor, start: int) -> None:
        """See `Memory`."""
        self.frames, self.start = frames, start

    def predict(self, z: Tensor, t: float) -> tuple[Tensor, Tensor | None]:
        """See `Memory`: noise and raw variance ``[B, l, 2C, h, w]``."""
        videos = [self._video(number, z[number], int(t), False) for number in range(len(z))]
        if self.guided:
            videos += [self._video(number, z[number], int(t), True) for number in range(len(z))]
        row = assemble(videos, self.multiple, self.variant, self.patch)
        output = forward_row(self.chunks, row.to(self.device), 0).to(z.device)
        grid = grid_of(z, self.patch)
        parts = [unpatchify(part, z.shape[1], grid, self.patch) for part in output.chunk(len(videos))]
        found = torch.stack(parts)
        return (found[: len(z)], found[len(z) :]) if self.guided else (found, None)

    def _video(self, number: int, z: Tensor, t: int, dropped: bool) -> Video:
        given = self.frames[number]
        frames = len(given) + len(z)
        timestep = torch.where(torch.arange(frames) < len(given), 0, t)
        text = self.texts[number] if self.texts is not None else None
        if text is not None and dropped:
            text = Text(text.tokens, text.mask, dropped=True)
        places = torch.tensor(temporal_places(self.variant, frames, self.start))
        return Video(torch.cat([given, z]), len(given), timestep, places, text)


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
        patch, multiple = config.model.patch_size, config.parallel.row_multiple
        memory = WholeMemory(self.chunks, variant_of_run(config), patch, multiple, self.device, texts, guided)

        def noise(video: int, number: int, purpose: str, shape: tuple[int, ...]) -> Tensor:
            return normal(keys[video], f"sample/{seed}/{purpose}/{number}", shape)

        def observe(step: Step) -> None:
            if watch is not None:
                watch(step.z.shape[0] * step.z.shape[1] / settings.steps, 0)

        return rollout(memory, given.float(), wanted, solver, noise, blur, observe)

    def _texts(self, conditions: list[Tensor | None]) -> list[Text] | None:
        variant = variant_of_run(self.config)
        if not variant.text_width:
            return None
        nothing = Text(torch.zeros(1, variant.text_width), dropped=True)
        return [nothing if text is None else Text(text.cpu()) for text in conditions]
