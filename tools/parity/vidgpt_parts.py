"""Recorded parts of frame as prompt: masks, positions, prefix lengths, schedules, tables, layers, released keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_videogpt.hub.common import ddpm
from megatron_videogpt.hub.common.ddpm_solvers import DDPM
from megatron_videogpt.hub.frame_prompt import rules_frameprompt as rules
from megatron_videogpt.hub.frame_prompt.configuration_frameprompt import FramePromptConfig
from megatron_videogpt.hub.frame_prompt.layers_frameprompt import attend, sinusoids
from megatron_videogpt.hub.frame_prompt.modeling_frameprompt import COMPUTED, FramePromptModel
from megatron_videogpt.objective.recorded import Cases, Report
from tools.parity.vidgpt_plain import model_of

TABLES = {
    "betas": "betas",
    "alphas_cumprod": "alphas_cumprod",
    "posterior_log_variance_clipped": "log_posterior",
    "posterior_mean_coef1": "posterior_data",
    "posterior_mean_coef2": "posterior_noisy",
    "sqrt_recip_alphas_cumprod": "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod": "sqrt_recipm1_alphas_cumprod",
    "sqrt_alphas_cumprod": "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod": "sqrt_one_minus_alphas_cumprod",
}
"""Names of a recorded schedule, and of ours."""


def check_masks(cases: Cases, report: Report) -> None:
    """masks_positions.json."""
    for case in cases:
        {
            "temporal_mask": _temporal,
            "prefix_enhance": _enhance,
            "prefix_enhance_write": _enhance_write,
            "prefix_lengths": _lengths,
            "tpe_ids": _places,
        }[case["kind"]](cases, case, report)


def _temporal(cases: Cases, case: dict[str, Any], report: Report) -> None:
    recorded = cases.get(case, "mask").bool()
    prompt, frames = {
        "whole_sequence": (case["prefix"], case["prefix"] + case["chunk"]),
        "denoise": (0, case["chunk"]),
        "write": (case["chunk"], case["chunk"]),
    }[case["phase"]]
    mask = rules.temporal_mask(case["is_causal"], prompt, frames, case["cached"])
    ours = torch.ones(frames, frames + case["cached"], dtype=torch.bool) if mask is None else mask
    report.differing("masks", ours, recorded, case["name"])


def _enhance(cases: Cases, case: dict[str, Any], report: Report) -> None:
    seen = rules.enhancing_frames(case["spatial_attn_enhance"], case["prefix"], case["frames"])
    share = torch.tensor([[keys.count(frame) / len(keys) for frame in range(case["frames"])] for keys in seen])
    report.add("masks", float((share - cases.get(case, "frame_share")).abs().max() > 1e-6), case["name"])


def _enhance_write(cases: Cases, case: dict[str, Any], report: Report) -> None:
    kept = rules.kept_frames(case["spatial_attn_enhance"], case["frames_written"])
    report.add("masks", float(kept != case["cached_frames"]), case["name"])


def _lengths(cases: Cases, case: dict[str, Any], report: Report) -> None:
    ours = rules.prefix_lengths(case["given_frames"], case["chunk"], case["max_frames"])
    report.add("prefix lengths", float(ours != case["choices"]), case["name"])


def _places(cases: Cases, case: dict[str, Any], report: Report) -> None:
    mode, length, frames, start = case["relative_tpe_mode"], case["max_tpe_len"], case["frames"], case["start"]
    if case["phase"] == "train":
        start = rules.training_start(mode, frames, length, case["drawn_offset"] or 0)
    ours = rules.places(mode, length, frames, start, case["phase"] == "cached")
    report.add("positions", float(ours != case["ids"]), case["name"])


@torch.no_grad()
def check_components(cases: Cases, report: Report) -> None:
    """components.json."""
    for case in cases:
        kind, tensors = case["kind"], {name: cases.get(case, name) for name in case.get("tensors", {})}
        if kind in WITHOUT_MODEL:
            WITHOUT_MODEL[kind](case, tensors, report)
            continue
        for key, ours in WITH_MODEL[kind](case, model_of(cases.folder / case["checkpoint"], {}), tensors).items():
            report.compare(
                "sinusoids" if key == "sinusoid" else "layers", ours, tensors[key], f"{case['name']} ({key})"
            )


def _schedule(case: dict[str, Any], tensors: dict[str, Tensor], report: Report) -> None:
    ours = ddpm.schedule_of(case["num_sampling_steps"])
    report.add("sampling steps", float(ours.timesteps.tolist() != case["timesteps"]), case["name"])
    for key, recorded in tensors.items():
        quantity = "schedule" if key in ("betas", "alphas_cumprod") else "roots and logarithms"
        report.compare(quantity, getattr(ours, TABLES[key]), recorded, f"{case['name']} ({key})")


def _respacing(case: dict[str, Any], tensors: dict[str, Tensor], report: Report) -> None:
    for count, steps in case["timesteps"].items():
        report.add("sampling steps", float(ddpm.kept_steps(int(count)) != steps), f"{case['name']} {count}")


def _spatial_table(case: dict[str, Any], tensors: dict[str, Tensor], report: Report) -> None:
    rows, columns = case["grid"]
    table = rules.spatial_table(case["hidden_size"], rows, columns, case["space_scale"])
    report.compare("position tables", table[case["rows"]], tensors["values"], case["name"])


def _temporal_table(case: dict[str, Any], tensors: dict[str, Tensor], report: Report) -> None:
    table = rules.temporal_table(case["hidden_size"], case["length"], case["time_scale"])
    report.compare("position tables", table[case["rows"]], tensors["values"], case["name"])


def _rope(case: dict[str, Any], tensors: dict[str, Tensor], report: Report) -> None:
    count, keys = tensors["q"].shape[1], tensors["k"].shape[1]
    queries, places = rules.turned_places(case["max_tpe_len"], count, keys, case["query_start"])
    report.add("positions", float(queries != case["query_positions"]), case["name"])
    for key, at in (("q", queries), ("k", places)):
        ours = rules.turned(tensors[key].transpose(1, 2), torch.tensor(at)).transpose(1, 2)
        report.compare("layers", ours, tensors[f"{key}_out"], f"{case['name']} ({key})")


def _progressive(case: dict[str, Any], tensors: dict[str, Tensor], report: Report) -> None:
    report.compare("noising", ddpm.chained(tensors["noise"], case["alpha"]), tensors["out"], case["name"])


def _vb(case: dict[str, Any], tensors: dict[str, Tensor], report: Report) -> None:
    schedule, data = ddpm.schedule_of(), tensors["x_start"]
    index = ddpm.along(torch.tensor(case["t"]), data)
    report.compare("noising", ddpm.noised(schedule, data, tensors["noise"], index), tensors["x_t"], case["name"])
    bits = ddpm.variance_bits(schedule, data, tensors["x_t"], tensors["eps"], tensors["var"], index)
    report.compare("variance term", bits, tensors["bits"], case["name"])


def _step(case: dict[str, Any], tensors: dict[str, Tensor], report: Report) -> None:
    solver, index = DDPM(ddpm.schedule_of(case["num_sampling_steps"])), case["index"]
    data = ddpm.data_of(solver.schedule, tensors["x"], tensors["eps"], index)
    report.compare("denoising step", data, tensors["x0"], f"{case['name']} (x0)")
    predicted = torch.cat([tensors["eps"], tensors["var"]], -3)
    number = case["num_sampling_steps"] - 1 - index
    out = solver.step(number, tensors["x"], predicted, noise=tensors["noise"])
    report.compare("denoising step", out, tensors["out"], case["name"])


def _timestep(case: dict[str, Any], model: FramePromptModel, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    embedded = model.t_embedder(tensors["t"])
    return {"sinusoid": sinusoids(tensors["t"]), "embedded": embedded, "modulation": model.t_block(embedded)}


def _patch(case: dict[str, Any], model: FramePromptModel, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"tokens": model.x_embedder(tensors["latent"][None])[0]}


def _attention(case: dict[str, Any], model: FramePromptModel, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    layer = model.blocks[case["block"]].get_submodule(case["module"])
    q, own = layer.parts(tensors["x"])
    kv = layer.parts(tensors["context"])[1] if "context" in tensors else own
    if "cached_kv" in tensors:
        kv = tensors["cached_kv"] if case.get("cached_only") else torch.cat([tensors["cached_kv"], own], 1)
    frames = q.shape[1]
    mask = rules.temporal_mask(True, 0, frames, kv.shape[1] - frames) if case["causal"] else None
    found = {"out": layer.proj(attend(q, kv, layer.heads, mask))}
    return found | ({"kv": own} if "kv" in tensors else {})


def _mlp(case: dict[str, Any], model: FramePromptModel, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"out": model.blocks[case["block"]].mlp(tensors["x"])}


def _pre_merge(case: dict[str, Any], model: FramePromptModel, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"out": model.blocks[0].attn_temp_pre_merge(tensors["x"])}


def _final(case: dict[str, Any], model: FramePromptModel, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    out = model.final_layer(tensors["x"], tensors["t_embedded"])
    latents = model.to_latents(out)
    if latents.shape != tensors["latents"].shape:
        latents = latents.transpose(1, 2)
    return {"out": out, "latents": latents}


def _text(case: dict[str, Any], model: FramePromptModel, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    told = model.tell(tensors["text"], tensors["text_mask"])
    assert told is not None
    out = model.blocks[case["block"]].cross_attn(tensors["x"][:, None], told)[:, 0]
    return {"tokens": told[0][told[1]], "out": out}


WITHOUT_MODEL = {
    "schedule": _schedule,
    "respacing": _respacing,
    "spatial_table": _spatial_table,
    "temporal_table": _temporal_table,
    "rope": _rope,
    "progressive_noise": _progressive,
    "vb": _vb,
    "step": _step,
}
WITH_MODEL = {
    "timestep": _timestep,
    "patch": _patch,
    "attention": _attention,
    "mlp": _mlp,
    "pre_merge": _pre_merge,
    "final": _final,
    "text": _text,
}


def check_released(path: Path, report: Report) -> None:
    """released_model.json: keys and shapes of every variant, its buffers, the number of its parameters."""
    if not path.is_file():
        return
    for name, variant in json.loads(path.read_text(encoding="utf-8"))["variants"].items():
        keys, depth = variant["keys"], variant["config"]["depth"]
        later = {key: shape for key, shape in keys.items() if key.startswith("blocks.1.")}
        keys |= {
            f"blocks.{block}.{key.split('.', 2)[2]}": shape for key, shape in later.items() for block in range(1, depth)
        }
        with torch.device("meta"):
            model = FramePromptModel(FramePromptConfig(**variant["config"]))
        ours = {key: list(value.shape) for key, value in model.named_parameters()}
        report.add("released keys", float(len(set(keys) ^ set(ours))), f"{name} (keys)")
        report.add(
            "released keys", float(sum(ours.get(key) != shape for key, shape in keys.items())), f"{name} (shapes)"
        )
        total = sum(value.numel() for value in model.parameters())
        report.add("released keys", float(total != variant["num_parameters"]), f"{name} (parameters)")
        buffers = {key: list(value.shape) for key, value in model.published_state().items() if key not in ours}
        report.add("released keys", float(buffers != variant["buffers"]), f"{name} (buffers)")
        assert set(COMPUTED) <= set(buffers)
