"""What a video is to show, as the pipeline is asked for it, and as the sampler takes it."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import torch
from torch import Tensor

try:
    from ..common.configuration_videogpt import VideoGPTConfig
except ImportError:  # the folder itself is on sys.path
    from configuration_videogpt import VideoGPTConfig  # type: ignore[no-redef]


def conditions_of(
    config: VideoGPTConfig,
    class_labels: str | int | Sequence[str | int] | None,
    prompt_embeds: Tensor | Sequence[Tensor] | None,
) -> list[Tensor]:
    """Numbers of classes int64 ``[1]`` or text features float32 ``[T, E]``; empty for neither.

    Raises ValueError, one line, for what the model was not trained with.
    """
    names = config.class_names
    if class_labels is not None and prompt_embeds is not None:
        raise ValueError("class_labels and prompt_embeds: a model takes one of the two")
    if class_labels is not None:
        if not names:
            raise ValueError(f"class_labels={class_labels!r}: this model was not trained with classes")
        labels = [class_labels] if isinstance(class_labels, (str, int)) else class_labels
        return [torch.tensor([_number(names, label)]) for label in labels]
    if prompt_embeds is None:
        return []
    if not config.text_feature_size:
        raise ValueError("prompt_embeds: this model was not trained with texts")
    texts = [prompt_embeds] if isinstance(prompt_embeds, Tensor) and prompt_embeds.ndim == 2 else list(prompt_embeds)
    for text in texts:
        if text.ndim != 2 or not len(text) or text.shape[1] != config.text_feature_size:
            raise ValueError(
                f"prompt_embeds of shape {list(text.shape)}: expected [tokens, {config.text_feature_size}] of each text"
            )
    return [text.float() for text in texts]


def _number(names: list[str], label: str | int) -> int:
    if isinstance(label, str) and label in names:
        return names.index(label)
    if not isinstance(label, str) and 0 <= label < len(names):
        return int(label)
    near = difflib.get_close_matches(str(label), names, 3, 0.4) or names[:3]
    raise ValueError(
        f"class {label!r}: expected one of {len(names)} names or its number; the nearest: {', '.join(near)}"
    )


def nothing(config: VideoGPTConfig, multiple: int, height: int, width: int) -> Tensor:
    """Latents ``[0, C, h, w]`` of no frame of this size in pixels, of which a patch has `multiple`; ValueError where
    that does not fit.
    """
    if height % multiple or width % multiple or min(height, width) < multiple:
        raise ValueError(f"height={height}, width={width}: must be multiples of {multiple}")
    patch = config.patch_size
    return torch.zeros(0, config.in_channels, height // multiple * patch, width // multiple * patch)


def spread_over(shown: list[Tensor], videos: int) -> list[Tensor | None]:
    """A condition for each of so many videos; ValueError where there are others than one, or one a video."""
    if not videos:
        raise ValueError("nothing to continue: pass video=..., class_labels=... or prompt_embeds=...")
    if len(shown) > 1 and len(shown) != videos:
        raise ValueError(f"{len(shown)} classes or texts for {videos} videos; pass one for all, or one a video")
    return [None] * videos if not shown else shown if len(shown) == videos else shown * videos
