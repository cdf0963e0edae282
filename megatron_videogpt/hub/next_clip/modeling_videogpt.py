"""The next-clip-diffusion model without megatron-core: noisy clips between clean ones through a Phi-3 decoder, with
keys and values of the clean past kept.

Layout, positions, masks and names of the state dict are those of the released Video-GPT.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import init
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

try:
    from ..common.configuration_videogpt import VideoGPTConfig
    from ..common.layers_videogpt import (
        Decoder,
        FinalLayer,
        PatchEmbedder,
        RMSNorm,
        TimestepEmbedder,
        condition_tokens,
        patch_grid,
        position_table,
        start_weight,
        token_positions,
    )
    from .history_videogpt import VideoGPTCache, dense_mask, prefix_attention
except ImportError:  # the folder itself is on sys.path
    from configuration_videogpt import VideoGPTConfig  # type: ignore[no-redef]
    from history_videogpt import VideoGPTCache, dense_mask, prefix_attention  # type: ignore[no-redef]
    from layers_videogpt import (
        Decoder,
        FinalLayer,
        PatchEmbedder,
        RMSNorm,
        TimestepEmbedder,
        condition_tokens,
        patch_grid,
        position_table,
        start_weight,
        token_positions,
    )  # type: ignore[no-redef]

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
        width, classes, features = config.hidden_size, config.class_names, config.text_feature_size
        self.class_embedding = nn.Embedding(len(classes), width) if classes else None
        self.text_projection = nn.Linear(features, width) if features else None
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        # What a run from scratch starts with.
        if module is self:
            table = position_table(self.config.pos_embed_max_size, self.config.hidden_size)
            start_weight(self.pos_embed, lambda tensor: tensor.copy_(table))
        elif isinstance(module, (nn.Linear, nn.Embedding)):
            learned = getattr(self.llm, "embed_positions", None)
            zero = module in (self.final_layer.linear, self.final_layer.adaLN_modulation[1], learned)
            start_weight(
                module.weight, lambda tensor: init.normal_(tensor, std=0.0 if zero else self.config.initializer_range)
            )
        elif isinstance(module, nn.Conv2d):
            bound = (
                (6 / (module.weight.shape[0] + module.weight[0].numel())) ** 0.5
                if module is self.input_x_embedder.proj
                else 0.0
            )
            start_weight(module.weight, lambda tensor: init.uniform_(tensor, -bound, bound))
        elif isinstance(module, (RMSNorm, nn.LayerNorm)):
            start_weight(module.weight, init.ones_)
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.LayerNorm)) and module.bias is not None:
            start_weight(module.bias, init.zeros_)

    def forward(
        self,
        noisy_latents: Tensor,
        timesteps: Tensor,
        clean_latents: Tensor | None,
        clips: list[int],
        return_dict: bool = True,
        condition: Tensor | None = None,
    ) -> VideoGPTOutput | tuple[Tensor]:
        """The training layout: clip by clip all noisy frames, then (but for the last clip) all clean ones; the mask is
        dense.

        Args:
            noisy_latents: ``[B, N, C, h, w]``; the samples of a batch share their clips.
            timesteps: ``[B, N]`` in [0, 1], 0 is noise.
            clean_latents: ``[B, M, C, h, w]`` of all clips but the last, M = N - clips[-1]; None where M is 0.
            clips: frames of each clip, in order.
            condition: see `layers_videogpt.condition_tokens`; None for none.

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
        blocks = [block for block in blocks if not block[1] or block[0] < len(clips) - 1]
        sample = self._dense(blocks, noisy_latents, timesteps, clean, condition)
        return VideoGPTOutput(sample=sample) if return_dict else (sample,)

    def recompute(self, noisy: Tensor, t: Tensor, history: Tensor, condition: Tensor | None = None) -> Tensor:
        """A noisy clip ``[B, G, C, h, w]`` at ``[B, G]`` after a condition and clean frames ``[B, H, C, h, w]`` (H may
        be 0), without a cache: see `denoise`.
        """
        frames = history.shape[1]
        blocks = [(0, True, frame) for frame in range(frames)] + [
            (1, False, frames + frame) for frame in range(noisy.shape[1])
        ]
        return self._dense(blocks, noisy, t, history, condition)

    def _dense(
        self, blocks: list[tuple[int, bool, int]], noisy: Tensor, t: Tensor, clean: Tensor, condition: Tensor | None
    ) -> Tensor:
        """Frames as (clip, clean, number) in the order of the sequence, all in one pass."""
        grid = patch_grid(self.config, noisy)
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
        x = x.flatten(1, 2)
        prefix = x[:, :0] if condition is None else condition_tokens(self, condition).to(x.dtype)
        first = prefix.shape[1]
        mask = dense_mask(blocks, grid[0] * grid[1], first).to(noisy.device)
        positions = token_positions(self.config, [block[2] for block in blocks], grid, first).to(self.pos_embed.device)
        positions = torch.cat([torch.arange(first, device=positions.device), positions])

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1])

        hidden = self.llm(torch.cat([prefix, x], dim=1), positions, attend)[:, first:].unflatten(1, (len(blocks), -1))
        return self._predict(hidden[:, noisy_at, 2:], t, grid)

    def new_cache(self, dtype: torch.dtype | None = None, offload: bool = False) -> VideoGPTCache:
        """An empty cache for `encode_clean`; dtype None keeps that of the weights, offload keeps it in host memory and
        brings a layer at a time.
        """
        return VideoGPTCache(self.config.num_hidden_layers, dtype, offload)

    @torch.no_grad()
    def encode_condition(self, condition: Tensor, cache: VideoGPTCache) -> None:
        """Put a condition (see `layers_videogpt.condition_tokens`) into a cache; ValueError where that is not empty."""
        if cache.prefix or cache.frames:
            raise ValueError("a condition comes first: use a cache that holds nothing yet")
        tokens = condition_tokens(self, condition)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            cache.append(layer, k, v)
            return F.scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1])

        self.llm(tokens, torch.arange(tokens.shape[1], device=tokens.device), attend)
        cache.prefix = tokens.shape[1]

    @torch.no_grad()
    def encode_clean(self, frames: Tensor, cache: VideoGPTCache) -> None:
        """Append clean frames ``[B, F, C, h, w]`` to a cache; ValueError where their size is not that of the frames in
        it.
        """
        grid = patch_grid(self.config, frames)
        cache.check(frames, grid)
        cache.grid, tokens = grid, grid[0] * grid[1] + 2
        for part in frames.split(max(1, ENCODED_AT_ONCE // tokens), dim=1):
            count = part.shape[1]

            def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, count: int = count) -> Tensor:
                every_k, every_v = cache.joined(layer, k, v)
                cache.append(layer, k, v)
                return prefix_attention(q, every_k, every_v, [1, tokens - 2, 1] * count)

            self.llm(
                self._clean_tokens(part, grid).flatten(1, 2),
                token_positions(self.config, range(cache.frames, cache.frames + count), grid, cache.prefix).to(
                    self.pos_embed.device
                ),
                attend,
            )
            cache.frames += count

    def denoise(self, noisy: Tensor, t: Tensor | float, cache: VideoGPTCache | None = None) -> Tensor:
        """Predict the clean latents of one noisy clip after the clean frames of a cache, running the clip's tokens
        alone.

        Args:
            noisy: ``[B, G, C, h, w]``.
            t: one timestep, or ``[B, G]``.
            cache: the condition and the frames that the clip follows, batch size B; None for nothing (positions start
                at 0).

        Returns:
            ``[B, G, C, h, w]`` float32.
        """
        grid, count = patch_grid(self.config, noisy), noisy.shape[1]
        past, first = (cache.frames, cache.prefix) if cache else (0, 0)
        if cache is not None:
            cache.check(noisy, grid)
        t = torch.as_tensor(t, dtype=torch.float32, device=noisy.device).expand(noisy.shape[:2])
        # Sorted by level, each level sees the past and everything up to its own end, so that no mask is needed.
        order = torch.arange(count * (grid[0] * grid[1] + 2), device=noisy.device).view(count, -1)
        order = torch.cat([order[:, 0], order[:, 1], order[:, 2:].flatten()])

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return prefix_attention(
                q, *(cache.joined(layer, k, v) if cache else (k, v)), [count, count, len(order) - 2 * count]
            )

        x = self._noisy_tokens(noisy, t, grid).flatten(1, 2)[:, order]
        hidden = self.llm(
            x,
            token_positions(self.config, range(past, past + count), grid, first).to(self.pos_embed.device)[order],
            attend,
        )[:, 2 * count :]
        return self._predict(hidden.unflatten(1, (count, -1)), t, grid)

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


VideoGPTModel.register_for_auto_class("AutoModel")
