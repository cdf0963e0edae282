"""Recorded sampling of frame as prompt: single steps, chains that are fed their own results, contents of the cache."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from megatron_videogpt.hub.common.ddpm import schedule_of
from megatron_videogpt.hub.common.ddpm_solvers import DDPM
from megatron_videogpt.hub.frame_prompt import rules_frameprompt as rules
from megatron_videogpt.hub.frame_prompt.sampling_frameprompt import Chunks, Memory, Step, prompt_blur, rollout
from megatron_videogpt.objective.recorded import Cases, Report

if TYPE_CHECKING:
    from tools.parity.vidgpt import Network


@torch.no_grad()
def check_sampler(cases: Cases, case: dict[str, Any], network: Network, report: Report) -> None:
    """One case of sampler.json."""
    solver = DDPM(schedule_of(case["num_sampling_steps"]))
    told = sorted(int(t) for t in solver.times)
    report.add("sampling steps", float(told != case["timesteps"]), case["name"])
    text, mask = (_stacked(cases, case["samples"], name) for name in ("text", "text_mask"))
    cached, guided = case["mode"] == "cached", case["cfg_scale"] > 1
    memory = network.memory(cached, case["window"], text, mask, guided)
    _check_steps(cases, case, network, memory, solver, report)
    _check_chain(cases, case, memory, solver, report)


def _stacked(cases: Cases, samples: list[dict[str, Any]], name: str) -> Tensor | None:
    if name not in samples[0]["tensors"]:
        return None
    return torch.stack([cases.get(sample, name) for sample in samples])


def _held(cases: Cases, samples: list[dict[str, Any]], name: str) -> Tensor:
    found = _stacked(cases, samples, name)
    assert found is not None, name
    return found


def _check_steps(
    cases: Cases, case: dict[str, Any], network: Network, memory: Memory, solver: DDPM, report: Report
) -> None:
    """Every step from its recorded beginning, after prompts as they were fed; positions, frames held, the cache."""
    settings = json.loads((cases.folder / case["checkpoint"] / "config.json").read_text(encoding="utf-8"))
    settings |= case["overrides"]
    memory.begin()
    for chunk in case["chunks"]:
        samples, first, name = chunk["samples"], chunk["first_frame"], f"{case['name']} {chunk['index']}"
        fed = _held(cases, samples, "condition_written" if memory.cached else "condition")
        memory.show(fed, first - fed.shape[1])
        held = fed.shape[1]
        if memory.cached:
            found = network.kept(memory)
            held = found["temporal_kv"].shape[2]
            for key, entry in (chunk.get("cache") or {}).items():
                report.compare("cache", found[key], cases.tensors[entry["key"]], f"{name} ({key})")
        report.add("frames held", float([first - held, first] != chunk["condition_frames"]), name)
        begin, count = (first, case["chunk"]) if memory.cached else (first - held, held + case["chunk"])
        ours = rules.places(settings["relative_tpe_mode"], settings["max_tpe_len"], count, begin, memory.cached)
        report.add("positions", float(ours != chunk["tpe_ids"]), name)
        z, extra = _stacked(cases, samples, "z"), _held(cases, samples, "step_noise")
        if z is None:
            # A compact case has the ends of its chunks alone.
            continue
        for number, t in enumerate(solver.times):
            predicted, without = memory.predict(z[:, number], t)
            after = solver.step(number, z[:, number], predicted, without, case["cfg_scale"], extra[:, number])
            report.compare("sampler steps", after, z[:, number + 1], f"{name} step {number}")


def _check_chain(cases: Cases, case: dict[str, Any], memory: Memory, solver: DDPM, report: Report) -> None:
    """From the given frames on with nothing but recorded noise."""

    def noise(video: int, chunk: int, purpose: str, shape: tuple[int, ...]) -> Tensor:
        held = case["chunks"][chunk]["samples"][video]
        if purpose.startswith("step"):
            return cases.get(held, "step_noise")[int(purpose.removeprefix("step"))]
        return cases.get(held, {"init": "init_noise", "prompt": "condition_noise"}[purpose])

    def observe(step: Step) -> None:
        z = _stacked(cases, case["chunks"][step.chunk]["samples"], "z")
        if z is not None:
            name = f"{case['name']} {step.chunk} step {step.number}"
            report.compare("sampler chains", step.z, z[:, step.number], name)

    blur, given = prompt_blur(solver.schedule, case["prefix_perturb_t"]), _held(cases, case["samples"], "given")
    if case["prefix_perturb_index"] is not None:
        index = case["prefix_perturb_t"] * case["num_sampling_steps"] // 1000
        report.add("sampling steps", float(index != case["prefix_perturb_index"]), case["name"])
    settings = Chunks(case["chunk"], case["ar_steps"], case["window"], case["cfg_scale"])
    made = []
    for chunk, z in zip(case["chunks"], rollout(memory, given, settings, solver, noise, blur, observe)):
        report.compare("sampler chains", z, _held(cases, chunk["samples"], "final"), f"{case['name']} {chunk['index']}")
        made.append(z)
    video = _stacked(cases, case["samples"], "video")
    if video is not None:
        report.compare("sampler chains", torch.cat([given, *made], 1), video, f"{case['name']} (video)")
