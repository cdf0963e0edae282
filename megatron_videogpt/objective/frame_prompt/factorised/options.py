"""Options of the factorised network, `[objective.factorised]`, and the rules that it brings."""

from __future__ import annotations

from dataclasses import dataclass

from ....condition.folder import text_width
from ....config.problems import Report
from ....config.schema import Config, SampleConfig
from ....config.sections import option
from ....config.shrink import Shrinking, fewer
from ....config.toml import show
from ....model.factorised import NORM_EPSILON
from .variant import CAUSAL, CYCLIC, ENHANCEMENTS, FIXED, FULL, PARTIAL, Variant

DECODER, FACTORISED = "decoder", "factorised"
STEPS = 1000
"""Of the schedule of noise (`hub/common/ddpm.py`, which imports PyTorch)."""
SECTION = "objective.factorised"


@dataclass(frozen=True)
class FactorisedOptions:
    """The network of Ca2-VDM; the defaults are its released ones."""

    enhance: str = option(
        "prev_frames",
        "prompt frames that each frame attends by a layer of its own: none, the last enhance_frames of them "
        "(prev_frames) or the first (first_frame)",
        choices=ENHANCEMENTS,
    )
    enhance_frames: int = option(3, "prompt frames that prev_frames attends")
    mask_channel: bool = option(True, "whether the first layer's attention in time is told which frames are given")
    time: str = option(
        CAUSAL,
        "frames that attention in time sees: those up to a frame (causal), all (full), or all, but given frames those "
        "up to them (partial)",
        choices=(CAUSAL, FULL, PARTIAL),
    )
    positions: str = option(
        CYCLIC,
        "entry of the temporal table: a frame's number in the video, beginning anew after places frames (cyclic), or "
        "its number in the sequence (fixed)",
        choices=(CYCLIC, FIXED),
    )
    places: int = option(33, "entries of the temporal table: the longest prompt and its chunk")
    space_scale: float = option(1.0, "divides rows and columns of patches before their sines are taken")
    time_scale: float = option(1.0, "divides places in time before their sines are taken")
    prompt_step: int = option(
        100, "training gives the prompt the noise of this step of 1000, while its timestep stays 0; -1 for none"
    )
    sample_prompt_step: int = option(50, "the same when sampling; 0 for none")
    solver: str = option(
        "ddpm", "what makes a chunk of noise: ddpm (draws in every step) or ddim (does not)", choices=("ddpm", "ddim")
    )


def variant_of_run(config: Config) -> Variant:
    """The network that a run trains; UserError, one line, where nothing tells the width of its texts."""
    options = config.objective.factorised
    text = config.condition.kind == "text"
    return Variant(
        enhance=options.enhance,
        enhance_frames=options.enhance_frames if options.enhance == "prev_frames" else 0,
        mask_channel=options.mask_channel,
        time=options.time,
        positions=options.positions,
        places=options.places,
        space_scale=options.space_scale,
        time_scale=options.time_scale,
        text_width=text_width(config.condition) if text else 0,
        text_tokens=config.condition.text_tokens if text else 0,
    )


def differences(there: Config, here: Config) -> list[str]:
    """Which layers or tables one network has and the other has not, or has for something else.  What attention in time
    sees, and how many positions there are, may change.
    """
    old, new = there.objective.factorised, here.objective.factorised
    named = [(f"{SECTION}.{name}", getattr(old, name), getattr(new, name)) for name in ("enhance", "mask_channel")]
    named.append(("condition.kind", there.condition.kind, here.condition.kind))
    if there.condition.kind == here.condition.kind == "text":
        named.append(("condition.max_tokens", there.condition.text_tokens, here.condition.text_tokens))
    return [f"{name} is {show(one)} there and {show(other)} here" for name, one, other in named if one != other]


def shrink_options(small: Shrinking) -> None:
    """After prompts and chunk: places for them, and no more frames of the prompt than the shorter ones have."""
    old, new = small.was.objective, small.config.objective
    longest = max(new.prompts) + new.chunk
    places = fewer(old.factorised.places, longest, max(old.prompts) + old.chunk)
    small.set(f"{SECTION}.places", max(longest, places))
    longer = [length for length in new.prompts if length > 1]
    if longer:
        small.limit(f"{SECTION}.enhance_frames", min(longer))


def check_ranges(report: Report) -> None:
    """Of every option, whichever network is trained."""
    report.check_range("at least 1", lambda v: v >= 1, f"{SECTION}.enhance_frames {SECTION}.places")
    report.check_range("above 0", lambda v: v > 0, f"{SECTION}.space_scale {SECTION}.time_scale")
    report.check_range("from -1 to 999", lambda v: -1 <= v < STEPS, f"{SECTION}.prompt_step")
    report.check_range("from 0 to 999", lambda v: 0 <= v < STEPS, f"{SECTION}.sample_prompt_step")


def check_unused(report: Report) -> None:
    """Of the decoder, which knows none of these options."""
    if report.config.objective.factorised != FactorisedOptions():
        must = f"be {FACTORISED} where options of [{SECTION}] are set"
        report.add("objective.network", must, f"use {FACTORISED}, or remove them")


def check_factorised(report: Report) -> None:
    """Everything that only this network asks for."""
    _check_layers(report)
    _check_prompts(report)
    _check_sampling(report)
    config, condition = report.config, report.config.condition
    if report.sound("parallel.pipeline") and config.parallel.pipeline > 1:
        must = f"be 1 with objective.network = {FACTORISED}, whose timestep network feeds every layer"
        report.add("parallel.pipeline", must, "use parallel.tensor, parallel.context or more replicas")
    if report.sound("parallel.recompute") and config.parallel.recompute == "auto":
        must = f"be named with objective.network = {FACTORISED}, whose layers keep more than estimates of memory count"
        report.add("parallel.recompute", must, "use parallel.recompute=full where memory is short, else none")
    if report.sound("condition.kind") and (condition.kind == "class" or condition.kind == "text" and _ids(report)):
        must = f"be none, or text with an encoder that gives features, with objective.network = {FACTORISED}"
        report.add("condition.kind", must, "use condition.kind=text and condition.encoder=words or t5")
    if report.sound("objective.prompt_noise") and config.objective.prompt_noise:
        must = f"be 0 with objective.network = {FACTORISED}, whose prompt noise is of a step"
        report.add("objective.prompt_noise", must, f"use {SECTION}.prompt_step")


def _ids(report: Report) -> bool:
    return report.config.condition.encoder == "ids"


def _check_layers(report: Report) -> None:
    """The layers are of one kind, of which only sizes are free."""
    model = report.config.model
    fixed = {
        "norm": ("layer", "norms without weights"),
        "activation": ("gelu_tanh", "that activation"),
        "biases": (True, "biases everywhere"),
        "positions": ("none", "tables of its own for positions"),
        "norm_epsilon": (NORM_EPSILON, "that epsilon"),
        "dropout": (0.0, "no dropout"),
        "rope_scaling": ({}, "no rotary positions"),
    }
    for name, (value, why) in fixed.items():
        if report.sound(f"model.{name}") and getattr(model, name) != value:
            shown = str(value).lower() if isinstance(value, bool) else value
            must = f"be {shown} with objective.network = {FACTORISED}, which has {why}"
            report.add(f"model.{name}", must, f"use model.{name}={shown}")
    if report.sound("model.num_query_groups") and model.kv_heads != model.num_attention_heads:
        must = f"be 0 with objective.network = {FACTORISED}: every head has keys of its own"
        report.add("model.num_query_groups", must, "use 0")


def _check_prompts(report: Report) -> None:
    """Prompts against the temporal table and the enhancement."""
    config, options, prompts = report.config, report.config.objective.factorised, "objective.prompts"
    if not report.sound(prompts, "objective.chunk", f"{SECTION}.places", f"{SECTION}.enhance_frames"):
        return
    lengths, count = config.objective.prompts, options.enhance_frames
    longest = max(lengths) + config.objective.chunk
    if longest > options.places:
        must = f"be at least {longest}, the longest prompt of {prompts} and its chunk"
        report.add(f"{SECTION}.places", must, f"use {longest}, or shorter prompts")
    if options.enhance != "none" and 0 in lengths:
        must = f"be at least 1 with {SECTION}.enhance = {options.enhance}, which attends frames of the prompt"
        report.add(prompts, must, "leave out 0")
    short = [length for length in lengths if 1 < length < count]
    if options.enhance == "prev_frames" and short:
        must = f"be 1, or at least {SECTION}.enhance_frames = {count}: with {short[0]} the first counts several times"
        report.add(prompts, must, f"leave out {', '.join(map(str, short))}")


def _check_sampling(report: Report) -> None:
    """What its sampler does not go by, and chunks that are all of one length."""
    config, default = report.config, SampleConfig()
    sample, chunk, time = config.sample, config.objective.chunk, config.objective.factorised.time
    for name in ("guidance_schedule", "history_noise", "time_shift"):
        if report.sound(f"sample.{name}") and getattr(sample, name) != getattr(default, name):
            must = f"be left out with objective.network = {FACTORISED}"
            report.add(f"sample.{name}", must, f"noise of the prompt is {SECTION}.sample_prompt_step")
    if report.sound("sample.cache", f"{SECTION}.time") and sample.cache and time == FULL:
        must = f"be false with {SECTION}.time = {FULL}, where a frame's keys change with the frames behind it"
        report.add("sample.cache", must, "use sample.cache=false")
    if report.sound("sample.clips", "objective.chunk") and any(frames % chunk for frames in sample.clips):
        must = f"be multiples of objective.chunk = {chunk} with objective.network = {FACTORISED}"
        report.add("sample.clips", must, f"use [{chunk}]")
