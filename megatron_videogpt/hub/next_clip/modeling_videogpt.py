"""The next-clip-diffusion model without megatron-core: noisy clips between clean ones through a Phi-3 decoder, with
keys and values of the clean past kept.

Layout, positions, masks and names of the state dict are those of the released Video-GPT.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import init
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

try:
    from ..common.configuration_videogpt import VideoGPTConfig
    from ..common.layers_videogpt import Decoder, FinalLayer, PatchEmbedder, RMSNorm, TimestepEmbedder, position_table
    from .history_videogpt import VideoGPTCache, dense_mask, prefix_attention
except ImportError:  # the folder itself is on sys.path
    from configuration_videogpt import VideoGPTConfig  # type: ignore[no-redef]
    from history_videogpt import VideoGPTCache, dense_mask, prefix_attention  # type: ignore[no-redef]
    from layers_videogpt import Decoder, FinalLayer, PatchEmbedder, RMSNorm, TimestepEmbedder, position_table  # type: ignore[no-redef]

ENCODED_AT_ONCE = 4096  # most tokens of a history in one pass, where frames are smaller


@dataclass
class VideoGPTOutput(ModelOutput):
    """sample: predicted clean latents ``[B, N, C, h, w]`` float32."""

    sample: Tensor | None = None


class VideoGPTModel(PreTrainedModel):
    """Predicts the clean latents of noisy clips, each given the clean clips before it."""

    config_class = VideoGPTConfig
    main_input_name = "noisy_latents"
    _no_split_modules = ["DecoderLayer"]
    _supports_sdpa = True

    pos_embed: Tensor

    def __init__(self, config: VideoGPTConfig) -> None:
        config.check()
        super().__init__(config)
        self.register_buffer("pos_embed", torch.zeros(1, config.pos_embed_max_size**2, config.hidden_size))
        self.x_embedder, self.input_x_embedder = PatchEmbedder(config), PatchEmbedder(config)
        self.time_token, self.t_embedder = TimestepEmbedder(config.hidden_size), TimestepEmbedder(config.hidden_size)
        self.llm = Decoder(config)
        self.final_layer = FinalLayer(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        # What a run from scratch starts with.
        if module is self:
            table = position_table(self.config.pos_embed_max_size, self.config.hidden_size)
            _start(self.pos_embed, lambda tensor: tensor.copy_(table))
        elif isinstance(module, (nn.Linear, nn.Embedding)):
            learned = getattr(self.llm, "embed_positions", None)
            zero = module in (self.final_layer.linear, self.final_layer.adaLN_modulation[1], learned)
            _start(
                module.weight, lambda tensor: init.normal_(tensor, std=0.0 if zero else self.config.initializer_range)
            )
        elif isinstance(module, nn.Conv2d):
            bound = (
                (6 / (module.weight.shape[0] + module.weight[0].numel())) ** 0.5
                if module is self.input_x_embedder.proj
                else 0.0
            )
            _start(module.weight, lambda tensor: init.uniform_(tensor, -bound, bound))
        elif isinstance(module, (RMSNorm, nn.LayerNorm)):
            _start(module.weight, init.ones_)
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.LayerNorm)) and module.bias is not None:
            _start(module.bias, init.zeros_)

    def forward(
        self,
        noisy_latents: Tensor,
        timesteps: Tensor,
        clean_latents: Tensor | None,
        clips: list[int],
        return_dict: bool = True,
    ) -> VideoGPTOutput | tuple[Tensor]:
        """The training layout: clip by clip all noisy frames, then (but for the last clip) all clean ones; the mask is
        dense.

        Args:
            noisy_latents: ``[B, N, C, h, w]``; the samples of a batch share their clips.
            timesteps: ``[B, N]`` in [0, 1], 0 is noise.
            clean_latents: ``[B, M, C, h, w]`` of all clips but the last, M = N - clips[-1]; None where M is 0.
            clips: frames of each clip, in order.

        Raises:
            ValueError: shapes that do not fit each other, the clips or the model.
        """
        clean = noisy_latents[:, :0] if clean_latents is None else clean_latents
        if not clips or min(clips) < 1 or sum(clips) != noisy_latents.shape[1] or clean.shape[1] != sum(clips[:-1]):
            raise ValueError(
                f"clips={list(clips)} with {noisy_latents.shape[1]} noisy and {clean.shape[1]} clean frames: "
                "the clips must add up to the noisy frames, "
                "and all but the last one to the clean frames"
            )
        starts = [sum(clips[:k]) for k in range(len(clips) + 1)]
        blocks = [
            (k, is_clean, frame)
            for k in range(len(clips))
            for is_clean in (False, True)
            for frame in range(starts[k], starts[k + 1])
        ]
        sample = self._dense(
            [block for block in blocks if not block[1] or block[0] < len(clips) - 1], noisy_latents, timesteps, clean
        )
        return VideoGPTOutput(sample=sample) if return_dict else (sample,)

    def recompute(self, noisy: Tensor, t: Tensor, history: Tensor) -> Tensor:
        """A noisy clip ``[B, G, C, h, w]`` at ``[B, G]`` after clean frames ``[B, H, C, h, w]`` (H may be 0), without a
        cache: see `denoise`.
        """
        frames = history.shape[1]
        blocks = [(0, True, frame) for frame in range(frames)] + [
            (1, False, frames + frame) for frame in range(noisy.shape[1])
        ]
        return self._dense(blocks, noisy, t, history)

    def _dense(self, blocks: list[tuple[int, bool, int]], noisy: Tensor, t: Tensor, clean: Tensor) -> Tensor:
        """Frames as (clip, clean, number) in the order of the sequence, all in one pass."""
        grid = self._grid(noisy)
        if t.shape != noisy.shape[:2] or clean.shape[0] != noisy.shape[0] or clean.shape[2:] != noisy.shape[2:]:
            raise ValueError(
                f"timesteps {list(t.shape)}, clean latents {list(clean.shape)}: expected {list(noisy.shape[:2])} "
                f"and the batch and sizes of the noisy latents {list(noisy.shape)}"
            )
        places = [[number for number, block in enumerate(blocks) if block[1] == kind] for kind in (False, True)]
        # Numbers instead of a boolean mask, whose size a device would have to tell first.
        noisy_at, clean_at = (torch.tensor(numbers, dtype=torch.long, device=noisy.device) for numbers in places)
        noisy_frames, clean_frames = self._noisy_tokens(noisy, t, grid), self._clean_tokens(clean, grid)
        x = noisy_frames.new_empty(len(noisy), len(blocks), *noisy_frames.shape[2:])
        x[:, noisy_at], x[:, clean_at] = noisy_frames, clean_frames
        mask = dense_mask(blocks, grid[0] * grid[1]).to(noisy.device)
        positions = self._positions([block[2] for block in blocks], grid)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1])

        hidden = self.llm(x.flatten(1, 2), positions, attend).unflatten(1, (len(blocks), -1))
        return self._predict(hidden[:, noisy_at, 2:], t, grid)

    def new_cache(self, dtype: torch.dtype | None = None, offload: bool = False) -> VideoGPTCache:
        """An empty cache for `encode_clean`; dtype None keeps that of the weights, offload keeps it in host memory and
        brings a layer at a time.
        """
        return VideoGPTCache(self.config.num_hidden_layers, dtype, offload)

    @torch.no_grad()
    def encode_clean(self, frames: Tensor, cache: VideoGPTCache) -> None:
        """Append clean frames ``[B, F, C, h, w]`` to a cache; ValueError where their size is not that of the frames in
        it.
        """
        grid = self._grid(frames)
        _check_fit(cache, frames, grid)
        cache.grid, tokens = grid, grid[0] * grid[1] + 2
        for part in frames.split(max(1, ENCODED_AT_ONCE // tokens), dim=1):
            count = part.shape[1]

            def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, count: int = count) -> Tensor:
                every_k, every_v = cache.joined(layer, k, v)
                cache.append(layer, k, v)
                return prefix_attention(q, every_k, every_v, [1, tokens - 2, 1] * count)

            self.llm(
                self._clean_tokens(part, grid).flatten(1, 2),
                self._positions(range(cache.frames, cache.frames + count), grid),
                attend,
            )
            cache.frames += count

    def denoise(self, noisy: Tensor, t: Tensor | float, cache: VideoGPTCache | None = None) -> Tensor:
        """Predict the clean latents of one noisy clip after the clean frames of a cache, running the clip's tokens
        alone.

        Args:
            noisy: ``[B, G, C, h, w]``.
            t: one timestep, or ``[B, G]``.
            cache: what the clip follows, batch size B; None for nothing (positions start at 0).

        Returns:
            ``[B, G, C, h, w]`` float32.
        """
        grid, count, past = self._grid(noisy), noisy.shape[1], cache.frames if cache else 0
        if cache is not None:
            _check_fit(cache, noisy, grid)
        t = torch.as_tensor(t, dtype=torch.float32, device=noisy.device).expand(noisy.shape[:2])
        # Sorted by level, each level sees the past and everything up to its own end, so that no mask is needed.
        order = torch.arange(count * (grid[0] * grid[1] + 2), device=noisy.device).view(count, -1)
        order = torch.cat([order[:, 0], order[:, 1], order[:, 2:].flatten()])

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return prefix_attention(
                q, *(cache.joined(layer, k, v) if cache else (k, v)), [count, count, len(order) - 2 * count]
            )

        x = self._noisy_tokens(noisy, t, grid).flatten(1, 2)[:, order]
        hidden = self.llm(x, self._positions(range(past, past + count), grid)[order], attend)[:, 2 * count :]
        return self._predict(hidden.unflatten(1, (count, -1)), t, grid)

    def _grid(self, latents: Tensor) -> tuple[int, int]:
        """Patches down and across."""
        patch, side, shape = self.config.patch_size, self.config.pos_embed_max_size, tuple(latents.shape)
        if (
            len(shape) != 5
            or shape[2] != self.config.in_channels
            or shape[3] % patch
            or shape[4] % patch
            or not 0 < max(shape[3:]) <= patch * side
        ):
            raise ValueError(
                f"latents {list(shape)}: expected [batch, frames, {self.config.in_channels}, h, w], h and w "
                f"multiples of {patch} of at most {patch * side}"
            )
        return shape[3] // patch, shape[4] // patch

    def _positions(self, frames: list[int] | range, grid: tuple[int, int]) -> Tensor:
        """``[L]`` of the tokens of frames with these numbers; ValueError where the model has not learned them all."""
        tokens, rows = grid[0] * grid[1] + 2, self.config.max_position_embeddings
        if self.config.positions == "learned" and (max(frames, default=-1) + 1) * tokens > rows:
            raise ValueError(f"{max(frames) + 1} frames of {tokens} tokens: the model has learned {rows} positions")
        return (torch.tensor(list(frames))[:, None] * tokens + torch.arange(tokens)).flatten().to(self.pos_embed.device)

    def _patches(self, embedder: PatchEmbedder, latents: Tensor, grid: tuple[int, int]) -> Tensor:
        """``[B, F, P, D]`` with the centred crop of the position table added."""
        side = self.config.pos_embed_max_size
        top, left = (side - grid[0]) // 2, (side - grid[1]) // 2
        crop = self.pos_embed.view(side, side, -1)[top : top + grid[0], left : left + grid[1]].reshape(
            1, grid[0] * grid[1], -1
        )
        patches = embedder(latents.flatten(0, 1))
        return (patches + crop.to(patches.dtype)).unflatten(0, latents.shape[:2])

    def _hint(self, which: int, patches: Tensor) -> Tensor:
        row = self.llm.embed_tokens.weight[self.config.hint_ids[which]]
        return row.to(patches.dtype).expand(*patches.shape[:2], 1, -1)

    def _noisy_tokens(self, latents: Tensor, t: Tensor, grid: tuple[int, int]) -> Tensor:
        """``[B, F, P + 2, D]``: diffusion token, time token, patches."""
        patches = self._patches(self.x_embedder, latents, grid)
        return torch.cat([self._hint(0, patches), self.time_token(t)[:, :, None], patches], dim=2)

    def _clean_tokens(self, latents: Tensor, grid: tuple[int, int]) -> Tensor:
        """``[B, F, P + 2, D]``: start token, patches, end token."""
        patches = self._patches(self.input_x_embedder, latents, grid)
        return torch.cat([self._hint(1, patches), patches, self._hint(2, patches)], dim=2)

    def _predict(self, hidden: Tensor, t: Tensor, grid: tuple[int, int]) -> Tensor:
        """Hidden states of noisy patches ``[B, F, P, D]`` -> latents ``[B, F, C, h, w]``."""
        patch = self.config.patch_size
        values = (
            self.final_layer(hidden, self.t_embedder(t)).float().unflatten(2, grid).unflatten(-1, (patch, patch, -1))
        )
        return values.permute(0, 1, 6, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)


def _start(tensor: Tensor, fill: Callable[[Tensor], object]) -> None:
    # transformers (4 and 5) so marks what a checkpoint fills; only 5 has functions that look at the mark.
    if not getattr(tensor, "_is_hf_initialized", False):
        fill(tensor)


def _check_fit(cache: VideoGPTCache, frames: Tensor, grid: tuple[int, int]) -> None:
    held = cache.layers[0]
    if held is not None and (cache.grid != grid or len(held[0]) != len(frames)):
        raise ValueError(
            f"a cache of {len(held[0])} videos of {cache.grid} patches cannot go with latents "
            f"{list(frames.shape)}: use a cache of its own"
        )


VideoGPTModel.register_for_auto_class("AutoModel")
