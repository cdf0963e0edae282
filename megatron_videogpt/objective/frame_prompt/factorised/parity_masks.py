"""Recorded masks, positions and lengths of prompts against those of our rows (tests/golden/vidgpt/README.md names the
source): differing entries, and attended pairs in closed form.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ....sequence.intervals import attended_pairs, dense_mask
from ....sequence.row import Mask
from ...recorded import Cases, Report
from .masks import Extent, masks_of
from .published import TIMES
from .variant import Variant, prompt_lengths, seen_from_cache, temporal_places, written_frames
from .work import pairs_of

ROPE = "rope"
"""A mode of positions in the published code's history that is in neither paper; not supported."""
CACHED = ("denoise", "write")


def check_masks(cases: Cases, report: Report) -> list[str]:
    """Masks, positions, prompt lengths (README sections 3 to 6); names of cases that are not compared."""
    skipped = []
    for case in cases:
        kind, name = case["kind"], case["name"]
        if kind == "temporal_mask" and case["phase"] in CACHED:
            variant, writing = Variant("none", time=TIMES[case["is_causal"]]), case["phase"] == "write"
            ends = torch.tensor(seen_from_cache(variant, case["chunk"], case["cached"], writing))
            keys = torch.arange(case["cached"] + case["chunk"])
            report.differing("temporal masks", keys < ends[:, None], cases.get(case, "mask").bool(), name)
        elif kind == "temporal_mask":
            variant = Variant("none", time=TIMES[case["is_causal"]])
            extent = Extent(case["prefix"] + case["chunk"], case["prefix"], 3)
            report.differing("temporal masks", _in_time(extent, variant), cases.get(case, "mask").bool(), name)
            _count(extent, variant, report, name)
        elif kind == "prefix_enhance":
            variant = _enhancing(case["spatial_attn_enhance"])
            extent = Extent(case["frames"], case["prefix"], 2)
            recorded = cases.get(case, "frame_share")
            report.differing("enhanced frames", _shares(extent, variant), recorded, name)
            _count(extent, variant, report, name)
        elif kind == "prefix_enhance_write":
            found = written_frames(_enhancing(case["spatial_attn_enhance"]), case["frames_written"])
            report.add("enhanced frames", float(found != case["cached_frames"]), name)
        elif kind == "prefix_lengths":
            found = prompt_lengths(case["max_frames"], case["chunk"], case["given_frames"])
            report.add("prompt lengths", float(found != case["choices"]), name)
        elif kind == "tpe_ids" and case["relative_tpe_mode"] != ROPE:
            variant = Variant(positions=case["relative_tpe_mode"] or "fixed", places=case["max_tpe_len"])
            start = case.get("drawn_offset") if case["phase"] == "train" else case["start"]
            found = temporal_places(variant, case["frames"], start or 0, case["phase"] == "cached")
            report.add("positions", float(found != case["ids"]), name)
        else:
            skipped.append(name)
    return skipped


def _enhancing(mode: str) -> Variant:
    kind, _, count = mode.rpartition("_") if mode.startswith("prev") else (mode, "", "0")
    return Variant(enhance=kind, enhance_frames=int(count))


def seen_keys(mask: Mask) -> Tensor:
    """Bool ``[L, keys]``, keys in the order of the mask's list, which may have some several times."""
    return dense_mask(mask.intervals, len(mask.intervals) if mask.order is None else len(mask.order))


def shares(mask: Mask) -> Tensor:
    """float32 ``[L, L]``: the share of each stored key in what a query gets when all scores are equal."""
    sees, length = seen_keys(mask).float(), len(mask.intervals)
    order = torch.arange(length) if mask.order is None else mask.order
    stored = torch.zeros(length, length).index_add_(1, order, sees)
    return stored / stored.sum(1, keepdim=True)


def _in_time(extent: Extent, variant: Variant) -> Tensor:
    """Frames that frames see at their place; NaN-free proof that places are alike is that all patches agree."""
    stored = shares(masks_of([extent], extent.tokens, variant)[1]) > 0
    blocks = stored.view(extent.frames, extent.patches, extent.frames, extent.patches)
    own = blocks.diagonal(dim1=1, dim2=3)
    assert int(blocks.sum()) == int(own.sum()) and bool((own == own[..., :1]).all())
    return own[..., 0]


def _shares(extent: Extent, variant: Variant) -> Tensor:
    """float32 ``[T, T]``: shares of frames, those of all patches being equal."""
    stored = shares(masks_of([extent], extent.tokens, variant)[2])
    blocks = stored.view(extent.frames, extent.patches, extent.frames, extent.patches).sum(3)
    return blocks[:, 0]


def _count(extent: Extent, variant: Variant, report: Report, name: str) -> None:
    """Attended pairs in closed form against those of the masks."""
    counted = sum(attended_pairs(mask.intervals) for mask in masks_of([extent], extent.tokens, variant))
    report.add("closed forms", float(counted != pairs_of(variant, *extent)), name)
