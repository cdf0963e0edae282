"""Recorded numbers of the FSQ tokenizer: quantizer, single layers, whole networks with gradients, released keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from megatron_videogpt.errors import UserError, shortened
from megatron_videogpt.hub.common.fsq_codes import bounded, codes_of, ids_of, quantized
from megatron_videogpt.hub.common.fsq_tokenizer import (
    CausalConv,
    DepthToSpace,
    FrameNorm,
    FSQShape,
    FSQTokenizer,
    ResidualUnit,
    Swish,
    filled,
    shape_of,
)
from megatron_videogpt.objective.recorded import Cases, Report


def check_quantizer(cases: Cases, report: Report) -> None:
    """fsq.json: the range before rounding, codes, ids both ways, the gradient through the rounding."""
    for case in cases:
        name, levels, tensors = case["name"], case["levels"], {key: cases.get(case, key) for key in case["tensors"]}
        z = tensors["z"].clone().requires_grad_()
        codes = quantized(z, levels)
        codes.backward(tensors["grad_out"])
        report.compare("bounded", bounded(z, levels), tensors["bounded"], name)
        report.differing("codes", codes, tensors["codes"], name)
        report.differing("indices", ids_of(codes, levels), tensors["indices"], name)
        report.differing("codes", codes_of(tensors["some_indices"], levels), tensors["some_codes"], name)
        report.compare("quantizer gradients", z.grad, tensors["grad_z"], name)


def check_tokenizer(cases: Cases, report: Report) -> None:
    """tokenizer.json: video to codes and back; where recorded every layer, error and gradients."""
    for case in cases:
        model, name, tensors = toy_tokenizer(cases.folder / case["checkpoint"]), case["name"], case["tensors"]
        model.requires_grad_("mse" in case)
        seen = _watched(model)
        video = cases.get(case, "video")
        with torch.set_grad_enabled("mse" in case):
            features = model.features(video)
            codes = quantized(features, model.shape.levels)
            pixels = model.pixels(codes) if "reconstruction" in tensors else None
        report.compare("encoded", features, cases.get(case, "encoded"), name)
        # Whole, and in the smallest pieces that a long video goes through in.
        for ours in (codes, model.to_codes(video, frames=4)):
            report.differing("codes", ours, cases.get(case, "codes"), name)
            report.differing("indices", ids_of(ours, model.shape.levels), cases.get(case, "indices"), name)
        if pixels is not None:
            report.compare("reconstruction", pixels, cases.get(case, "reconstruction"), name)
        for key in tensors:
            if key.startswith("act."):
                report.compare("tokenizer layers", seen[key], cases.get(case, key), f"{name} {key}")
        if pixels is not None and "mse" in case:
            _check_gradients(model, (pixels - video).square().mean(), case, report)


def _check_gradients(model: FSQTokenizer, error: Tensor, case: dict[str, Any], report: Report) -> None:
    error.backward()
    report.add("tokenizer mse", abs(error.item() - case["mse"]) / case["mse"], case["name"])
    norms = {key: value.grad.norm() for key, value in model.named_parameters()}
    norms["total"] = torch.stack(list(norms.values())).norm()
    for key, recorded in {**case["grad_norm"], "total": case["grad_norm_total"]}.items():
        report.add("tokenizer gradients", abs(float(norms[key]) - recorded) / recorded, f"{case['name']} ({key})")


def _watched(model: FSQTokenizer) -> dict[str, Tensor]:
    """Where the next call leaves the first output of each layer."""
    seen: dict[str, Tensor] = {}

    def note(key: str, output: Tensor) -> None:
        seen.setdefault(key, output.detach())

    for half in ("encoder_layers", "decoder_layers"):
        for number, layer in enumerate(getattr(model, half)):
            key = f"act.{half}.{number}"
            layer.register_forward_hook(lambda module, inputs, output, key=key: note(key, output))
    return seen


def toy_tokenizer(folder: Path) -> FSQTokenizer:
    """The toy tokenizer of a folder; UserError where it is none.  A compact one may lack its decoder, which is of zeros
    then.
    """
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return _with_decoder(shape_of(settings, str(folder)), load_file(folder / "model.safetensors"), str(folder))
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(shortened(error)) from error


def _with_decoder(shape: FSQShape, state: dict[str, Tensor], where: str) -> FSQTokenizer:
    if not any(key.startswith("decoder_layers.") for key in state):
        with torch.device("meta"):
            keys = FSQTokenizer(shape).state_dict()
        state |= {key: torch.zeros(value.shape) for key, value in keys.items() if key.startswith("decoder_layers.")}
    return filled(shape, state, where)


@torch.no_grad()
def check_parts(cases: Cases, report: Report) -> None:
    """tokenizer_parts.json: single layers."""
    for case in cases:
        tensors = {key: cases.get(case, key) for key in case["tensors"]}
        for key, ours in _part(case, tensors).items():
            report.compare("tokenizer parts", ours, tensors[key], f"{case['name']} {key}")


def _part(case: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a layer makes of the recorded input, by the names of the recorded outputs."""
    x, kind = tensors["x"], case["kind"]
    if kind == "depth_to_space":
        return {"y": DepthToSpace(tuple(case["block"]))(x)}
    if kind == "causal_conv":
        weight = tensors["weight"]
        conv = CausalConv(weight.shape[1], weight.shape[0], case["kernel"][0], tuple(case["stride"]))
        conv.conv.load_state_dict({"weight": weight, "bias": tensors["bias"]})
        return {"y": conv(x)}
    if kind == "norm_swish":
        norm, swish = FrameNorm(case["groups"], x.shape[1]), Swish(x.shape[1])
        norm.load_state_dict({"weight": tensors["weight"], "bias": tensors["bias"]})
        swish.load_state_dict({"beta": tensors["beta"]})
        return {"normed": norm(x), "swished": swish(x)}
    state = {key.removeprefix("param."): value for key, value in tensors.items() if key.startswith("param.")}
    unit = ResidualUnit(x.shape[1], tensors["y"].shape[1], case["groups"])
    unit.load_state_dict(state)
    return {"y": unit(x)}


def check_released(cases: Cases, report: Report) -> None:
    """released_model.json: every key and shape of the published tokenizer, without its weights."""
    wanted = cases.meta["tokenizer"]
    recorded = wanted["keys"]
    with torch.device("meta"):
        model = FSQTokenizer(FSQShape(wanted["width"], wanted["groups"], wanted["units"], tuple(wanted["levels"])))
    ours = {key: list(value.shape) for key, value in model.state_dict().items()}
    wrong = {key for key in {*ours, *recorded} if ours.get(key) != recorded.get(key)}
    report.add("released tokenizer", len(wrong), "keys and shapes")
    count = sum(value.numel() for value in model.parameters())
    report.add("released tokenizer", abs(count - wanted["num_parameters"]), "number of parameters")
