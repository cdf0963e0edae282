"""What samples of next clip diffusion ask for: the closed forms of `work`, of whole arrays of plans at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...codec.geometry import Geometry
from ...config.schema import Config
from ...data.plans import Plans
from ...model.flops import attention_flops, linear_flops


@dataclass(frozen=True)
class SampleWork:
    """`data.packing.SampleWork` of next clip diffusion.

    cell: pixels per side of a patch, the codec's stride times `model.patch_size`; weights: FLOPs of a token and of an
    attended pair; several: whether samples may have more than one clip.
    """

    cell: int
    weights: tuple[float, float]
    several: bool

    def patches(self, plans: Plans) -> np.ndarray:
        """int64 [n]: tokens of a frame's picture."""
        return (plans.height // self.cell) * (plans.width // self.cell)

    def tokens(self, plans: Plans) -> np.ndarray:
        """int64 [n]: tokens of the training sequence, P + 2 for each noisy and each clean frame."""
        return (plans.count + kept_frames(plans)) * (self.patches(plans) + 2)

    def pairs(self, plans: Plans) -> np.ndarray:
        """int64 [n]: (query, key) pairs that attend; `work.clip_work` of each."""
        patches, kept, squares = self.patches(plans), kept_frames(plans), _squares(plans)
        block = patches + 2
        clean = block * block * (kept * kept - kept) // 2 + kept * (1 + patches * (patches + 1) + block)
        noisy = block * block * (plans.count * plans.count - squares) // 2 + squares * (3 + patches * block)
        return clean + noisy

    def longest(self, frames: np.ndarray, sizes: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """int64 [n]: most tokens of a sample of so many frames: its last clip has one.  sizes: heights and widths in
        pixels.
        """
        blocks = 2 * frames - 1 if self.several else frames
        return blocks * ((sizes[0] // self.cell) * (sizes[1] // self.cell) + 2)


def sample_work(config: Config, codec: Geometry) -> SampleWork:
    """`SampleWork` of a run."""
    weights = linear_flops(config.model, codec.channels, 1), attention_flops(config.model, 1)
    return SampleWork(codec.spatial_stride * config.model.patch_size, weights, config.data.clips[1] > 1)


def kept_frames(plans: Plans) -> np.ndarray:
    """int64 [n]: frames that also come clean, all but the last clip's."""
    places = np.arange(1, plans.cuts.shape[1] + 1)
    return (plans.cuts * places).max(axis=1, initial=0)


def _squares(plans: Plans) -> np.ndarray:
    """int64 [n]: sum over clips of frames squared."""
    ends = np.pad(plans.cuts, ((0, 0), (0, 1)))
    ends[np.arange(len(plans)), plans.count - 1] = True
    rows, places = np.nonzero(ends)
    first = np.r_[True, rows[1:] != rows[:-1]][: len(rows)]
    lengths = places - np.where(first, -1, np.r_[0, places[:-1]][: len(rows)])
    return np.bincount(rows, lengths * lengths, len(plans)).astype(np.int64)
