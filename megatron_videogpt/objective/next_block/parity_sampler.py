"""Comparison with recorded sampling of the published next block prediction: ids equal, logits with a cache and without,
guidance, stored noise, and from pixels to pixels (tests/golden/nbp/README.md names the source).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...config.schema import Config, SampleConfig
from ...hub.common.fsq_codes import codes_of, ids_of
from ...hub.common.fsq_tokenizer import FSQTokenizer
from ...hub.next_block.sampling_nextblock import UNKNOWN, Drawing, Drawn, Video, draw_tokens
from ..recorded import Cases, Report
from .network import Network, Place
from .objective import NextBlock
from .vocabulary import HYBRID, Vocabulary

LIMITS = {
    "sampled ids": 0.0,
    "sampler logits": 5e-5,
    "sampler logits without cache": 5e-5,
    "given codes": 0.0,
    "decoded video": 5e-5,
}
"""Largest error of each quantity."""


def check_sampler(
    cases: Cases,
    case: dict[str, Any],
    model: Any,
    config: Config,
    objective: NextBlock,
    tokenizer: Callable[[str], FSQTokenizer],
    report: Report,
) -> None:
    """One recorded case, with a cache and without (README section 7)."""
    held = {name: cases.get(case, name) for name in case["tensors"]}
    vocabulary, batch = objective.vocabulary, len(held["sampled_ids"])
    total = case["given_tokens"] + held["sampled_ids"].shape[1]
    hybrid = vocabulary.layout == HYBRID
    block = vocabulary.block
    place = Place(case["prefix"], False, case["prefix"] + total + (0 if hybrid else -block))
    for cache in (True, False):
        chosen = replace(config, sample=SampleConfig(cache=cache))
        network = Network([model], chosen, torch.device("cpu"), vocabulary, [place] * batch)
        videos = [_video(case, held, vocabulary, total, number) for number in range(batch)]
        starts = torch.stack([video.input() for video in videos])
        report.differing("sampled ids", starts, held["start_ids"], f"{case['name']} (start)")
        steps = _sampled(case, held, network, videos)
        _compare(case, held, videos, steps, report, cache)
    if "tokenizer" in case:
        _compare_pixels(case, held, videos, tokenizer(case["tokenizer"]), vocabulary, report)


def _video(case: dict[str, Any], held: dict[str, Tensor], vocabulary: Vocabulary, total: int, number: int) -> Video:
    tokens = torch.full((total,), UNKNOWN)
    if case["given_tokens"]:
        tokens[: case["given_tokens"]] = held["given_codes"][number] + vocabulary.code_offset
    condition = held["condition"][number].reshape(-1) if "condition" in held else torch.zeros(0).long()
    return Video(condition + vocabulary.condition_offset, tokens, vocabulary.block, vocabulary.layout == HYBRID)


def _sampled(case: dict[str, Any], held: dict[str, Tensor], network: Network, videos: list[Video]) -> list[list[Drawn]]:
    """What every step drew, by the stored noise where the case has some."""
    greedy = case["decode"] == "greedy"
    how = Drawing(
        0.0 if greedy else case["temperature"],
        case["top_k"] or 0,
        1.0 if case["top_p"] is None else case["top_p"],
        case["cfg_ratio"] or 0.0,
        bool(case["scale_cfg"]),
    )
    steps: list[list[Drawn]] = []

    def noise(video: int, place: int, count: int) -> Tensor:
        start = place - case["given_tokens"]
        return held["exp_noise"][video, start : start + count]

    draw_tokens(network, videos, how, None if greedy else noise, steps.append)
    return steps


def _compare(
    case: dict[str, Any],
    held: dict[str, Tensor],
    videos: list[Video],
    steps: list[list[Drawn]],
    report: Report,
    cache: bool,
) -> None:
    name, quantity = case["name"], "sampler logits" if cache else "sampler logits without cache"
    report.differing("sampled ids", torch.tensor([len(step[0].ids) for step in steps]),
                     torch.tensor(case["tokens_per_step"]), f"{name} (tokens per step)")  # fmt: skip
    ids = torch.stack([video.tokens[case["given_tokens"] :] for video in videos])
    report.differing("sampled ids", ids, held["sampled_ids"], name)
    logits = torch.stack([torch.cat([step[number].logits for step in steps]) for number in range(len(videos))])
    recorded = held["logits_nocache" if not cache and "logits_nocache" in held else "logits"]
    report.compare(quantity, logits, recorded, name)
    if "logits_uncond" in held:
        without = torch.stack([torch.cat([_without(step[number]) for step in steps]) for number in range(len(videos))])
        report.compare(quantity, without, held["logits_uncond"], f"{name} (unconditional)")


def _without(drawn: Drawn) -> Tensor:
    assert drawn.without is not None
    return drawn.without


def _compare_pixels(
    case: dict[str, Any],
    held: dict[str, Tensor],
    videos: list[Video],
    tokenizer: FSQTokenizer,
    vocabulary: Vocabulary,
    report: Report,
) -> None:
    """A video to the codes that were given, and what was sampled to a video."""
    levels = tokenizer.shape.levels
    with torch.no_grad():
        codes = ids_of(tokenizer.to_codes(held["video"]), levels)
        report.differing("given codes", codes, held["codes"], case["name"])
        drawn = torch.stack([video.tokens for video in videos]) - vocabulary.code_offset
        drawn = drawn.clamp(0, vocabulary.codes - 1)
        decoded = tokenizer.to_video(codes_of(drawn.view(held["codes"].shape), levels)).clamp(0, 1)
    given = case["given_tokens"]
    report.differing("sampled ids", drawn[:, given:], held["sampled_codes"], f"{case['name']} (codes)")
    if "decoded" in held:
        report.compare("decoded video", decoded, held["decoded"], case["name"])
