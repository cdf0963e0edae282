"""The factorised network of frame as prompt without megatron-core: attention inside frames, to the prompt, along time
and to a text.  Names of the state dict are those of the published checkpoints.

Section numbers are those of tests/golden/vidgpt/README.md in megatron_videogpt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

try:
    from .cache_frameprompt import FramePromptCache
    from .configuration_frameprompt import FramePromptConfig
    from .layers_frameprompt import Block, FinalLayer, Pass, PatchEmbedder, Text, TextEmbedder, TimestepEmbedder
    from .rules_frameprompt import ROPE, places, spatial_table, temporal_mask, temporal_table, turned_places
    from .start_frameprompt import start_value
except ImportError:  # the folder itself is on sys.path
    from cache_frameprompt import FramePromptCache  # type: ignore[no-redef]
    from configuration_frameprompt import FramePromptConfig  # type: ignore[no-redef]
    from layers_frameprompt import (  # type: ignore[no-redef]
        Block,
        FinalLayer,
        Pass,
        PatchEmbedder,
        Text,
        TextEmbedder,
        TimestepEmbedder,
    )
    from rules_frameprompt import (  # type: ignore[no-redef]
        ROPE,
        places,
        spatial_table,
        temporal_mask,
        temporal_table,
        turned_places,
    )
    from start_frameprompt import start_value  # type: ignore[no-redef]

COMPUTED = ("pos_embed", "pos_embed_temporal")
"""Buffers of published files that follow from the sizes."""
UNREAD = "bov_token"
"""One that nothing reads, ``[C, h, w]``."""


@dataclass
class FramePromptOutput(ModelOutput):
    """noise and variance: of each frame, float32 ``[B, T, C, h, w]``; the variance is the raw output, see
    `ddpm.log_variance`.
    """

    noise: Tensor | None = None
    variance: Tensor | None = None


class FramePromptModel(PreTrainedModel):
    """Predicts the noise in frames, and the variance of the step back, from clean frames before them."""

    config_class = FramePromptConfig
    main_input_name = "latents"
    _no_split_modules = ["Block"]
    _keys_to_ignore_on_load_unexpected = [*COMPUTED, UNREAD]

    def __init__(self, config: FramePromptConfig) -> None:
        config.check()
        super().__init__(config)
        width = config.hidden_size
        self.x_embedder = PatchEmbedder(config)
        self.t_embedder = TimestepEmbedder(width)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        if config.caption_channels:
            self.y_embedder = TextEmbedder(config)
        self.blocks = nn.ModuleList(Block(config, block) for block in range(config.depth))
        self.final_layer = FinalLayer(config)
        self.tables: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        # What a run from scratch starts with; tensors that a checkpoint filled are marked by transformers.
        names = {module: name for name, module in self.named_modules()}
        for name, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if not getattr(value, "_is_hf_initialized", False) and value.device.type != "meta":
                key = f"{names[module]}.{name}"
                with torch.no_grad():
                    value.copy_(start_value(key, tuple(value.shape)))

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        prompt: int,
        start: int = 0,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
        dropped: Tensor | None = None,
        return_dict: bool = True,
    ) -> FramePromptOutput | tuple[Tensor, Tensor]:
        """Whole sequences: prompt frames, then frames to be denoised.

        Args:
            latents: float ``[B, T, C, h, w]``, of the config's size.
            timesteps: ``[B, T]``, 0 for prompt frames, or one a video, ``[B]``: whole numbers from 0 to 999.
            prompt: how many of the frames are prompt.
            start: of cyclic positions, the place of the first frame: frames of the whole video before it.
            text: features ``[B, N, channels]``, of models with text; text_mask: ``[B, N]``, not 0 where a token is
                seen, None for all; dropped: bool ``[B]``, whose text is replaced by "no text", under the same mask.

        Raises:
            ValueError: one line, for latents of another size, or text where the model has none or needs one.
        """
        if not 0 <= prompt <= latents.shape[1]:
            raise ValueError(f"prompt={prompt}: expected 0 to {latents.shape[1]}, the frames that there are")
        told = self.tell(text, text_mask, dropped)
        now = self._pass(latents.shape[1], prompt, start, None, False)
        raw = self._run(latents, timesteps, told, now)
        noise, variance = raw.float().chunk(2, dim=2)
        return FramePromptOutput(noise=noise, variance=variance) if return_dict else (noise, variance)

    @torch.no_grad()
    def whole(self, latents: Tensor, timesteps: Tensor, prompt: int, start: int, told: Text | None = None) -> Tensor:
        """`forward` for a sampler -> noise and raw variance, float32 ``[B, T, 2C, h, w]``; told: see `tell`."""
        return self._run(latents, timesteps, told, self._pass(latents.shape[1], prompt, start, None, False)).float()

    def new_cache(self, window: int) -> FramePromptCache:
        """An empty cache of so many frames."""
        return FramePromptCache(self.config.depth, window, self.config.spatial_attn_enhance)

    @torch.no_grad()
    def write(self, frames: Tensor, cache: FramePromptCache, told: Text | None = None) -> None:
        """Finished frames ``[B, T, C, h, w]``, which follow those that are in the cache; told: see `tell`."""
        now = self._pass(frames.shape[1], frames.shape[1], cache.written, cache, True)
        self._run(frames, frames.new_zeros(frames.shape[:2], dtype=torch.int64), told, now)
        cache.advance(frames.shape[1])

    @torch.no_grad()
    def denoise(self, chunk: Tensor, t: int, cache: FramePromptCache, told: Text | None = None) -> Tensor:
        """A noisy chunk ``[B, l, C, h, w]`` at timestep t after what is in the cache, which stays as it is -> noise and
        raw variance, float32 ``[B, l, 2C, h, w]``.
        """
        now = self._pass(chunk.shape[1], 0, cache.written, cache, False)
        times = torch.full(chunk.shape[:2], t, device=chunk.device)
        return self._run(chunk, times, told, now).float()

    def tell(self, text: Tensor | None, text_mask: Tensor | None = None, dropped: Tensor | None = None) -> Text | None:
        """Tokens of texts, for as many passes as may be; see `forward`."""
        channels = self.config.caption_channels
        if text is None:
            if channels:
                raise ValueError(f"text: this model needs the text encoder's features, [B, N, {channels}]")
            return None
        if not channels:
            raise ValueError("text: this model was trained without")
        longest = self.config.model_max_length
        if text.ndim != 3 or text.shape[2] != channels or not 1 <= text.shape[1] <= longest:
            raise ValueError(f"text: {list(text.shape)}; expected [B, N, {channels}] with N up to {longest}")
        return self.y_embedder(text, dropped), None if text_mask is None else text_mask != 0

    def _pass(self, frames: int, prompt: int, start: int, cache: FramePromptCache | None, write: bool) -> Pass:
        config, device = self.config, self.final_layer.linear.weight.device
        held = cache.held if cache is not None else 0
        mask = temporal_mask(config.is_causal, prompt, frames, held, device)
        position, turns = None, None
        if config.relative_tpe_mode == ROPE:
            queries, keys = turned_places(config.max_tpe_len, frames, held + frames, start)
            keys[:held] = cache.ages() if cache is not None else []
            turns = torch.tensor(queries, device=device), torch.tensor(keys, device=device)
        else:
            rows = places(config.relative_tpe_mode, config.max_tpe_len, frames, start, cache is not None)
            # By number, not by a list: that would be an index tensor, and a wait for the device.
            position = torch.stack([self._tables(device)[1][row] for row in rows])
            position = position.to(self.final_layer.linear.weight.dtype)
        told = torch.arange(frames, device=device) < prompt if config.temp_extra_in_channels else None
        return Pass(prompt, cache, write, mask, position, turns, told)

    def _run(self, latents: Tensor, timesteps: Tensor, told: Text | None, now: Pass) -> Tensor:
        """``[B, T, 2C, h, w]``; nothing where a write leaves only its keys and values."""
        size = [self.config.in_channels, *self.config.input_size]
        if latents.ndim != 5 or list(latents.shape[2:]) != size:
            raise ValueError(
                f"latents {list(latents.shape)}: this model takes [B, T, {', '.join(map(str, size))}]; another "
                "input_size in config.json takes others"
            )
        dtype = self.final_layer.linear.weight.dtype
        x = self.embed(latents.to(dtype))
        embedded = self.t_embedder(timesteps if timesteps.ndim == 2 else timesteps[:, None])
        embedded = embedded.expand(*x.shape[:2], -1)
        modulation = self.t_block(embedded).unflatten(-1, (6, -1))
        for number, block in enumerate(self.blocks, 1):
            x = block(x, modulation, told, now, now.write and number == len(self.blocks))
        return latents[:, :0] if now.write else self.to_latents(self.final_layer(x, embedded))

    def embed(self, latents: Tensor) -> Tensor:
        """Tokens with their places in the frame, ``[B, T, S, D]``."""
        return self.x_embedder(latents) + self._tables(latents.device)[0].to(latents.dtype)

    def to_latents(self, values: Tensor) -> Tensor:
        """Values of patches ``[B, T, S, rows * columns * 2C]`` to ``[B, T, 2C, h, w]``."""
        (rows, columns), (_, down, across) = self.config.grid, self.config.patch_size
        cells = values.unflatten(-1, (down, across, -1)).unflatten(2, (rows, columns))
        return cells.permute(0, 1, 6, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)

    def _tables(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Spatial and temporal positions, made once a device; not of a checkpoint, so that sizes may change."""
        if device not in self.tables:
            config, (rows, columns) = self.config, self.config.grid
            with torch.device("cpu"):
                spatial = spatial_table(config.hidden_size, rows, columns, config.space_scale)
                temporal = temporal_table(config.hidden_size, config.max_tpe_len, config.time_scale)
            self.tables[device] = spatial.to(device), temporal.to(device)
        return self.tables[device]

    def published_state(self) -> dict[str, Tensor]:
        """The state dict of a published file, with the buffers that follow from the sizes, and zeros for what nothing
        reads.
        """
        config = self.config
        spatial, temporal = self._tables(self.final_layer.linear.weight.device)
        unread = torch.zeros(config.in_channels, *config.input_size, device=spatial.device)
        return {**self.state_dict(), COMPUTED[0]: spatial[None], COMPUTED[1]: temporal[None], UNREAD: unread}

    def load_published(self, state: Mapping[str, Tensor]) -> None:
        """The tensors of a published file; its tables and what nothing reads are left out.

        Raises:
            ValueError: which keys it lacks or has too many, or a tensor of another shape.
        """
        given = {key: value for key, value in state.items() if key not in (*COMPUTED, UNREAD)}
        check_state(given, {key: tuple(value.shape) for key, value in self.state_dict().items()})
        self.load_state_dict(given)


def check_state(given: Mapping[str, Any], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """ValueError, one line, where tensors are not those of a model: of another variant or size."""
    lacking, unknown = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    for whose, keys in (("it lacks", lacking), ("this model has no place for", unknown)):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise ValueError(
                f"a checkpoint of another variant: {whose} {', '.join(keys[:3])}{more}; see caption_channels, "
                "spatial_attn_enhance and temp_extra_in_channels in config.json"
            )
    for key, shape in wanted.items():
        if tuple(given[key].shape) != shape:
            raise ValueError(
                f"{key}: shape {list(given[key].shape)}, and a model of this config.json has {list(shape)}"
            )


FramePromptModel.register_for_auto_class("AutoModel")
