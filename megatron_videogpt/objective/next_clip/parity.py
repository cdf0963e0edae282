"""Comparison with recorded numbers: every case of a folder in the format of tests/golden/README.md, whose sections are
named below.

Errors are fractions of the recorded tensor's largest absolute value, but for ids, positions and masks (differing
entries) and gradient norms (relative).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...config.schema import Config, ModelConfig, ParallelConfig, SampleConfig, TrainConfig
from ...errors import UserError
from ...hub.common.sampling_videogpt import Denoiser, Settings, Step, continue_videos, sigmas
from ...model.init import gather_released, load_released
from ...model.parameters import Parameter
from ...model.patches import unpatchify
from ...sequence.intervals import dense_mask
from ...sequence.layout import (
    CLEAN,
    DIFFUSION,
    IMG_END,
    IMG_START,
    NOISY,
    Layout,
    history_shape,
    layout,
    training_shape,
)
from ..flow_rows import Sequence, assemble
from ..noise import mix
from ..recorded import Cases, Report
from .denoiser import build_denoiser
from .objective import NextClipDiffusion
from .order import reference_order
from .parity_components import check_components

LIMITS = {
    "ids": 0.0,
    "positions": 0.0,
    "masks": 0.0,
    "noising": 1e-6,
    "components": 2e-5,
    "forward": 2e-5,
    "intermediates": 2e-5,
    "loss": 1e-5,
    "loss per frame": 1e-5,
    "gradient norms": 1e-4,
    "gradients": 1e-4,
    "sampler": 5e-4,
    "cached sampler": 5e-4,
}

Opened = Callable[[Path, tuple[int, int, int]], tuple[ModelConfig, int, Callable[[Parameter], Tensor]]]
"""`opened(folder, hint ids)`: the model of a checkpoint in the released layout, its latent channels, and its tensors by
parameter.
"""


def check_folder(
    folder: Path, parallel: ParallelConfig, opened: Opened, build: Callable[[Config, int], Any], report: Report
) -> None:
    """Every case of every file in `folder`, each through a model that `build(config, channels)` makes and the case's
    own checkpoint fills.
    """
    check_masks(Cases(folder, "masks_positions"), report)
    models: dict[str, tuple[Any, Config]] = {}

    def model_of(name: str, hint_ids: tuple[int, int, int]) -> tuple[Any, Config]:
        if name not in models:
            config, channels, tensor_of = opened(folder / name, hint_ids)
            whole = Config(model=config, train=TrainConfig(precision="fp32"), parallel=parallel)
            models[name] = build(whole, channels), whole
            load_released(models[name][0], config, tensor_of)
        return models[name]

    checks = {"forward_train": check_forward, "loss": check_loss, "sampler": check_sampler}
    for name, check in checks.items():
        cases = Cases(folder, name)
        for case in cases:
            check(cases, case, *model_of(case["checkpoint"], cases.hint_ids), report)
    cases = Cases(folder, "components")
    if cases.present:
        # The parts that are compared here do not involve token ids.
        check_components(cases, *model_of(cases.meta["checkpoint"], (0, 1, 2)), report)


def case_layout(sample: dict[str, Any], inference: bool) -> Layout:
    """Our layout of a recorded sample."""
    grid = (sample["latent_h"] // 2, sample["latent_w"] // 2)
    if grid[0] * grid[1] != sample["patches_per_frame"]:
        raise UserError(
            f"{sample['latent_h']}x{sample['latent_w']} latents with {sample['patches_per_frame']} patches: "
            "only patch size 2 is known here"
        )
    blocks = sample["frame_blocks"]
    return layout(
        history_shape(blocks[0], blocks[1], grid) if inference else training_shape(tuple(n for n in blocks if n), grid)
    )


def check_masks(cases: Cases, report: Report) -> None:
    """Token ids, positions and masks of the real rows (README sections 2-6)."""
    placeholder = cases.meta["token_ids"]["placeholder"] if cases.present else 0
    for case in cases:
        ids, positions, masks = (cases.get(case, name) for name in ("input_ids", "position_ids", "attention_mask"))
        for b, sample in enumerate(case["samples"]):
            row = case_layout(sample, case["kind"] == "infer")
            order, pad = reference_order(row), case["pad_len"][b]
            token = torch.full_like(row.kind, placeholder)
            for (kind, role), number in zip(((NOISY, DIFFUSION), (CLEAN, IMG_START), (CLEAN, IMG_END)), cases.hint_ids):
                token[row.rows(kind, role)] = number
            mask = torch.zeros(len(row), pad + len(row), dtype=torch.bool)
            mask[:, pad:] = dense_mask(row.intervals)[order][:, order]
            for quantity, ours, recorded in (
                ("ids", token[order], ids[b, pad:]),
                ("positions", row.position[order], positions[b, pad:]),
                ("masks", mask, masks[b, pad:].bool()),
            ):
                report.differing(quantity, ours, recorded, case["name"])


def _sequence(cases: Cases, sample: dict[str, Any], target: str | None = None) -> Sequence:
    return Sequence(
        layout=case_layout(sample, inference=False),
        noisy=cases.get(sample, "noisy"),
        clean=cases.get(sample, "clean"),
        timestep=cases.get(sample, "t"),
        target=cases.get(sample, target) if target else None,
    )


def _predictions(output: Tensor, sequences: list[Sequence], patch: int) -> list[Tensor]:
    shapes = [tuple(item.noisy.shape) for item in sequences]
    parts = output.split([n * (h // patch) * (w // patch) for n, _, h, w in shapes])
    return [unpatchify(part, n, (h // patch, w // patch), patch) for part, (n, _, h, w) in zip(parts, shapes)]


def check_forward(cases: Cases, case: dict[str, Any], model: Any, config: Config, report: Report) -> None:
    """Predictions, and where recorded the hidden states (README section 7)."""
    sequences = [_sequence(cases, sample) for sample in case["samples"]]
    caught: dict[str, Tensor] = {}
    hooks = [model.embedding.register_forward_hook(lambda m, i, o: caught.update(inputs_embeds=o))]
    hooks += [
        layer.register_forward_hook(lambda m, i, o, n=n: caught.update({f"layer{n}_out": o[0]}))
        for n, layer in enumerate(model.decoder.layers)
    ]
    hooks.append(model.decoder.final_layernorm.register_forward_hook(lambda m, i, o: caught.update(final_norm_out=o)))
    with torch.no_grad():
        output = model(assemble(sequences, config.model.patch_size, config.model.position_table_size, 1))
    for hook in hooks:
        hook.remove()
    for sample, ours in zip(case["samples"], _predictions(output, sequences, config.model.patch_size)):
        report.compare("forward", ours, cases.get(sample, "pred"), case["name"])
    for name, entry in (case.get("intermediates") or {}).items():
        start = 0
        for b, item in enumerate(sequences):
            rows = start + reference_order(item.layout)
            report.compare(
                "intermediates",
                caught[name][rows, 0],
                cases.tensors[entry["key"]][b, case["pad_len"][b] :],
                case["name"],
            )
            start += len(item.layout)


def check_loss(cases: Cases, case: dict[str, Any], model: Any, config: Config, report: Report) -> None:
    """Noising, loss and gradients (README section 8)."""
    name, objective = case["name"], NextClipDiffusion(config.model.patch_size, config.model.position_table_size)
    for sample in case["samples"]:
        for data, noise, retention, mixed in (("x1", "x0", "t", "noisy"), ("x1_clean", "x0_clean", "t_clean", "clean")):
            report.compare(
                "noising",
                mix(*(cases.get(sample, key) for key in (data, noise, retention))),
                cases.get(sample, mixed),
                name,
            )
    sequences = [_sequence(cases, sample, target="x1") for sample in case["samples"]]
    row = assemble(sequences, config.model.patch_size, config.model.position_table_size, 1)
    model.zero_grad(set_to_none=True)
    (total, per_frame), count = objective.loss(model(row), row), row.count
    (total / count).backward()
    report.compare("loss", (total / count).reshape(1), torch.tensor([case["loss"]]), name)
    report.compare(
        "loss per frame",
        per_frame,
        torch.cat([cases.get(sample, "loss_per_frame") for sample in case["samples"]]),
        name,
    )
    gradients = gather_released(
        model, config.model, lambda parameter: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    )
    for key, recorded in case["grad_norm"].items():
        ours = float(gradients[key].norm())
        # A parameter that took no part there has a gradient here, of zeros.
        report.add("gradient norms", ours if not recorded else abs(ours - recorded) / recorded, f"{name} ({key})")
    norm = float(torch.stack([value.norm() for value in gradients.values()]).norm())
    report.add("gradient norms", abs(norm - case["grad_norm_total"]) / case["grad_norm_total"], f"{name} (total)")
    for key, entry in (case.get("full_grads") or {}).items():
        recorded_full = cases.tensors[entry["key"]]
        if key.endswith("embed_tokens.weight"):
            recorded_full = recorded_full[list(cases.hint_ids)]
        report.compare("gradients", gradients[key], recorded_full, f"{name} ({key})")


def check_sampler(cases: Cases, case: dict[str, Any], model: Any, config: Config, report: Report) -> None:
    """A whole chain from its initial history, with the recorded noises (README section 9), without and with a cache of
    the history.
    """
    for quantity, cache in (("sampler", False), ("cached sampler", True)):
        denoiser = build_denoiser([model], replace(config, sample=SampleConfig(cache=cache)), torch.device("cpu"))
        _check_chain(cases, case, denoiser, quantity, report)


def _check_chain(cases: Cases, case: dict[str, Any], denoiser: Denoiser, quantity: str, report: Report) -> None:
    clips, steps, trace, fed = case["clips"], case["num_steps"], list[Step](), list[Tensor]()
    settings = Settings(
        clips=tuple(clip["generated_frames"] for clip in clips),
        window=case["max_frame_window"] or 10**9,
        steps=steps,
        guidance=case["img_cfg_scale"] if case["guidance"] else 1.0,
        history_noise=case["history_noise_level"],
        time_shift=case["time_shifting_factor"],
    )

    class Watched:
        """Notes the histories that the model is given."""

        begin, predict = denoiser.begin, denoiser.predict

        def remember(self, histories: list[Tensor], kept: list[int]) -> None:
            fed.append(histories[0])
            denoiser.remember(histories, kept)

    start = [cases.get(case, "initial_history")]
    new = continue_videos(
        Watched(),
        start,
        settings,
        lambda video, clip, purpose, shape: cases.get(clips[clip], f"{purpose}_noise"),
        trace.append,
    )[0]
    for number, (clip, final) in enumerate(zip(clips, new.split(settings.clips))):
        name, of_clip = f"{case['name']} clip {number}", trace[number * steps : (number + 1) * steps]
        ours = {"final": final, "history": fed[number], "sigmas": sigmas(steps, settings.time_shift)}
        ours |= {
            "z": torch.stack([*(step.z[0] for step in of_clip), final]),
            "x1_cond": torch.stack([step.x1_cond[0] for step in of_clip]),
        }
        ours |= (
            {"x1_uncond": torch.stack([step.x1_uncond[0] for step in of_clip if step.x1_uncond])}
            if case["guidance"]
            else {}
        )
        for key, value in ours.items():
            report.compare(quantity, value, cases.get(clip, key), f"{name} {key}")
