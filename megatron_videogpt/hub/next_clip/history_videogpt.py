"""What comes before a clip, its condition and the clean past: keys and values, and who sees what of it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class VideoGPTCache:
    """Keys (rotated) and values of the conditions and clean frames of several videos with equally many tokens of each,
    ``[B, kv_heads, tokens, d]`` per layer; prefix: tokens of a condition.
    """

    def __init__(self, layers: int, dtype: torch.dtype | None = None, offload: bool = False) -> None:
        self.dtype, self.offload = dtype, offload
        self.prefix, self.frames, self.grid = 0, 0, (0, 0)
        self.layers: list[tuple[Tensor, Tensor] | None] = [None] * layers

    @property
    def bytes(self) -> int:
        """Memory that the keys and values take."""
        return sum(part.numel() * part.element_size() for pair in self.layers if pair for part in pair)

    def joined(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """What is kept of a layer, then new keys and values, in the dtype and on the device of the new ones."""
        kept = self.layers[layer]
        return (k, v) if kept is None else (torch.cat([kept[0].to(k), k], dim=2), torch.cat([kept[1].to(v), v], dim=2))

    def append(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Keep the keys and values of new clean tokens."""
        device = torch.device("cpu") if self.offload else k.device
        k, v = (part.to(device, self.dtype or part.dtype) for part in (k, v))
        self.layers[layer] = self.joined(layer, k, v)

    def check(self, frames: Tensor, grid: tuple[int, int]) -> None:
        """ValueError where frames ``[B, F, C, h, w]`` of so many patches cannot go with what is kept."""
        held = self.layers[0]
        if held is not None and (self.frames and self.grid != grid or len(held[0]) != len(frames)):
            raise ValueError(
                f"a cache of {len(held[0])} videos of {self.grid} patches cannot go with latents "
                f"{list(frames.shape)}: use a cache of its own"
            )

    def truncate(self, frames: int) -> None:
        """Forget all but the condition and the first frames; these never looked at later ones, so what is kept of them
        still holds.
        """
        if frames < self.frames:
            tokens = self.prefix + frames * (self.grid[0] * self.grid[1] + 2)
            self.layers = [
                pair and (pair[0][:, :, :tokens].clone(), pair[1][:, :, :tokens].clone()) if tokens else None
                for pair in self.layers
            ]
            self.frames = frames


def dense_mask(blocks: list[tuple[int, bool, int]], patches: int, prefix: int = 0) -> Tensor:
    """Who sees whom, boolean ``[L, L]``, for `prefix` tokens of a condition and frames given as (clip, clean, number).

    A condition's token sees the condition, and everybody sees it.  A noisy token sees its own clip's noisy tokens up to
    its level (hint, time token, patches) and every earlier clean clip; a clean token sees the clean frames before it
    and its own frame up to its level (start, patches, end).
    """
    levels = {False: [0, 1] + [2] * patches, True: [0] + [1] * patches + [2]}
    clip, clean, frame, level = torch.tensor([(k, c, f, a) for k, c, f in blocks for a in levels[c]]).T
    noisy_noisy = ((clean == 0)[:, None] & (clean == 0)) & (clip[:, None] == clip) & (level <= level[:, None])
    noisy_clean = ((clean == 0)[:, None] & (clean == 1)) & (clip < clip[:, None])
    clean_clean = ((clean == 1)[:, None] & (clean == 1)) & (
        (frame < frame[:, None]) | (frame == frame[:, None]) & (level <= level[:, None])
    )
    frames = noisy_noisy | noisy_clean | clean_clean
    return F.pad(F.pad(frames, (0, 0, prefix, 0)), (prefix, 0), value=True)


def prefix_attention(q: Tensor, k: Tensor, v: Tensor, groups: list[int]) -> Tensor:
    """Attention of the last tokens of a sequence, in groups: each group sees everything up to its own end."""
    parts, end = [], k.shape[2] - q.shape[2]
    for part in q.split(groups, dim=2):
        end += part.shape[2]
        parts.append(
            F.scaled_dot_product_attention(part, k[:, :, :end], v[:, :, :end], enable_gqa=q.shape[1] != k.shape[1])
        )
    return torch.cat(parts, dim=2)
