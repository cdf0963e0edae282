"""Comparison of the factorised network with recorded numbers of Ca2-VDM, in the format of its reference
(tests/golden/vidgpt/README.md names the source).

Errors are fractions of the recorded tensor's largest absolute value; of frames, masks and positions differing entries.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state
from safetensors.torch import load_file
from torch import Tensor

from ....config.schema import Config, ParallelConfig, TrainConfig
from ....hub.common.ddpm import noised, schedule_of
from ....model.forward import forward_row
from ....model.init import gather_released, load_released
from ....model.patches import grid_of, unpatchify
from ....model.videogpt import Ends
from ...recorded import Cases, Report
from .ends import ends_of
from .loss import score_of
from .parity_masks import ROPE, check_masks
from .published import COMPUTED, UNREAD, computed_tables, open_folder, variant_of
from .rows import Text, Video, assemble
from .variant import Variant, temporal_places

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
    "noising": 1e-6,
    "loss": 1e-5,
    "loss parts": 1e-5,
    "gradient norms": 1e-4,
    "gradients": 1e-4,
}
"""Largest error of each quantity."""
SCHEDULE = schedule_of()


def check_folder(
    folder: Path, parallel: ParallelConfig, build: Callable[[Config, Ends, int], Any], report: Report
) -> list[str]:
    """Every case of a folder's masks and forward passes; names of those that are not compared.

    build: `build(config, ends, channels)`, a network of one pipeline stage.
    """
    skipped = check_masks(Cases(folder, "masks_positions"), report)
    for name, check in (("forward", check_forward), ("loss", check_loss)):
        cases = Cases(folder, name)
        for case in cases:
            if case["overrides"].get("relative_tpe_mode") == ROPE:
                skipped.append(case["name"])
                continue
            model, variant, settings, tensor_of = open_folder(folder / case["checkpoint"], case["overrides"])
            config = Config(model=model, train=TrainConfig(precision="fp32"), parallel=parallel)
            network = build(config, ends_of(variant), settings["in_channels"])
            load_released(network, model, tensor_of)
            check_exported(folder / case["checkpoint"], case, network, config, variant, report)
            check(cases, case, network, config, variant, report)
    return skipped


def videos_of(cases: Cases, case: dict[str, Any], variant: Variant) -> list[Video]:
    """The samples of a case as videos, as fed to the network."""
    frames = case["frames"]
    places = torch.tensor(temporal_places(variant, frames, case["tpe_start"]))
    videos = []
    for number, sample in enumerate(case["samples"]):
        text = None
        if variant.text_width:
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
    videos, patch, name = videos_of(cases, case, variant), config.model.patch_size, case["name"]
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


def check_loss(
    cases: Cases, case: dict[str, Any], network: Any, config: Config, variant: Variant, report: Report
) -> None:
    """Noising, the objective's loss and its parts, gradients (README section 7)."""
    name, prompt, patch = case["name"], case["prefix"], config.model.patch_size
    videos = []
    for number, (sample, video) in enumerate(zip(case["samples"], videos_of(cases, case, variant))):
        data, noise = cases.get(sample, "x_start"), cases.get(sample, "noise")
        given = data[:prompt]
        if case["prefix_perturb_t"] >= 0:
            given = noised(SCHEDULE, given, cases.get(sample, "prefix_noise")[:prompt], case["prefix_perturb_t"])
        fed = torch.cat([given, noised(SCHEDULE, data[prompt:], noise[prompt:], case["t"][number])])
        report.compare("noising", fed, video.latents, f"{name} ({number})")
        videos.append(replace(video, noise=noise[prompt:], start=data[prompt:]))
    whole = assemble(videos, config.parallel.row_multiple, variant, patch)
    context = parallel_state.get_context_parallel_group()
    row = whole.shard(context.rank(), context.size())
    output = network(row)
    score = score_of(output, row, patch**2)
    (score.total / whole.count).backward()
    parts = torch.stack([score.total.detach(), *score.sums[:2]])
    torch.distributed.all_reduce(parts, group=context)
    wanted = [case["loss"], *(sum(case[part]) / len(videos) for part in ("mse", "vb"))]
    for quantity, ours, recorded in zip(("loss", "loss parts", "loss parts"), parts / whole.count, wanted):
        report.add(quantity, abs(float(ours) - recorded) / abs(recorded), name)
    gradients = gather_released(network, config.model, lambda parameter: _gradient(parameter, context))
    _check_gradients(cases, case, gradients, report)


def _gradient(parameter: Any, context: Any) -> Tensor:
    """The whole gradient of what this rank has of a parameter, as the trainer's reduction gives it."""
    found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
    torch.distributed.all_reduce(found, group=context)
    if getattr(parameter, "sequence_parallel", False):
        torch.distributed.all_reduce(found, group=parallel_state.get_tensor_model_parallel_group())
    return found


def _check_gradients(cases: Cases, case: dict[str, Any], gradients: dict[str, Tensor], report: Report) -> None:
    """Norms of all, and where recorded gradients; none at all is an exact zero."""
    name, norms = case["name"], {key: float(value.norm()) for key, value in gradients.items()}
    total = math.sqrt(sum(value**2 for value in norms.values()))
    pairs = {"total": (total, case["grad_norm_total"])}
    pairs |= {key: (norms[key], recorded) for key, recorded in case["grad_norm"].items()}
    for key, (ours, recorded) in pairs.items():
        report.add("gradient norms", abs(ours - (recorded or 0.0)) / (recorded or 1.0), f"{name} ({key})")
    for key, entry in (case.get("full_grads") or {}).items():
        report.compare("gradients", gradients[key], cases.tensors[entry["key"]], f"{name} ({key})")


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

    def given(name: str) -> Callable[..., None]:
        return lambda module, arguments: caught.update({name: arguments[0]})

    hooks.append(network.embedding.register_forward_hook(keep("embedded")))
    for number, layer in enumerate(network.decoder.layers):
        modules = {
            "attn": layer.self_attention,
            "attn_cf": layer.prompt_attention,
            "attn_temp": layer.temporal_attention,
            "cross_attn": layer.text_attention,
            "mlp": layer.mlp,
            "out": layer,
        }
        hooks.append(layer.temporal_attention.register_forward_pre_hook(given(f"block{number}.attn_temp_pre_merge")))
        hooks += [
            module.register_forward_hook(keep(f"block{number}.{name}"))
            for name, module in modules.items()
            if module is not None
        ]

    def remove() -> None:
        for hook in hooks:
            hook.remove()

    return caught, remove


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
