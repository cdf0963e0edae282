"""Videos of codes, continued clip after clip over a sliding window of latent frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ...codec.fsq import codes_of, ids_of
from ...codec.geometry import expected_levels
from ...config.schema import Config, SampleConfig
from ...errors import UserError
from ...hub.next_block.sampling_nextblock import UNKNOWN, Drawing, Drawn, Video, draw_tokens
from ..base import Watch
from ..noise import exponential
from .network import Network, Place
from .sequence import block_order
from .vocabulary import HYBRID, vocabulary_of


class BlockSampler:
    """`Sampler` of next block prediction: codes in, codes out, each drawn with noise of its own."""

    def __init__(self, chunks: list[Any], config: Config, device: torch.device) -> None:
        self.chunks, self.config, self.device = chunks, config, device
        self.vocabulary, self.levels = vocabulary_of(config), expected_levels(config.codec)
        self.prefix, self.shape = config.condition.most_tokens, config.objective.block_shape

    @torch.no_grad()
    def rollout(
        self,
        histories: list[Tensor],
        settings: SampleConfig,
        keys: Sequence[int],
        seed: int,
        conditions: list[Tensor | None] | None = None,
        watch: Watch | None = None,
    ) -> Iterator[list[Tensor]]:
        """See `Sampler`: a window has no more frames than those that the model was trained with."""
        window = min(settings.window, self.config.data.frames)
        told = [None] * len(histories) if conditions is None else conditions
        videos = [
            _Rolling(ids_of(past, self.levels).cpu() + self.vocabulary.code_offset, self._condition(one))
            for past, one in zip(histories, told)
        ]
        how = drawing(settings)
        longest = [min(window, len(video.frames) + sum(settings.clips)) for video in videos]
        places = [
            Place(self.prefix, one is None and self.prefix > 0, self._input(frames * video.cells))
            for one, frames, video in zip(told, longest, videos)
        ]
        network = Network(self.chunks, self.config, self.device, self.vocabulary, places)
        for number, frames in enumerate(settings.clips, 1):
            # Positions count from the window's first frame.
            if any([video.slide(window - frames) for video in videos]):
                network.forget()
            waiting = [self._waiting(video, frames, window, number) for video in videos]
            tokens = [self._order(video, frames) for video in videos]

            def noise(video: int, place: int, count: int, tokens: list[Tensor] = tokens) -> Tensor:
                rolling = videos[video]
                cells = tokens[video][place : place + count] + rolling.dropped * rolling.cells
                drawn = [exponential(keys[video], f"sample/{seed}/token/{int(cell)}", self.vocabulary.size)
                         for cell in cells]  # fmt: skip
                return torch.stack(drawn)

            def observe(step: list[Drawn]) -> None:
                if watch is not None:
                    frames = sum(len(drawn.ids) / videos[drawn.video].cells for drawn in step)
                    watch(frames, sum(len(drawn.ids) for drawn in step))

            draw_tokens(network, waiting, how, noise, observe)
            for rolling, video, order in zip(videos, waiting, tokens):
                rolling.extend(video.tokens, order)
            yield [self._latents(video.frames[-frames:], past) for video, past in zip(videos, histories)]

    def _condition(self, condition: Tensor | None) -> Tensor:
        """Ids ``[m]``; those of no condition are not looked at."""
        ids = torch.zeros(self.prefix).long() if condition is None else condition.cpu().long()
        return ids + self.vocabulary.condition_offset

    def _input(self, tokens: int) -> int:
        """Tokens that go through the model for a video of so many."""
        block = self.vocabulary.block
        return self.prefix + tokens - block + (block if self.vocabulary.layout == HYBRID else 0)

    def _order(self, video: _Rolling, frames: int) -> Tensor:
        """Place in raster order of every token of the window, so many new frames counted, in the order of blocks."""
        count, (_, rows, columns) = len(video.frames) + frames, video.frames.shape
        if not self.shape:
            return torch.arange(count * rows * columns)
        return block_order((count, rows, columns), (self.shape[0], self.shape[1], self.shape[2]))

    def _waiting(self, video: _Rolling, frames: int, window: int, number: int) -> Video:
        """The window with so many new frames as the sampler takes it; UserError where there is none."""
        block, hybrid = self.vocabulary.block, self.vocabulary.layout == HYBRID
        past, (_, rows, columns) = len(video.frames), video.frames.shape
        what = f"clip {number} of {frames} latent frames"
        if frames > window:
            raise UserError(
                f"{what}: the window has {window} (the model was trained with {self.config.data.frames}); use shorter "
                "clips (--clips, sample.clips)"
            )
        if frames == window and (video.dropped or past):
            raise UserError(
                f"{what}: the window of {window} leaves no room for a frame before it; use shorter clips (--clips)"
            )
        sizes = self.shape or (1, 1, 1)
        wrong = any(whole % part for whole, part in zip((past + frames, rows, columns), sizes))
        if wrong or (past + frames) * video.cells % block:
            blocks = "x".join(map(str, self.shape)) or f"{block} tokens"
            raise UserError(
                f"{what} after {past}, {rows}x{columns} tokens each: no whole number of blocks of {blocks}; use "
                "another number of frames (--clips, --history), or a video of another size"
            )
        order = self._order(video, frames)
        new = torch.full((frames * video.cells,), UNKNOWN)
        waiting = Video(video.condition, torch.cat([video.frames.flatten(), new])[order], block, hybrid)
        if not hybrid and not waiting.count:
            raise UserError(
                f"{what} after {past}: objective.layout = {self.vocabulary.layout} predicts no video's first block "
                f"({block} tokens); give more frames (--history), or use a shorter clip (--clips)"
            )
        return waiting

    def _latents(self, ids: Tensor, like: Tensor) -> Tensor:
        """Codes ``[n, d, h, w]``; an id that is no code counts as the nearest one."""
        codes = (ids - self.vocabulary.code_offset).clamp(0, self.vocabulary.codes - 1)
        return codes_of(codes, self.levels).to(like.device)


class _Rolling:
    """A video's last frames, int64 ids ``[F, h, w]`` as they were drawn; dropped: frames before them."""

    def __init__(self, frames: Tensor, condition: Tensor) -> None:
        self.frames, self.condition, self.dropped = frames, condition, 0
        self.cells = frames.shape[1] * frames.shape[2]

    def slide(self, most: int) -> bool:
        """Keep the last `most` frames; whether others went."""
        gone = max(0, len(self.frames) - max(0, most))
        self.frames, self.dropped = self.frames[gone:], self.dropped + gone
        return gone > 0

    def extend(self, tokens: Tensor, order: Tensor) -> None:
        """The whole window anew.  tokens: in the order of blocks, of which `order` gives the places."""
        raster = torch.empty_like(tokens)
        raster[order] = tokens
        self.frames = raster.view(-1, *self.frames.shape[1:])


def drawing(settings: SampleConfig) -> Drawing:
    """What the section `sample` says of how an id is drawn."""
    return Drawing(
        settings.temperature, settings.top_k, settings.top_p, settings.guidance_ratio, settings.guidance_grows
    )


def build_sampler(chunks: list[Any], config: Config, device: torch.device) -> BlockSampler:
    """See `objective.build`."""
    return BlockSampler(chunks, config, device)
