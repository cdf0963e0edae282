"""The stand-alone network of frame as prompt: recorded numbers of Ca2-VDM, solvers, the cache, one line for what does
not fit.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from megatron_videogpt.hub.common import ddpm, solvers_videogpt
from megatron_videogpt.hub.common.ddpm_solvers import DDIM, DDPM, solver_of
from megatron_videogpt.hub.common.sampling_videogpt import sigmas
from megatron_videogpt.hub.frame_prompt import rules_frameprompt as rules
from megatron_videogpt.hub.frame_prompt.cache_frameprompt import FramePromptCache
from megatron_videogpt.hub.frame_prompt.sampling_frameprompt import Chunks, prompt_blur, rollout
from megatron_videogpt.objective.noise import normal
from tools.parity import vidgpt

pytest.importorskip("transformers")
from megatron_videogpt.hub.frame_prompt.memory_frameprompt import CachedMemory, memory_of  # noqa: E402
from megatron_videogpt.hub.frame_prompt.modeling_frameprompt import FramePromptModel  # noqa: E402
from tests.frame_prompt_hub import Blend, compared, model_of  # noqa: E402
from tools.parity import vidgpt_plain  # noqa: E402

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "vidgpt"
FOLDER = Path(os.environ.get("MVG_REFERENCE_VIDGPT") or GOLDEN)
LARGER = {"sinusoids", "intermediates", "gradients", "sampler steps", "cache"}
"""What only the whole set has."""


def test_every_recorded_case() -> None:
    """released_model.json on the meta device, too: keys and shapes of four variants, the number of their parameters."""
    assert vidgpt.is_kind(FOLDER)
    assert not vidgpt.is_kind(GOLDEN.parent) and not vidgpt.is_kind(GOLDEN.parent / "nbp")
    report = compared(FOLDER)
    assert report.failures() == []
    assert set(report.compared) | LARGER == set(vidgpt.LIMITS)
    assert report.compared["released keys"] == 16


@pytest.mark.parametrize(
    ("file", "key", "quantity"),
    [("forward", "partial_causal.s0.eps", "forward"), ("sampler", "cached_7_3_perturb.c3.s0.final", "sampler chains")],
)
def test_a_wrong_number_fails(file: str, key: str, quantity: str, tmp_path: Path) -> None:
    (tmp_path / "tiny_pe").symlink_to(GOLDEN / "tiny_pe")
    shutil.copy(GOLDEN / f"{file}.json", tmp_path)
    tensors = load_file(GOLDEN / f"{file}.safetensors")
    tensors[key] = tensors[key] + 1e-3 * tensors[key].abs().max()
    save_file(tensors, tmp_path / f"{file}.safetensors")
    (line,) = compared(tmp_path).failures()
    assert line.startswith(quantity) and key.split(".")[0] in line


def test_a_folder_in_the_published_layout_loads_and_comes_back(tmp_path: Path) -> None:
    model = FramePromptModel.from_pretrained(GOLDEN / "tiny_pe")
    whole = vidgpt_plain.model_of(GOLDEN / "tiny_pe", {})
    assert all(torch.equal(value, whole.state_dict()[key]) for key, value in model.state_dict().items())
    model.save_pretrained(tmp_path)
    again = FramePromptModel.from_pretrained(tmp_path)
    given = load_file(GOLDEN / "tiny_pe" / "model.safetensors")
    assert given.keys() == again.state_dict().keys()
    assert all(torch.equal(given[key], value) for key, value in again.state_dict().items())
    settings = json.loads((GOLDEN / "tiny_pe" / "config.json").read_text(encoding="utf-8"))
    assert settings.items() <= json.loads((tmp_path / "config.json").read_text(encoding="utf-8")).items()
    with_text = model_of(caption_channels=6, model_max_length=5)
    with_text.save_pretrained(tmp_path / "text")
    back = FramePromptModel.from_pretrained(tmp_path / "text").state_dict()
    assert all(torch.equal(value, back[key]) for key, value in with_text.state_dict().items())


# Solvers


def test_euler_steps_are_those_of_the_formula() -> None:
    levels = sigmas(5, 3.0)
    solver = solvers_videogpt.Euler.of(levels)
    z, told, untold = (normal(1, name, (2, 4, 3, 3)) for name in ("z", "told", "untold"))
    assert solver.times == tuple(levels[:-1].tolist()) and not solver.draws(0)
    for number in range(5):
        now, after = levels[number], levels[number + 1]
        v, v0 = ((x1 - z) / float(1 - now) for x1 in (told, untold))
        assert torch.equal(solver.step(number, z, told), z + float(after - now) * v)
        assert torch.equal(solver.step(number, z, told, untold, 2.5), z + float(after - now) * (v0 + 2.5 * (v - v0)))


def test_ddim_finds_the_data_whose_noise_it_is_told() -> None:
    """In any number of steps, exactly: the noise that is left in z is known (equation 12 with sigma 0)."""
    data = normal(2, "data", (3, 4, 2, 2))
    for steps in (1, 7, 50):
        solver, z = solver_of("ddim", steps), normal(2, "z", data.shape)
        for number, _ in enumerate(solver.times):
            index = steps - 1 - number
            root, rest = (getattr(solver.schedule, name)[index] for name in ROOTS)
            eps = (z - root * data) / rest
            z = solver.step(number, z, torch.cat([eps, torch.zeros_like(eps)], -3))
        assert float((z - data).abs().max()) < 2e-4, steps


ROOTS = ("sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod")


def test_ddim_with_all_its_noise_is_ddpm_with_the_smaller_variance() -> None:
    """eta = 1 draws with the posterior's variance, which a raw output of -1 means (Song et al. 2021, section 4.1)."""
    schedule = ddpm.schedule_of(20)
    z, eps, noise = (normal(3, name, (2, 4, 3, 3)) for name in ("z", "eps", "noise"))
    predicted = torch.cat([eps, -torch.ones_like(eps)], -3)
    for number in range(19):
        ours, theirs = (
            solver.step(number, z, predicted, noise=noise) for solver in (DDIM(schedule, 1.0), DDPM(schedule))
        )
        assert float((ours - theirs).abs().max() / theirs.abs().max()) < 2e-5, number


def test_guidance_takes_the_variance_of_the_text() -> None:
    solver = DDPM(ddpm.schedule_of(10))
    z, told, untold, noise = (normal(4, name, (1, size, 2, 2)) for name, size in zip("abcd", (4, 8, 8, 4)))
    eps = untold[:, :4] + 3 * (told[:, :4] - untold[:, :4])
    plain = solver.step(2, z, torch.cat([eps, told[:, 4:]], 1), noise=noise)
    assert torch.equal(solver.step(2, z, told, untold, 3.0, noise), plain)


def test_the_variance_term_trains_the_variance_alone() -> None:
    schedule = ddpm.schedule_of()
    data, noise = normal(5, "data", (3, 2, 4, 2, 2)).clamp(-1, 1), normal(5, "noise", (3, 2, 4, 2, 2))
    index = ddpm.along(torch.tensor([0, 1, 700]), data)
    noisy = ddpm.noised(schedule, data, noise, index)
    eps, variance = (normal(5, name, data.shape).requires_grad_() for name in ("eps", "variance"))
    bits = ddpm.variance_bits(schedule, data, noisy, eps, variance, index)
    bits.sum().backward()
    assert eps.grad is None and bool(variance.grad.flatten(1).any(1).all())
    # The divergence of a prediction that is the posterior itself is nothing.
    same = ddpm.variance_bits(schedule, data, noisy, noise, -torch.ones_like(data), index)
    assert float(same[1:].abs().max()) < 1e-4


# The cache and the sampler


def chain(model: FramePromptModel, cached: bool, solver: Any, window: int = 6, **told: Any) -> list[Tensor]:
    """Five chunks of 2 frames after one given."""
    guided = "text" in told
    memory = memory_of(model, window, cached, told.get("text"), told.get("mask"), guided)
    settings = Chunks(2, 5, window, 2.0 if guided else 1.0)
    given = normal(7, "given", (2, 1, 4, 4, 4))

    def noise(video: int, chunk: int, purpose: str, shape: tuple[int, ...]) -> Tensor:
        return normal(video, f"{chunk} {purpose}", shape)

    return list(rollout(memory, given, settings, solver, noise))


TEXT = {"text": normal(8, "text", (2, 5, 6)), "mask": torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])}


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"caption_channels": 6, "model_max_length": 5}, TEXT),
        ({"relative_tpe_mode": "rope"}, {}),
        ({"is_causal": "partial", "spatial_attn_enhance": None, "temp_extra_in_channels": 0}, {}),
    ],
)
def test_with_and_without_a_cache(fields: dict[str, Any], told: dict[str, Any]) -> None:
    """Equal until the window moves: 1, 3, 5 frames of prompt, then 6 of 7.  In float64: such sharp attention makes much
    of rounding.
    """
    model = model_of(**fields).double()
    pairs = list(zip(*(chain(model, cached, Blend(900.0, 400.0, 50.0), **told) for cached in (True, False))))
    apart = [float((ours - theirs).abs().max() / theirs.abs().max()) for ours, theirs in pairs]
    assert max(apart[:3]) < 1e-6, apart
    assert min(apart[3:]) > 1e-3, apart


def test_the_ring_is_overwritten_and_never_shifted() -> None:
    cache, frames = FramePromptCache(1, 4, "prev_frames_3"), normal(9, "kv", (2, 23, 3, 8))
    written, sizes = 0, set()
    for count in (2, 3, 6, 1, 3, 3, 5):
        before = cache.temporal[0].clone() if cache.temporal[0] is not None else None
        new = frames[:, written : written + count]
        joined = cache.joined(0, new)
        assert torch.equal(joined[:, :, cache.held :], new.transpose(1, 2))
        cache.write(0, new)
        cache.write_enhancing(0, new)
        cache.advance(count)
        written += count
        kept = frames[:, max(0, written - 4) : written]
        assert torch.equal(cache.in_order(0), kept)
        wanted = [new[:, frame] for frame in rules.kept_frames("prev_frames_3", count)]
        assert torch.equal(cache.enhancing_keys(0), torch.cat(wanted, 1))
        if before is not None:
            stays = [slot for slot in range(4) if all(frame % 4 != slot for frame in range(written - count, written))]
            assert torch.equal(cache.temporal[0][:, :, stays], before[:, :, stays])
        sizes.add(cache.bytes)
    # It grew for the longest pass, and not since.
    assert len(sizes) == 3 and cache.bytes == max(sizes)


def test_prompt_noise_is_of_the_respaced_schedule() -> None:
    schedule = ddpm.schedule_of(8)
    assert prompt_blur(schedule, 0) is None and prompt_blur(schedule, -1) is None
    frames, noise = normal(1, "frames", (1, 2, 4, 2, 2)), normal(1, "noise", (1, 2, 4, 2, 2))
    blur = prompt_blur(schedule, 200)
    assert blur is not None
    assert torch.equal(blur(frames, noise), ddpm.noised(schedule, frames, noise, 1))


def test_a_cached_memory_holds_its_window_alone() -> None:
    model, held = model_of(), []
    memory = memory_of(model, 6)
    assert isinstance(memory, CachedMemory)
    for start in range(0, 20, 2):
        memory.show(normal(1, str(start), (1, 2, 4, 4, 4)), start)
        held.append((memory.cache.held, memory.cache.bytes))
    assert [frames for frames, _ in held] == [2, 4, 6, 6, 6, 6, 6, 6, 6, 6]
    assert len({size for _, size in held}) == 1
