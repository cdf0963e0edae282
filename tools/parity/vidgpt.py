"""Recorded numbers of Ca2-VDM, frame as prompt with a factorised network (tests/golden/vidgpt/README.md): which file is
checked by what, and how far numbers may be off.

The network is known only as a `Network`: the stand-alone one (`Plain`), or any other in an adapter of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from megatron_videogpt.hub.frame_prompt.sampling_frameprompt import Memory
    from megatron_videogpt.objective.recorded import Cases, Report

LIMITS = {
    "masks": 0.0,
    "positions": 0.0,
    "prefix lengths": 0.0,
    "sampling steps": 0.0,
    "frames held": 0.0,
    "position tables": 0.0,
    "schedule": 0.0,
    "roots and logarithms": 1e-6,
    "denoising step": 1e-6,
    "variance term": 1e-5,
    "sinusoids": 1e-4,
    "layers": 1e-5,
    "released keys": 0.0,
    "noising": 1e-6,
    "forward": 1e-5,
    "intermediates": 1e-5,
    "loss": 1e-5,
    "loss parts": 1e-5,
    "gradient norms": 1e-4,
    "gradients": 1e-4,
    "cache": 5e-5,
    "sampler steps": 2e-4,
    "sampler chains": 2e-4,
}
"""Fractions of the recorded tensor's largest absolute value; of scalars and norms relative; of masks, positions, steps,
frames and keys the number that differ.  Square roots, exponentials and logarithms of float32 differ in the last bit
from one kind of CPU to another, and sinusoids multiply that by a timestep of up to 999.
"""
FILES = ("masks_positions", "components", "released_model", "forward", "loss", "sampler")
MARKS = ("relative_tpe_mode", "posterior_log_variance_clipped")
"""Words of this kind's files that those of other kinds do not have."""


@dataclass(frozen=True)
class Batch:
    """Whole sequences: latents ``[B, T, C, h, w]``, times int64 ``[B, T]``, frames of prompt, place of the first frame,
    and of models with text its features ``[B, N, channels]``, mask ``[B, N]`` (None for all) and bool ``[B]``, whose
    text is dropped.
    """

    latents: Tensor
    times: Tensor
    prompt: int
    start: int
    text: Tensor | None = None
    text_mask: Tensor | None = None
    dropped: Tensor | None = None


class Network(Protocol):
    """A network with the weights of a recorded checkpoint."""

    def predict(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Noise and raw variance ``[B, T, C, h, w]``, whole on every rank, with gradients."""
        ...

    def watched(self, batch: Batch) -> dict[str, Tensor]:
        """What layers returned, ``[B, T, S, D]``, by the names of forward.json's `intermediates`; those that it has."""
        ...

    def gradients(self) -> dict[str, Tensor | None]:
        """Of the parameters after a backward pass, whole, by their published names."""
        ...

    def memory(self, cached: bool, window: int, text: Tensor | None, mask: Tensor | None, guided: bool) -> Memory:
        """For a rollout of videos with these texts; the untold row of guidance keeps the mask."""
        ...

    def kept(self, memory: Memory) -> dict[str, Tensor]:
        """What a cached memory holds: temporal_kv ``[blocks, rows, frames, S, 2D]``, the oldest frame first, and, with
        prefix enhancement, spatial_kv ``[blocks, rows, N, S, 2D]``.
        """
        ...


Opened = Callable[[Path, dict[str, Any]], Network]
"""`opened(folder, overrides)`: the network of a recorded checkpoint, with other fields of its config.json."""


def is_kind(folder: Path) -> bool:
    """Whether a folder is of this kind, by the words in its files."""
    paths = [folder / f"{name}.json" for name in FILES] + sorted(folder.glob("*/config.json"))
    texts = (path.read_text(encoding="utf-8") for path in paths if path.is_file())
    return any(f'"{mark}"' in text for text in texts for mark in MARKS)


def check_folder(folder: Path, report: Report, opened: Opened | None = None) -> list[str]:
    """Every case of every file; the names of files that nothing checks.

    opened: None for the stand-alone network, and single layers are compared then, too.
    """
    from megatron_videogpt.objective.recorded import Cases
    from tools.parity import vidgpt_parts, vidgpt_plain, vidgpt_sampler

    open_one = opened or vidgpt_plain.opened
    vidgpt_parts.check_masks(Cases(folder, "masks_positions"), report)
    vidgpt_parts.check_released(folder / "released_model.json", report)
    if opened is None:
        vidgpt_parts.check_components(Cases(folder, "components"), report)
    for name, check in (
        ("forward", check_forward),
        ("loss", check_loss),
        ("sampler", vidgpt_sampler.check_sampler),
    ):
        cases = Cases(folder, name)
        for case in cases:
            check(cases, case, open_one(folder / case["checkpoint"], case["overrides"]), report)
    others = sorted(path.stem for path in folder.glob("*.json") if path.stem not in FILES)
    return [name for name in others if "cases" in json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))]


def stacked(cases: Cases, case: dict[str, Any], name: str) -> Tensor | None:
    """A tensor of all samples, ``[B, ...]``; None where they have none of this name."""
    samples = case["samples"]
    return torch.stack([cases.get(one, name) for one in samples]) if name in samples[0]["tensors"] else None


def batch_of(cases: Cases, case: dict[str, Any]) -> Batch:
    """What a case of forward.json or loss.json feeds."""
    latents, times = stacked(cases, case, "x"), stacked(cases, case, "t")
    assert latents is not None and times is not None
    dropped = torch.tensor([number in case["text_dropped"] for number in range(case["batch"])])
    text = stacked(cases, case, "text")
    return Batch(
        latents,
        times.expand(latents.shape[:2]),
        case["prefix"],
        case["tpe_start"],
        text,
        stacked(cases, case, "text_mask") if case.get("uses_text_mask", True) else None,
        dropped if text is not None else None,
    )


@torch.no_grad()
def check_forward(cases: Cases, case: dict[str, Any], network: Network, report: Report) -> None:
    """Noise and variance of every frame, and where recorded what every layer returns."""
    name, batch = case["name"], batch_of(cases, case)
    for quantity, ours in zip(("eps", "var"), network.predict(batch)):
        theirs = stacked(cases, case, quantity)
        assert theirs is not None
        # Of every sample by itself: their sizes are not those of a batch.
        for number, pair in enumerate(zip(ours, theirs)):
            report.compare("forward", *pair, f"{name} ({quantity} {number})")
    if "intermediates" in case:
        found = network.watched(batch)
        for key, entry in case["intermediates"].items():
            if key in found:
                report.compare("intermediates", found[key], cases.tensors[entry["key"]], f"{name} ({key})")


def check_loss(cases: Cases, case: dict[str, Any], network: Network, report: Report) -> None:
    """Noising, the loss, its parts, gradients."""
    from megatron_videogpt.hub.common import ddpm

    name, prompt, batch = case["name"], case["prefix"], batch_of(cases, case)
    schedule, t = ddpm.schedule_of(), torch.tensor(case["t"])
    data, noise = stacked(cases, case, "x_start"), stacked(cases, case, "noise")
    assert data is not None and noise is not None
    fed = data.clone()
    index = ddpm.along(t, data)
    fed[:, prompt:] = ddpm.noised(schedule, data[:, prompt:], noise[:, prompt:], index)
    prefix_noise = stacked(cases, case, "prefix_noise")
    if prefix_noise is not None:
        fed[:, :prompt] = ddpm.noised(schedule, data[:, :prompt], prefix_noise, case["prefix_perturb_t"])
    report.compare("noising", fed, batch.latents, name)
    eps, variance = (part[:, prompt:] for part in network.predict(batch))
    error = (noise[:, prompt:] - eps).square().flatten(1).mean(1)
    bits = ddpm.variance_bits(schedule, data[:, prompt:], fed[:, prompt:], eps, variance, index).flatten(1).mean(1)
    loss = (error + bits).mean()
    loss.backward()
    _relative(report, "loss", float(loss.detach()), case["loss"], name)
    for quantity, ours in (("mse", error), ("vb", bits)):
        report.compare("loss parts", ours, torch.tensor(case[quantity]), f"{name} ({quantity})")
    check_gradients(cases, case, network.gradients(), report)


def check_gradients(cases: Cases, case: dict[str, Any], gradients: dict[str, Tensor | None], report: Report) -> None:
    """Norms of all, and where recorded the gradients themselves; none at all is an exact zero."""
    name, zero = case["name"], torch.zeros(1)
    found = {key: zero if value is None else value for key, value in gradients.items()}
    total = float(torch.stack([value.norm() for value in found.values()]).norm())
    _relative(report, "gradient norms", total, case["grad_norm_total"], f"{name} (total)")
    for key, recorded in case["grad_norm"].items():
        ours = float(found[key].norm()) if key in found else float("inf")
        if recorded:
            _relative(report, "gradient norms", ours, recorded, f"{name} ({key})")
        else:
            report.add("gradient norms", ours, f"{name} ({key})")
    for key, entry in (case.get("full_grads") or {}).items():
        report.compare("gradients", found[key], cases.tensors[entry["key"]], f"{name} ({key})")


def _relative(report: Report, quantity: str, ours: float, recorded: float, case: str) -> None:
    report.add(quantity, abs(ours - recorded) / abs(recorded), case)
