"""The factorised network on megatron-core as its sampler asks it (`hub/frame_prompt/sampling_frameprompt.Memory`): with
keys and values of finished frames kept, or with the whole window computed again in every step.

Every rank of a model parallel group must use its memory alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ....model.cache import CachedRow
from ....model.forward import forward_row
from ....model.patches import grid_of, patchify, unpatchify
from ....sequence.row import Row
from .kept import Kept
from .rows import Text, Video, assemble
from .variant import CYCLIC, Variant, temporal_places


@dataclass(frozen=True)
class Told:
    """A network with what it is told of several videos.

    patch: `model.patch_size`; multiple: of tokens in a row; texts: one for each video, None without; guided: whether a
    prediction without the text is wanted too: each video stands in a row a second time, with "no text".
    """

    chunks: list[Any]
    variant: Variant
    patch: int
    multiple: int
    device: torch.device
    texts: list[Text] | None = None
    guided: bool = False

    def row(self, frames: Tensor, prompt: int, places: list[int]) -> Row:
        """Frames ``[B, T, C, h, w]`` of which so many are given, at timestep 0, on the host."""
        timestep, where = torch.zeros(frames.shape[1], dtype=torch.int64), torch.tensor(places)
        videos = []
        for dropped in (False, True) if self.guided else (False,):
            for number, latents in enumerate(frames.cpu()):
                text = self.texts[number] if self.texts is not None else None
                text = replace(text, dropped=True) if text is not None and dropped else text
                videos.append(Video(latents, prompt, timestep, where, text))
        return assemble(videos, self.multiple, self.variant, self.patch)

    def at(self, row: Row, frames: Tensor, prompt: int, t: int) -> Row:
        """The row, on the device, with these frames instead and its noisy ones at timestep t."""
        copies, stream = 1 + self.guided, row.streams["patch"]
        value = patchify(frames.flatten(0, 1), self.patch).to(self.device).repeat(copies, 1)
        timestep = torch.where(torch.arange(frames.shape[1]) < prompt, 0, t).repeat(copies * len(frames))
        streams = row.streams | {"patch": replace(stream, values=stream.values | {"value": value})}
        return replace(row, streams=streams, units={"timestep": timestep.to(self.device)})

    def predict(
        self, row: Row, z: Tensor, cached: Mapping[int, CachedRow] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """See `Memory.predict`: noise and raw variance ``[B, l, 2C, h, w]`` of a row with these noisy frames."""
        output, videos = forward_row(self.chunks, row, 0, cached).to(z.device), (1 + self.guided) * len(z)
        grid = grid_of(z, self.patch)
        found = torch.stack([unpatchify(part, z.shape[1], grid, self.patch) for part in output.chunk(videos)])
        return (found[: len(z)], found[len(z) :]) if self.guided else (found, None)


class WholeMemory:
    """`Memory` of a network that is shown all frames anew."""

    cached = False

    def __init__(self, told: Told) -> None:
        self.told = told
        self.begin()

    def begin(self) -> None:
        """See `Memory`: nothing is kept from one rollout to the next."""
        self.frames, self.start, self.row = torch.zeros(0), 0, dict[torch.Size, Row]()

    def show(self, frames: Tensor, start: int) -> None:
        """See `Memory`."""
        self.frames, self.start, self.row = frames, start, {}

    def predict(self, z: Tensor, t: float) -> tuple[Tensor, Tensor | None]:
        """See `Memory`."""
        told, prompt, frames = self.told, self.frames.shape[1], torch.cat([self.frames, z], dim=1)
        if z.shape not in self.row:
            places = temporal_places(told.variant, frames.shape[1], self.start)
            self.row[z.shape] = told.row(frames, prompt, places).to(told.device)
        return told.predict(told.at(self.row[z.shape], frames, prompt, int(t)), z)


class CachedMemory:
    """`Memory` that computes every finished frame once, when its chunk is done; all steps of the next ones read what it
    left.  With guidance each of both branches has its own.

    window: frames that are kept; dtype, offload: of `model.cache.KeyValueCache`.
    """

    cached = True

    def __init__(self, told: Told, window: int, dtype: torch.dtype | None = None, offload: bool = False) -> None:
        self.told, self.window, self.dtype, self.offload = told, window, dtype, offload
        self.kept: Kept | None = None
        self.begin()

    def begin(self) -> None:
        """See `Memory`; positions that are fixed count from the first frame that is shown behind this."""
        self.first, self.row = 0, dict[torch.Size, tuple[Row, dict[int, CachedRow]]]()
        if self.kept is not None:
            self.kept.begin()

    def show(self, frames: Tensor, start: int) -> None:
        """See `Memory`.

        Raises:
            ValueError: frames that do not follow those that were shown before.
        """
        kept = self._kept(frames)
        if not kept.written:
            self.first = start
        if start != self.first + kept.written:
            raise ValueError(f"frames from {start} on: the cache has {self.first} to {self.first + kept.written}")
        row, met = self._row(frames, True)
        forward_row(self.told.chunks, row, 0, met)
        kept.wrote(met, frames.shape[1])
        self.row = {}

    def predict(self, z: Tensor, t: float) -> tuple[Tensor, Tensor | None]:
        """See `Memory`."""
        if z.shape not in self.row:
            self.row[z.shape] = self._row(z, False)
        row, met = self.row[z.shape]
        return self.told.predict(self.told.at(row, z, 0, int(t)), z, met)

    def _kept(self, frames: Tensor) -> Kept:
        """For as many videos, of the same size, as the frames are of."""
        (rows, columns), told = grid_of(frames, self.told.patch), self.told
        videos, patches = (1 + told.guided) * len(frames), rows * columns
        if self.kept is None or (self.kept.videos, self.kept.patches) != (videos, patches):
            self.kept = Kept(told.variant, videos, patches, self.window, self.dtype, self.offload)
        return self.kept

    def _row(self, frames: Tensor, writing: bool) -> tuple[Row, dict[int, CachedRow]]:
        """A pass of frames alone, behind what is kept, on the device."""
        told, kept, count = self.told, self._kept(frames), frames.shape[1]
        number = kept.written + (self.first if told.variant.positions == CYCLIC else 0)
        places = temporal_places(told.variant, count, number, cached=True)
        row, met = kept.met(told.row(frames, count if writing else 0, places), count, writing)
        return row.to(told.device), {mask: cached.to(told.device) for mask, cached in met.items()}
