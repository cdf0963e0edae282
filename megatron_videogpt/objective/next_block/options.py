"""Options of next block prediction."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

from ...codec.geometry import FSQ, FSQ_NAMES, TINY_FSQ, expected_geometry
from ...config.derived import frame_side
from ...config.problems import Report
from ...config.schedules import enter_schedule
from ...config.schema import Config, SampleConfig
from ...config.sections import enter, option
from ...config.shrink import Shrinking, fewer
from ...errors import UserError
from ...model.parameters import padded_words
from .schedule import nbp_cosine
from .vocabulary import GIVEN, HYBRID, LAYOUTS, UNCONDITIONAL, vocabulary_of

NAME = "next_block_prediction"


@dataclass(frozen=True)
class NextBlockOptions:
    """What is learned."""

    name: str = option(
        NAME,
        "objective; this release has next_clip_diffusion, frame_prompt_diffusion, next_block_prediction and tokenizer",
    )
    layout: str = option(
        UNCONDITIONAL,
        "of a video's tokens: unconditional (the first block is given), hybrid (begins with a token that is predicted "
        "alone, so that the whole video is generated) or given_first_block (a condition, and the first block given)",
        choices=LAYOUTS,
    )
    block: int = option(16, "tokens of a block, which are predicted at once; 1 is next token prediction")
    block_shape: tuple[int, ...] = option(
        (),
        "latent frames, rows and columns of a block, with block tokens in all, such as [2, 1, 8]; [] for runs of the "
        "raster order, the only blocks of the published code",
    )


def check_options(report: Report) -> None:
    """See `config.sections.Section`."""
    config, block, shape = report.config, "objective.block", "objective.block_shape"
    report.check_range("at least 1", lambda v: v >= 1, f"{block} {shape}")
    if config.codec.name not in FSQ_NAMES and report.sound("codec.name"):
        must = f"be {FSQ} or {TINY_FSQ} with objective.name = {NAME}, which predicts codes"
        fix = f"use codec.name={FSQ} and the folder of a tokenizer as codec.path, or {TINY_FSQ}, which is shipped"
        report.add("codec.name", must, fix)
        return
    if config.model.patch_size != 1 and report.sound("model.patch_size"):
        report.add("model.patch_size", f"be 1 with objective.name = {NAME}, whose tokens are codes", "use 1")
        report.broken.add("model.patch_size")
    _check_condition(report)
    _check_sampling(report)
    sizes = options_shape(config.objective.block_shape)
    if report.sound(block, shape) and sizes and math.prod(sizes) != config.objective.block:
        must = f"have three numbers whose product is {block} = {config.objective.block}"
        report.add(shape, must, f"use {block}={math.prod(sizes)}, or [] for runs of the raster order")
        report.broken.add(shape)
    try:
        words = vocabulary_of(config).size
    except UserError:
        return  # The codec's own rules say so.
    _check_split(report, words)
    if report.sound(block, shape, "model.patch_size"):
        _check_blocks(report)


def differences(there: Config, here: Config) -> list[str]:
    """See `objective.build`: an id that has another meaning.  Codes and conditions are compared elsewhere."""
    kinds = there.condition.kind, here.condition.kind
    if kinds[0] != kinds[1]:
        return [f"condition.kind is {kinds[0]} there and {kinds[1]} here, whose ids stand before those of the codes"]
    old, new = (vocabulary_of(replace(one, codec=here.codec, condition=here.condition)) for one in (there, here))
    if (old.code_offset, old.size) == (new.code_offset, new.size):
        return []
    named = (("layout", old.layout, new.layout), ("block", old.block, new.block))
    changed = [f"objective.{name} is {one} there and {other} here" for name, one, other in named if one != other]
    return [f"{' and '.join(changed)}, which moves the ids of the codes"]


def _check_sampling(report: Report) -> None:
    """Guidance has something to be guided by; a window is not longer than what was learned."""
    config = report.config
    if config.sample.guidance_ratio and config.condition.kind == "none" and report.sound("sample.guidance_ratio"):
        report.add("sample.guidance_ratio", "be 0 without a condition to follow", "use 0, or set condition.kind")
    chosen = config.sample.window != SampleConfig().window
    if report.sound("sample.window", "data.frames") and chosen and config.sample.window > config.data.frames:
        must = f"be at most data.frames = {config.data.frames}, the latent frames that the model is trained with"
        report.add("sample.window", must, f"use {config.data.frames}")


def options_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A block's shape, (0,) where it has not three numbers, () of runs of the raster order."""
    return shape if len(shape) in (0, 3) else (0,)


def _check_condition(report: Report) -> None:
    """A condition has ids in two of the layouts only."""
    kind, layout = report.config.condition.kind, report.config.objective.layout
    if not report.sound("objective.layout", "condition.kind"):
        return
    if kind != "none" and layout == UNCONDITIONAL:
        report.add("objective.layout", f"be hybrid or given_first_block with condition.kind = {kind}", "use hybrid")
    if kind == "none" and layout == GIVEN:
        report.add("objective.layout", "be unconditional or hybrid without a condition", "use unconditional")


def _check_split(report: Report, words: int) -> None:
    """Every tensor parallel rank has a part of the vocabulary."""
    tensor, padded = report.config.parallel.tensor, padded_words(words)
    if report.sound("parallel.tensor") and (padded % tensor or (tensor - 1) * (padded // tensor) >= words):
        must = f"divide the vocabulary of {words} ids (padded to {padded}) so that every rank has some"
        report.add("parallel.tensor", must, "use a smaller power of two")


def _unit(config: Config) -> int:
    """Latents that the sides of every video are multiples of."""
    side = frame_side(config) if config.data.source == "physics" else config.data.size_multiple
    return side // expected_geometry(config.codec).spatial_stride


def _counts(config: Config) -> range:
    """Latent frames that a video may have."""
    data = config.data
    return range(min(data.frames, data.min_frames or data.frames), data.frames + 1)


def _divides(options: NextBlockOptions, unit: int, counts: range) -> bool:
    """Whether every video is whole blocks."""
    if options.block_shape:
        frames, rows, columns = options.block_shape
        return not (any(n % frames for n in counts) or unit % rows or unit % columns)
    return not any(n * unit * unit % options.block for n in counts)


def _leaves_one(options: NextBlockOptions, unit: int, counts: range) -> bool:
    """Whether there is a block to predict in every video."""
    return options.layout == HYBRID or counts[0] * unit * unit > options.block


def _check_blocks(report: Report) -> None:
    """Every video that training can meet is whole blocks, at least two where the first is given."""
    config, options = report.config, report.config.objective
    data, stride = config.data, expected_geometry(config.codec).spatial_stride
    name = "data.physics.size" if data.source == "physics" else "data.size_multiple"
    if not report.sound(name, "data.frames", "data.min_frames", "data.longest_side"):
        return
    unit, counts = _unit(config), _counts(config)
    if unit < 1:
        return  # The codec's own rules say so.
    fewest = counts[0]
    if not _divides(options, unit, counts):
        sizes = f"{unit}x{unit} latents" if data.source == "physics" else f"sides of multiples of {unit} latents"
        many = f"{fewest} to {data.frames}" if fewest < data.frames else f"{data.frames}"
        option_name = "objective.block_shape" if options.block_shape else "objective.block"
        report.add(
            option_name,
            f"divide every video of {many} latent frames with {sizes} ({name} / {stride})",
            f"use another block, or another {name} or data.frames",
        )
    elif not _leaves_one(options, unit, counts):
        must = f"leave a second block of the {fewest * unit * unit} tokens of a video"
        report.add("objective.block", must, "use a smaller block, or objective.layout=hybrid")


def shrink_options(small: Shrinking) -> None:
    """Blocks of as many rows of tokens as before, or of the same part of a row, that divide the small videos."""
    was, unit = small.was.objective, _unit(small.config)
    if unit < 1 or _unit(small.was) < 1:
        return  # The codec's own rules say so.
    before, counts = _unit(small.was), _counts(small.config)
    small.limit("sample.window", small.config.data.frames)

    def fits(**block: Any) -> bool:
        options = replace(was, **block)
        return _divides(options, unit, counts) and _leaves_one(options, unit, counts)

    if was.block_shape:
        frames, *sides = was.block_shape
        wanted = (frames, *(fewer(side, unit, before) for side in sides))
        shapes = itertools.product(*(range(most, 0, -1) for most in wanted))
        shape = next(shape for shape in shapes if fits(block_shape=shape, block=math.prod(shape)))
        small.set("objective.block_shape", shape)
        small.set("objective.block", math.prod(shape))
        return
    whole, left = divmod(was.block, before * before)
    rows, part = divmod(left, before)
    wanted = whole * unit * unit + fewer(rows, unit, before) * unit + fewer(part, unit, before)
    blocks = (block for block in range(wanted, 0, -1) if fits(block=block))
    small.set("objective.block", next(blocks))


enter_schedule("nbp_cosine", nbp_cosine)
SAMPLING = frozenset({"temperature", "top_k", "top_p", "guidance_ratio", "guidance_grows"})
enter(
    "objective",
    NAME,
    NextBlockOptions,
    check_options,
    __package__,
    conditions=frozenset({"class", "ids"}),
    sampling=SAMPLING,
    shrink=shrink_options,
)
