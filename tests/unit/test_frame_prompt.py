"""Frame as prompt on the decoder: its mask, rows and closed forms by brute force, forward, loss and gradients against a
dense twin, and the options.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_videogpt.codec.geometry import expected_geometry
from megatron_videogpt.condition.options import ConditionConfig
from megatron_videogpt.config.check import find_problems
from megatron_videogpt.config.load import config_from_dict
from megatron_videogpt.config.schema import Config
from megatron_videogpt.convert.table import check_network
from megatron_videogpt.data.packing import StepPlanner
from megatron_videogpt.data.plans import Plans, Sample
from megatron_videogpt.data.splits import PhysicsSplit
from megatron_videogpt.errors import UserError
from megatron_videogpt.model.flops import layer_parameters
from megatron_videogpt.model.patches import patchify
from megatron_videogpt.objective.frame_prompt.objective import FramePromptDiffusion
from megatron_videogpt.objective.frame_prompt.prompts import prompt_length, prompt_lengths
from megatron_videogpt.objective.frame_prompt.sequence import prompt_layout
from megatron_videogpt.objective.frame_prompt.work import FramePromptWork, work_of
from megatron_videogpt.objective.noise import normal, uniform
from megatron_videogpt.sequence.intervals import dense_mask
from tests import frame_prompt as twin

pytestmark = pytest.mark.usefixtures("processes")

PROMPTS, CHUNK, TABLE = (1, 3, 4), 2, twin.TINY.table
CLASSES = ConditionConfig(kind="class", classes=("a", "b", "c"))


def sample_of(key: int, frames: int = 6, size: tuple[int, int] = (4, 6), **facts: Any) -> Sample:
    return Sample(key, "video", normal(key, "latents", (frames, 4, *size)), None, (frames,), **facts)


def objective_of(**facts: Any) -> FramePromptDiffusion:
    return FramePromptDiffusion(2, TABLE, PROMPTS, CHUNK, **facts)


@pytest.mark.parametrize("prefix", [0, 2])
def test_a_token_sees_its_frame_and_all_before(prefix: int) -> None:
    layout, block = prompt_layout(2, 3, (1, 2), prefix), 4
    frame = [-1] * prefix + [number for number in range(5) for _ in range(block)]
    expected = torch.tensor([[key <= query for key in frame] for query in frame])
    assert torch.equal(dense_mask(layout.intervals), expected)
    assert torch.equal(dense_mask(layout.columns), expected.T)
    assert layout.position.tolist() == list(range(prefix + 5 * block))
    assert layout.clip.tolist() == [-1] * prefix + [0] * 2 * block + [1] * 3 * block
    assert layout.role.tolist()[prefix:] == [0, 1, 2, 2] * 5


def test_lengths_of_prompts_are_uniform_among_those_that_fit() -> None:
    keys = np.arange(6000, dtype=np.int64) * 7919
    frames = np.where(keys % 2 == 0, 5, 4)
    drawn = prompt_lengths(keys, frames, (1, 3, 4))
    for count, fitting in ((5, (1, 3, 4)), (4, (1, 3))):
        found = Counter(drawn[frames == count].tolist())
        assert sorted(found) == list(fitting)
        assert all(abs(found[length] - 3000 / len(fitting)) < 4 * 3000**0.5 for length in fitting)
    assert [prompt_length(int(key), 5, (1, 3, 4)) for key in keys[::2][:20]] == drawn[::2][:20].tolist()
    assert prompt_length(3, 1, (1, 3)) == 0 and prompt_length(3, 1, (0, 3)) == 0


def test_a_packed_row_is_its_samples() -> None:
    """Of prompts of several lengths, a short video, another size, a dropped condition and one that was not read."""
    objective = objective_of(prompt_noise=0.25, no_prefix=torch.zeros(0, dtype=torch.int64))
    told = torch.tensor([2])
    samples = [
        *(sample_of(key, condition=told, dropped=key == 2) for key in range(4)),
        sample_of(8, frames=2, size=(2, 4)),
        Sample(0, "nothing", torch.zeros(1, 4, 2, 2), None, (1,), scored=False),
    ]
    row = objective.prepare(samples, 8)
    assert row.length % 8 == 0
    assert len({objective.split(sample) for sample in samples}) > 3, "prompts of several lengths"
    start = frame = 0
    fed, targets, weights, timesteps, counted = [], [], [], [], []
    for sample in samples:
        prompt, chunk = objective.split(sample)
        assert prompt + chunk <= len(sample.mean) and chunk == min(CHUNK, len(sample.mean) - prompt)
        t, noise = float(uniform(sample.key, "timestep", 1)), normal(sample.key, "noise", tuple(sample.mean.shape))
        kept = [0.75] * prompt + [t] * chunk
        fed += [patchify((k * x + (1 - k) * e)[None], 2) for k, x, e in zip(kept, sample.mean, noise)]
        patches = len(fed[-1])
        targets.append(patchify(sample.mean[prompt : prompt + chunk], 2))
        weights += [float(sample.scored) / patches] * patches * chunk
        timesteps += [1.0] * prompt + [t] * chunk
        counted += [0.0] * prompt + [float(sample.scored)] * chunk
        prefix = int(sample.condition is not None and not sample.dropped)
        length = prefix + (prompt + chunk) * (patches + 2)
        assert objective.length(sample) == length
        here = slice(start, start + length)
        mask = dense_mask(row.intervals)[here]
        assert torch.equal(mask[:, here], dense_mask(prompt_layout(prompt, chunk, (1, patches), prefix).intervals))
        assert mask.sum() == mask[:, here].sum(), "sequences do not see each other"
        assert row.positions[here].tolist() == list(range(length))
        start, frame = start + length, frame + prompt + chunk
    assert torch.allclose(row.streams["noisy"]["patch"], torch.cat(fed), atol=1e-6)
    assert torch.equal(row.target, torch.cat(targets)) and row.scored == "predicted"
    assert row.weight.tolist() == pytest.approx(weights)
    assert row.units["timestep"].tolist() == pytest.approx(timesteps)
    assert row.counted.tolist() == counted and row.count == sum(counted)
    assert row.streams["predicted"]["frame"].unique().tolist() == [
        number for number, t in enumerate(timesteps) if t != 1.0
    ]
    assert len(row.streams["prefix"]) == 3 and len(row.streams["clean"]) == 0
    shards = [row.shard(rank, 2) for rank in range(2)]
    assert torch.equal(torch.cat([shard.target for shard in shards]), row.target)
    assert sum(shard.count for shard in shards) == row.count


def plans_of(keys: list[int], frames: int, prefix: int = 0, dropped: bool = False) -> Plans:
    column = np.zeros(len(keys), dtype=np.int64)
    cuts, off = np.zeros((len(keys), frames - 1), dtype=bool), np.full(len(keys), dropped)
    key = np.array(keys, dtype=np.int64)
    return Plans(
        column, key, column, column, column, column + 1, column + frames, cuts, column + 4, column + 6, column + 1,
        column, off, column + prefix,
    )  # fmt: skip


@pytest.mark.parametrize(("prefix", "dropped"), [(0, False), (1, False), (1, True)])
@pytest.mark.parametrize("frames", [2, 4, 8])
def test_closed_forms_count_what_is_there(frames: int, prefix: int, dropped: bool) -> None:
    work = FramePromptWork(2, frames, PROMPTS, CHUNK, (1.0, 1.0), prefix)
    objective, told = objective_of(no_prefix=torch.zeros(0).long() if prefix else None), torch.tensor([1])
    keys = list(range(6))
    counts = work.of(plans_of(keys, frames, prefix, dropped))
    assert counts.tokens.dtype == counts.pairs.dtype == counts.scored.dtype == np.int64
    for place, key in enumerate(keys):
        sample = sample_of(key, frames, condition=told if prefix else None, dropped=dropped)
        row = objective.prepare([sample], 1)
        assert counts.tokens[place] == row.length == objective.length(sample)
        assert counts.pairs[place] == int(dense_mask(row.intervals).sum())
        assert counts.scored[place] == len(row.scored_rows)
        assert counts.scored_pairs[place] == int(dense_mask(row.intervals)[row.scored_rows].sum())
    largest = work.largest((4, 6))
    many = FramePromptWork(2, frames, PROMPTS, CHUNK, (1.0, 1.0), prefix).of(plans_of(list(range(99)), frames, prefix))
    assert (largest.tokens, largest.pairs) == (many.tokens.max(), many.pairs.max())
    assert work.longest(np.array([frames]), (np.array([4]), np.array([6])))[0] == largest.tokens
    assert work.positions(frames, (4, 6)) == largest.tokens


def test_the_mean_is_that_of_the_draws() -> None:
    work = FramePromptWork(2, 6, PROMPTS, CHUNK, (1.0, 1.0), 2, 0.25)
    parts = []
    for dropped, share in ((False, 0.75), (True, 0.25)):
        for prompt in PROMPTS:
            layout = prompt_layout(prompt, CHUNK, (2, 3), 0 if dropped else 2)
            mask = dense_mask(layout.intervals)
            counts = len(layout), int(mask.sum()), CHUNK * 6, int(mask[-CHUNK * 8 :].sum()) * 6 // 8
            parts.append(np.array(counts) * share / len(PROMPTS))
    expected = work.expected((4, 6))
    assert astuple(expected) == pytest.approx(tuple(np.sum(parts, axis=0)), rel=1e-12)
    assert ("prompt frames", "2.7", "4.0") in work.facts((4, 6), (4, 6))
    assert work.fingerprint != replace(work, chunk=3).fingerprint


def test_rows_come_out_as_long_as_they_were_planned() -> None:
    values = {**GOOD, "data": {"frames": 7, "clips": [1, 1], "pack_tokens": 300, "row_lengths": 6, "workers": 0}}
    values["objective"] = {**GOOD["objective"], "prompts": [1, 3, 5], "chunk": 2}
    values |= {"train": {"global_batch_size": 24}, "model": {"position_table_size": 16}}
    config = config_from_dict(values)
    split, work = PhysicsSplit("train", config.data, 1), work_of(config, expected_geometry(config.codec))
    step = StepPlanner(split, 0, config, work, 2).step(0)
    objective, lengths = FramePromptDiffusion(2, 16, (1, 3, 5), 2), set()
    for row in (row for rank in step.rows for row in rank):
        plans = [step.plans[place] for place in row.samples]
        samples = [Sample(plan.key, "", torch.zeros(7, 4, 8, 8), None, plan.clips) for plan in plans]
        assert {plan.size for plan in plans} == {(64, 64)}
        assert objective.prepare(samples, row.length).length == row.length
        lengths |= {objective.split(sample)[0] for sample in samples}
    assert lengths == {1, 3, 5}


def gradient(parameter: torch.Tensor) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad


@pytest.mark.parametrize("kind", ["none", "class"])
def test_forward_loss_and_gradients_are_those_of_the_dense_twin(kind: str) -> None:
    from megatron_videogpt.model.init import gather_released
    from megatron_videogpt.model.prefix import no_prefix

    condition = CLASSES if kind == "class" else ConditionConfig()
    weights = {key: value.requires_grad_() for key, value in twin.weights_of().items()}
    model, config = twin.build(weights, condition, "reference", prompts=PROMPTS, chunk=CHUNK)
    told = torch.tensor([1]) if kind == "class" else None
    samples = [sample_of(1, condition=told), sample_of(2, size=(2, 6)), sample_of(5, condition=told, dropped=True)]
    objective = objective_of(prompt_noise=0.1, no_prefix=no_prefix(config))
    assert {objective.split(sample)[0] for sample in samples} == {1, 3, 4}
    row = objective.prepare(samples, 8)
    output = model(row)
    score = objective.score(output, row)
    score.total.backward()
    total, predicted = torch.zeros(()), []
    for sample in samples:
        sequence, prompt = objective.sequence(sample), objective.split(sample)[0]
        shown = sample.condition is not None and not sample.dropped
        prefix = weights["class_embedding.weight"][sample.condition] if shown else None
        frames = twin.forward(weights, sequence.noisy, sequence.timestep, prefix=prefix)[prompt:]
        predicted.append(patchify(frames, 2))
        total = total + (frames - sample.mean[prompt : prompt + CHUNK]).square().mean((1, 2, 3)).sum()
    expected = torch.cat(predicted)
    assert float(((output - expected).abs().max() / expected.abs().max()).detach()) < 1e-5
    assert score.total.item() == pytest.approx(total.item(), rel=1e-5)
    assert score.count == int(score.counts.sum()) == 3 * CHUNK
    assert score.sums.sum().item() == pytest.approx(total.item(), rel=1e-5)
    total.backward()
    found = gather_released(model, config.model, gradient)
    if kind == "none":
        weights.pop("class_embedding.weight")
    assert found.keys() == weights.keys()
    for key, weight in weights.items():
        expected = gradient(weight)
        assert float((found[key] - expected).norm()) < 1e-4 * float(expected.norm()) + 1e-7, key


GOOD: dict[str, dict[str, Any]] = {
    "objective": {"name": "frame_prompt_diffusion"},
    "data": {"frames": 33, "clips": [1, 1]},
    "train": {"global_batch_size": 8},
}
BAD = [
    ({"data": {"frames": 32}}, "objective.prompts", "use shorter prompts, or data.frames=33"),
    ({"data": {"min_frames": 1}}, "data.min_frames", "use 2 or more"),
    ({"objective": {"prompts": [9, 1, 9]}}, "objective.prompts", "use [1, 9]"),
    ({"objective": {"prompts": []}}, "objective.prompts", "at least one entry"),
    ({"objective": {"prompts": [-1]}}, "objective.prompts", "at least 0"),
    ({"objective": {"chunk": 0}}, "objective.chunk", "at least 1"),
    ({"objective": {"prompt_noise": 1.0}}, "objective.prompt_noise", "below 1"),
    ({"sample": {"window": 40}}, "sample.window", "use 33"),
    ({"sample": {"window": 8}}, "sample.window", "use 9 or more"),
    ({"sample": {"history": 26}}, "sample.history", "use 25"),
    ({"sample": {"history": 20, "window": 20}}, "sample.history", "use 12, or a larger sample.window"),
    ({"sample": {"guidance": 2.0}}, "sample.guidance", "set condition.kind"),
    ({"sample": {"guidance_schedule": [[0.5, 2.0]]}}, "sample.guidance_schedule", "set condition.kind"),
    ({"sample": {"window_end": "drop"}}, "sample.window_end", "be one of recompute, keep"),
    ({"sample": {"window_end": "keep", "cache": False}}, "sample.window_end", "use sample.cache=true"),
    (
        {"sample": {"window_end": "keep"}, "model": {"positions": "learned", "max_position_embeddings": 9999}},
        "sample.window_end",
        "model.positions=rope",
    ),
    ({"sample": {"temperature": 0.5}}, "sample.temperature", "makes no use of it"),
    ({"objective": {"name": "next_clip_diffusion"}, "sample": {"window_end": "keep"}}, "sample.window_end", "remove"),
    (
        {"condition": {"kind": "class", "classes": ["a"], "frames": [1, 2]}},
        "condition.frames",
        "makes nothing of it",
    ),
]


def problems_of(changes: dict[str, dict[str, Any]]) -> list[str]:
    values = {name: {**GOOD.get(name, {}), **changes.get(name, {})} for name in GOOD.keys() | changes.keys()}
    return find_problems(config_from_dict(values), None)


@pytest.mark.parametrize(("changes", "option", "fix"), BAD, ids=[f"{option}: {fix}" for _, option, fix in BAD])
def test_a_mistake_is_one_line(changes: dict[str, dict[str, Any]], option: str, fix: str) -> None:
    (line,) = problems_of(changes)
    assert line.startswith(f"{option} = ") and fix in line


def test_what_is_right_passes() -> None:
    assert problems_of({}) == []
    sample = {"guidance": 7.5, "window_end": "keep"}
    assert problems_of({"condition": {"kind": "class", "classes": ["a"]}, "sample": sample}) == []
    assert problems_of({"objective": {"prompts": [0, 25]}, "sample": {"window": 33, "history": 25}}) == []


def test_work_of_a_run_has_its_options() -> None:
    config = config_from_dict(GOOD)
    model, work = config.model, work_of(config, expected_geometry(config.codec))
    assert (work.frames, work.prompts, work.chunk) == (33, (1, 9, 17, 25), 8)
    # 6 FLOPs a weight and token; 8 of 21 frames on average are read by the head.
    patch = 4 * expected_geometry(config.codec).channels
    ends = (patch + 1) * model.hidden_size + (model.hidden_size + 1) * patch * 8 / 21
    assert work.weights[0] == pytest.approx(6 * (model.num_layers * layer_parameters(model) + ends))
    assert work.weights[1] == 12 * model.hidden_size * model.num_layers


def test_no_exported_folder_holds_its_network() -> None:
    with pytest.raises(UserError, match="frame_prompt_diffusion and objective.network = decoder, whose network no"):
        check_network(Path("run"), config_from_dict(GOOD))
    check_network(Path("run"), Config())
    check_network(Path("run"), replace(Config(), condition=CLASSES))
