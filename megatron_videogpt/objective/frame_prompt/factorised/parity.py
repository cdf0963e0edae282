"""Comparison of the factorised network with recorded numbers of Ca2-VDM, in the format of its reference
(tests/golden/vidgpt/README.md names the source).

Errors are fractions of the recorded tensor's largest absolute value; of frames, masks and positions differing entries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ....config.schema import Config, ParallelConfig, TrainConfig
from ....model.forward import forward_row
from ....model.init import gather_released, load_released
from ....model.patches import grid_of, unpatchify
from ....model.videogpt import Ends
from ....sequence.intervals import attended_pairs, dense_mask
from ....sequence.row import Mask
from ...recorded import Cases, Report
from .ends import ends_of
from .masks import Extent, masks_of
from .published import COMPUTED, TIMES, UNREAD, computed_tables, open_folder, variant_of
from .rows import Text, Video, assemble
from .variant import Variant, prompt_lengths, seen_from_cache, temporal_places, written_frames
from .work import pairs_of

LIMITS = {
    "temporal masks": 0.0,
    "enhanced frames": 0.0,
    "positions": 0.0,
    "prompt lengths": 0.0,
    "closed forms": 0.0,
    "position tables": 0.0,
    "exported tensors": 0.0,
    "forward": 1e-5,
    "intermediates": 1e-5,
}
"""Largest error of each quantity."""
ROPE = "rope"
"""A mode of positions in the published code's history that is in neither paper; not supported."""
CACHED = ("denoise", "write")


def check_folder(
    folder: Path, parallel: ParallelConfig, build: Callable[[Config, Ends, int], Any], report: Report
) -> list[str]:
    """Every case of a folder's masks and forward passes; names of those that are not compared.

    build: `build(config, ends, channels)`, a network of one pipeline stage.
    """
    skipped = check_masks(Cases(folder, "masks_positions"), report)
    cases = Cases(folder, "forward")
    for case in cases:
        if case["overrides"].get("relative_tpe_mode") == ROPE:
            skipped.append(case["name"])
            continue
        model, variant, settings, tensor_of = open_folder(folder / case["checkpoint"], case["overrides"])
        config = Config(model=model, train=TrainConfig(precision="fp32"), parallel=parallel)
        network = build(config, ends_of(variant), settings["in_channels"])
        load_released(network, model, tensor_of)
        check_exported(folder / case["checkpoint"], case, network, config, variant, report)
        check_forward(cases, case, network, config, variant, report)
    return skipped


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


def videos_of(cases: Cases, case: dict[str, Any], settings: dict[str, Any], variant: Variant) -> list[Video]:
    """The samples of a case as videos, as fed to the network."""
    frames = case["frames"]
    places = torch.tensor(temporal_places(variant, frames, case["tpe_start"]))
    videos = []
    for number, sample in enumerate(case["samples"]):
        text = None
        if settings["caption_channels"]:
            mask = cases.get(sample, "text_mask") if case.get("uses_text_mask", True) else None
            text = Text(cases.get(sample, "text"), mask, number in case["text_dropped"])
        timestep = cases.get(sample, "t").expand(frames)
        videos.append(Video(cases.get(sample, "x"), case["prefix"], timestep, places, text))
    return videos


def predicted(output: Tensor, latents: Tensor, patch: int) -> tuple[Tensor, Tensor]:
    """The head's output of all patches of T frames -> noise and raw variance ``[T, C, h, w]`` each."""
    whole = unpatchify(output, len(latents), grid_of(latents, patch), patch)
    noise, variance = whole.chunk(2, dim=1)
    return noise, variance


def check_forward(
    cases: Cases, case: dict[str, Any], network: Any, config: Config, variant: Variant, report: Report
) -> None:
    """Noise and variance of all frames, given ones too, and where recorded what each layer makes (README section 7)."""
    settings = {"caption_channels": variant.text_width}
    videos, patch, name = videos_of(cases, case, settings, variant), config.model.patch_size, case["name"]
    row = replace(assemble(videos, config.parallel.row_multiple, variant, patch), scored="patch")
    row = replace(row, weight=torch.ones(len(row.scored_rows)))
    caught, remove = _watch(network) if case.get("intermediates") else ({}, lambda: None)
    output = forward_row([network], row, 0)
    remove()
    counts = [video.extent(patch).tokens for video in videos]
    for sample, video, part in zip(case["samples"], videos, output.split(counts)):
        noise, variance = predicted(part, video.latents, patch)
        report.compare("forward", noise, cases.get(sample, "eps"), f"{name} (eps)")
        report.compare("forward", variance, cases.get(sample, "var"), f"{name} (var)")
    for key, entry in (case.get("intermediates") or {}).items():
        if key in caught:
            recorded = cases.tensors[entry["key"]]
            report.compare("intermediates", _frames(caught[key], recorded), recorded, f"{name} ({key})")


def _frames(hidden: Tensor, recorded: Tensor) -> Tensor:
    """``[L, 1, D]`` of a row -> the recorded shape; padding is cut off, where a rank has all tokens."""
    return hidden.reshape(-1, recorded.shape[-1])[: recorded.numel() // recorded.shape[-1]].view_as(recorded)


def _watch(network: Any) -> tuple[dict[str, Tensor], Callable[[], None]]:
    """(what layers make by the recorded names, filled by the next pass; what ends watching).  Only where one rank has
    all tokens.
    """
    caught: dict[str, Tensor] = {}
    config, hooks = network.config, []
    if config.sequence_parallel or config.context_parallel_size > 1:
        return caught, lambda: None

    def keep(name: str) -> Callable[..., None]:
        return lambda module, given, output: caught.update({name: output[0] if isinstance(output, tuple) else output})

    hooks.append(network.embedding.register_forward_hook(keep("embedded")))
    for number, layer in enumerate(network.decoder.layers):
        modules = {
            "attn": layer.self_attention,
            "attn_cf": layer.prompt_attention,
            "attn_temp_pre_merge": layer.merge,
            "attn_temp": layer.temporal_attention,
            "cross_attn": layer.text_attention,
            "mlp": layer.mlp,
            "out": layer,
        }
        hooks += [
            module.register_forward_hook(keep(f"block{number}.{name}"))
            for name, module in modules.items()
            if module is not None
        ]
    return caught, lambda: [hook.remove() for hook in hooks] and None


def check_exported(
    checkpoint: Path, case: dict[str, Any], network: Any, config: Config, variant: Variant, report: Report
) -> None:
    """The network's tensors in published form, and the computed tables, are those of the checkpoint, bit for bit."""
    held = load_file(checkpoint / "model.safetensors")
    exported = gather_released(network, config.model, lambda parameter: parameter.data)
    settings = open_folder(checkpoint)[2]
    if variant == variant_of(settings, str(checkpoint)):
        exported |= computed_tables(config.model, variant, tuple(settings["input_size"]))
        report.add("exported tensors", float(len(set(held) - set(exported) - set(UNREAD))), case["name"])
    for key, value in exported.items():
        quantity = "position tables" if key in COMPUTED else "exported tensors"
        if key in held or key not in COMPUTED:
            report.differing(quantity, value, held[key], f"{case['name']} ({key})")
