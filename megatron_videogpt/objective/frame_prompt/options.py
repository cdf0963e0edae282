"""Options of frame as prompt."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...config.problems import Report
from ...config.schema import Config
from ...config.sections import enter, option
from ...config.shrink import Shrinking, fewer
from .factorised import options as factorised
from .factorised.options import DECODER, FACTORISED, FactorisedOptions, check_factorised, check_ranges, check_unused

NAME = "frame_prompt_diffusion"
UNCACHED = "be recompute with sample.cache = false, which keeps nothing"
"""What `sample.window_end` must, said by the check and by both samplers."""


@dataclass(frozen=True)
class FramePromptOptions:
    """What is learned."""

    name: str = option(
        NAME,
        "objective; this release has next_clip_diffusion, frame_prompt_diffusion, next_block_prediction and tokenizer",
    )
    network: str = option(
        DECODER,
        "what denoises: decoder (the backbone, which predicts clean latents) or factorised (attention in space and in "
        "time by turns, which predicts noise and its variance: Ca2-VDM's)",
        choices=(DECODER, FACTORISED),
    )
    prompts: tuple[int, ...] = option(
        (1, 9, 17, 25),
        "latent frames of the prompt, one length of these for each sample, in ascending order; 0 among them learns "
        "to begin from nothing",
    )
    chunk: int = option(8, "latent frames behind the prompt, which are denoised together")
    prompt_noise: float = option(
        0.0,
        "share of noise in a prompt's frames, in [0, 1), while their timestep stays the clean one (about 0.25 has the "
        "signal to noise of the published step 100)",
    )
    factorised: FactorisedOptions = field(default_factory=FactorisedOptions)


def longest_window(config: Config) -> int:
    """Most latent frames that the model is trained to see at once."""
    return int(max(config.objective.prompts) + config.objective.chunk)


def differences(there: Config, here: Config) -> list[str]:
    """See `objective.build`: another network."""
    old, new = there.objective.network, here.objective.network
    if old != new:
        return [f"objective.network is {old} there and {new} here, which have no weights in common"]
    return factorised.differences(there, here) if new == FACTORISED else []


def check_options(report: Report) -> None:
    """See `config.sections.Section`."""
    prompts, chunk = "objective.prompts", "objective.chunk"
    report.check_range("at least 0", lambda v: v >= 0, prompts)
    report.check_range("at least 1", lambda v: v >= 1, chunk)
    report.check_range("at least 0 and below 1", lambda v: 0 <= v < 1, "objective.prompt_noise")
    check_ranges(report)
    if report.sound("objective.network"):
        (check_factorised if report.config.objective.network == FACTORISED else check_unused)(report)
    lengths = report.config.objective.prompts
    if report.sound(prompts) and list(lengths) != sorted(set(lengths)):
        report.add(prompts, "be in ascending order, each once", f"use {sorted(set(lengths))}")
        report.broken.add(prompts)
    if report.sound(prompts, chunk):
        _check_frames(report)
        _check_window(report)
    _check_guidance(report)
    _check_end(report)


def _check_frames(report: Report) -> None:
    """Every sample has a prompt of the list and at least a frame behind it; those of all frames have a whole chunk."""
    data, options = report.config.data, report.config.objective
    longest = longest_window(report.config)
    if report.sound("data.frames") and data.frames < longest:
        must = f"leave a chunk of objective.chunk = {options.chunk} frames in data.frames = {data.frames}"
        report.add("objective.prompts", must, f"use shorter prompts, or data.frames={longest}")
        report.broken.add("objective.prompts")
    shortest = min(options.prompts)
    if report.sound("data.min_frames") and 0 < data.min_frames <= shortest:
        must = f"be 0, or above the shortest prompt of objective.prompts = {list(options.prompts)}"
        report.add("data.min_frames", must, f"use {shortest + 1} or more")


def _check_window(report: Report) -> None:
    """What is sampled with is not longer than what is learned, and the prompt fits the window."""
    config, sample, window = report.config, report.config.sample, "sample.window"
    if not report.sound("objective.prompts", window, "sample.clips"):
        return
    longest = longest_window(config)
    if not report.left(window) and sample.window > longest:
        must = f"be at most {longest}, the longest prompt of objective.prompts and its chunk"
        report.add(window, must, f"use {longest}")
        return
    held, first = min(sample.window, longest), min(config.objective.chunk, max(sample.clips))
    if held <= first:
        report.add(window, f"hold a frame of the prompt beside a chunk of {first} frames", f"use {first + 1} or more")
        return
    room = held - min(config.objective.chunk, sample.clips[0])
    if report.sound("sample.history") and not report.left("sample.history") and sample.history > room:
        must = f"be at most {room}, the prompt that a window of {held} frames holds beside the first chunk"
        fix = f"use {room}" if held == longest else f"use {room}, or a larger {window}"
        report.add("sample.history", must, fix)


def _check_guidance(report: Report) -> None:
    """The branch without a condition has the prompt too, so that only a condition can be followed more strongly."""
    sample, names = report.config.sample, ("sample.guidance", "sample.guidance_schedule")
    if report.config.condition.kind != "none" or not report.sound("condition.kind", *names):
        return
    if sample.guidance != 1.0 and not report.left(names[0]):
        report.add(names[0], "be 1 without a condition to follow", "use 1, or set condition.kind")
    if sample.guidance_schedule:
        report.add(names[1], "be [] without a condition to follow", "use [], or set condition.kind")


def _check_end(report: Report) -> None:
    """Keys that are kept are those of a cache, at positions that go on."""
    sample, name = report.config.sample, "sample.window_end"
    if not report.sound(name) or sample.window_end != "keep":
        return
    if not sample.cache:
        report.add(name, UNCACHED, "use sample.cache=true")
    if report.sound("model.positions") and report.config.model.positions == "learned":
        must = "be recompute with model.positions = learned, whose table ends with the window"
        report.add(name, must, "use recompute, or model.positions=rope")


def shrink_options(small: Shrinking) -> None:
    """Prompts and chunks in the same proportion, and samples of whole ones."""
    was, sample = small.was, small.was.sample
    small.divide("objective.chunk", 2)
    chunk, before = small.config.objective.chunk, was.objective.chunk
    lengths = sorted({fewer(length, chunk, before) for length in was.objective.prompts})
    small.set("objective.prompts", tuple(lengths))
    longest = longest_window(small.config)
    small.frames(max(longest, fewer(was.data.frames, longest, longest_window(was))))
    small.set("sample.clips", tuple(max(1, frames * chunk // before) for frames in sample.clips[:2]))
    small.set("sample.window", min(longest, fewer(sample.window, longest, longest_window(was))))
    room = small.config.sample.window - min(chunk, small.config.sample.clips[0])
    small.set("sample.history", min(room, fewer(sample.history, longest, longest_window(was))))
    small.set("data.min_frames", was.data.min_frames and max(small.config.data.min_frames, lengths[0] + 1))
    if was.objective.network == FACTORISED:
        factorised.shrink_options(small)


enter(
    "objective",
    NAME,
    FramePromptOptions,
    check_options,
    __package__,
    shrink=shrink_options,
    conditions=frozenset({"class", "text"}),
    sampling=frozenset({"steps", "guidance", "guidance_schedule", "history_noise", "time_shift", "window_end"}),
)
