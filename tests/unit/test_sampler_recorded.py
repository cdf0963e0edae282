"""The sampler against recorded chains."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from megatron_videogpt.config.schema import SampleConfig
from megatron_videogpt.hub.common.sampling_videogpt import sigmas

from .test_sampler import close, rollout

CASES = ("cfg3", "nocfg", "cfg15_window6", "cfg3_histnoise")


class Recorded:
    """One golden case: its tensors by clip, and a denoiser that gives back the recorded predictions in order."""

    def __init__(self, folder, name):
        document = json.loads((folder / "sampler.json").read_text())
        tensors = load_file(folder / "sampler.safetensors")
        self.case = next(case for case in document["cases"] if case["name"] == name)
        self.initial = tensors[self.case["tensors"]["initial_history"]["key"]]
        self.clips = [
            {part: tensors[entry["key"]] for part, entry in clip["tensors"].items()} for clip in self.case["clips"]
        ]
        self.calls = []

    @property
    def settings(self):
        case = self.case
        return SampleConfig(
            clips=tuple(case["gen_nums"]),
            window=case["max_frame_window"] or 10**6,
            steps=case["num_steps"],
            guidance=case["img_cfg_scale"],
            history_noise=case["history_noise_level"],
            time_shift=case["time_shifting_factor"],
        )

    def noise(self, video, clip, purpose, shape):
        recorded = self.clips[clip][f"{purpose}_noise"]
        assert tuple(recorded.shape) == shape
        return recorded

    def denoise(self, histories, zs, t, conditions):
        clip, step = divmod(len(self.calls), self.case["num_steps"])
        self.calls.append((histories, zs, t))
        recorded = self.clips[clip]
        replies = [recorded["x1_cond"][step]]
        if len(zs) == 2:
            assert len(histories[1]) == 0, "the unconditional branch has no history"
            replies.append(recorded["x1_uncond"][step])
        return replies


@pytest.mark.parametrize("name", CASES)
def test_rollout_follows_the_recorded_chain(reference, name):
    recorded = Recorded(reference, name)
    (result,) = rollout(recorded.denoise, [recorded.initial], recorded.settings, recorded.noise)

    steps = recorded.case["num_steps"]
    assert len(recorded.calls) == steps * len(recorded.clips)
    assert all(len(zs) == (2 if recorded.case["guidance"] else 1) for _, zs, _ in recorded.calls)
    for number, (histories, zs, t) in enumerate(recorded.calls):
        clip, step = divmod(number, steps)
        tensors = recorded.clips[clip]
        assert t == float(tensors["sigmas"][step])
        close(zs[0], tensors["z"][step])
        assert torch.equal(zs[-1], zs[0])
        close(histories[0], tensors["history"])
    close(result, torch.cat([clip["final"] for clip in recorded.clips]))


@pytest.mark.parametrize("name", CASES)
def test_sigmas_equal_the_recorded_ones_exactly(reference, name):
    recorded = Recorded(reference, name)
    for clip in recorded.clips:
        assert torch.equal(sigmas(recorded.case["num_steps"], recorded.case["time_shifting_factor"]), clip["sigmas"])
