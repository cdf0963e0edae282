"""The exported model as the sampler sees it: a denoiser that remembers the clean history as keys and values."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

try:
    from ..common.layers_videogpt import computing_device
    from ..common.sampling_videogpt import Denoiser, Recompute
    from .history_videogpt import VideoGPTCache
    from .modeling_videogpt import VideoGPTModel
except ImportError:  # the folder itself is on sys.path
    from history_videogpt import VideoGPTCache  # type: ignore[no-redef]
    from layers_videogpt import computing_device  # type: ignore[no-redef]
    from modeling_videogpt import VideoGPTModel  # type: ignore[no-redef]
    from sampling_videogpt import Denoiser, Recompute  # type: ignore[no-redef]


class HubDenoiser:
    """Implements the sampler's `Denoiser`; videos of equal length, size and tokens of a condition go through the model
    together.

    cache_dtype: of keys and values, None for that of the weights; offload: they stay in host memory and come to the
    device a layer at a time.
    """

    def __init__(self, model: VideoGPTModel, cache_dtype: torch.dtype | None = None, offload: bool = False) -> None:
        self.model, self.cache_dtype, self.offload = model, cache_dtype, offload
        self.groups: list[tuple[list[int], VideoGPTCache]] = []
        self.conditions: list[Tensor | None] = []

    def begin(self, conditions: list[Tensor | None]) -> None:
        """See `Denoiser.begin`."""
        self.conditions, self.groups = list(conditions), []

    @torch.no_grad()
    def remember(self, histories: list[Tensor], kept: list[int]) -> None:
        """See `Denoiser.remember`."""
        device, members = (
            computing_device(self.model),
            _alike(list(zip(map(_shape, histories), map(_shape, self.conditions)))),
        )
        grouped = [videos for videos, _ in self.groups]
        # Videos that the window made alike go together from then on.
        if not grouped or (not any(kept) and grouped != members):
            self.groups = [(videos, self.model.new_cache(self.cache_dtype, self.offload)) for videos in members]
            for videos, cache in self.groups:
                condition = _stacked(self.conditions, videos)
                if condition is not None:
                    self.model.encode_condition(condition.to(device), cache)
        for videos, cache in self.groups:
            cache.truncate(min(kept[video] for video in videos))
            new = torch.stack([histories[video][cache.frames :] for video in videos])
            if new.shape[1]:
                self.model.encode_clean(new.to(device), cache)

    @torch.no_grad()
    def predict(self, clips: list[Tensor], t: float, guided: bool) -> tuple[list[Tensor], list[Tensor] | None]:
        """See `Denoiser.predict`."""
        device = computing_device(self.model)
        cond, uncond = list(clips), list(clips)
        for videos, cache in self.groups:
            noisy = torch.stack([clips[video] for video in videos]).to(device)
            _place(cond, videos, self.model.denoise(noisy, t, cache))
            if guided:
                _place(uncond, videos, self.model.denoise(noisy, t))
        return cond, uncond if guided else None


def denoiser_of(
    model: VideoGPTModel, cache: bool = True, cache_dtype: torch.dtype | None = None, offload: bool = False
) -> Denoiser:
    """A denoiser with keys and values kept, or without: then the history goes through the model again at every step."""
    return HubDenoiser(model, cache_dtype, offload) if cache else Recompute(recomputing(model))


def recomputing(
    model: VideoGPTModel,
) -> Callable[[list[Tensor], list[Tensor], float, list[Tensor | None]], list[Tensor]]:
    """`function(histories, clips, t, conditions)` of `Recompute`."""

    @torch.no_grad()
    def function(
        histories: list[Tensor], clips: list[Tensor], t: float, conditions: list[Tensor | None]
    ) -> list[Tensor]:
        result, device = list(clips), computing_device(model)
        for videos in _alike(list(zip(map(_shape, histories), map(_shape, clips), map(_shape, conditions)))):
            noisy, history = (
                torch.stack([source[video] for video in videos]).to(device) for source in (clips, histories)
            )
            t_of_frames = torch.full(noisy.shape[:2], t, device=noisy.device)
            _place(result, videos, model.recompute(noisy, t_of_frames, history, _stacked(conditions, videos)))
        return result

    return function


def _shape(value: Tensor | None) -> tuple[int, ...]:
    return () if value is None else tuple(value.shape)


def _stacked(conditions: list[Tensor | None], videos: list[int]) -> Tensor | None:
    """Conditions of a group, which has as many tokens of each; None for none."""
    values = [value for value in (conditions[video] for video in videos) if value is not None]
    return torch.stack(values) if values else None


def _alike(keys: list[tuple[tuple[int, ...], ...]]) -> list[list[int]]:
    """Numbers of the videos with the same key, group by group."""
    return [[video for video, other in enumerate(keys) if other == key] for key in dict.fromkeys(keys)]


def _place(target: list[Tensor], videos: list[int], values: Tensor) -> None:
    for video, value in zip(videos, values):
        target[video] = value.to(target[video].device)
