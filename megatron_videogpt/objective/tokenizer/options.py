"""Options of tokenizer training.

The published paper gives the weights of two losses, the optimizer and the schedule, and says "PatchGAN"; everything
else here is this project's choice (docs/tokenizer.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from ...codec.geometry import FSQ_LEVELS, FSQ_STRIDES, PIXELS
from ...config.derived import frame_side
from ...config.problems import Report
from ...config.schema import Config
from ...config.sections import enter, option
from ...config.shrink import Shrinking, fewer

NAME = "tokenizer"
NO_FEATURES, PYRAMID, LPIPS = "none", "pyramid", "lpips"


@dataclass(frozen=True)
class TokenizerOptions:
    """What is learned."""

    name: str = option(
        NAME,
        "objective; this release has next_clip_diffusion, frame_prompt_diffusion, next_block_prediction and tokenizer",
    )
    width: int = option(128, "channels of the tokenizer at full resolution")
    groups: int = option(32, "groups of a norm; they divide width")
    units: int = option(4, "residual units of a stage")
    levels: tuple[int, ...] = option(FSQ_LEVELS, "levels of each latent channel; their product is the number of codes")
    l1: float = option(1.0, "weight of the mean absolute error of pixels in [0, 1]")
    l2: float = option(0.0, "weight of their mean squared error")
    feature: str = option(
        PYRAMID,
        "what pictures are compared by beside pixels: lpips (VGG-16, whose weights are in lpips_path), pyramid "
        "(differences between neighbouring pixels at several scales; needs no weights) or none",
        choices=(PYRAMID, LPIPS, NO_FEATURES),
    )
    feature_weight: float = option(0.1, "weight of that loss")
    lpips_path: str = option(
        "", "local folder with vgg16-397923af.pth (torchvision's) or vgg16.safetensors; for lpips only", path=True
    )
    adversarial: float = option(0.1, "weight of the adversarial loss; 0 trains without discriminators")
    adaptive: bool = option(
        True, "scale it so that both losses' gradients at the decoder's last layer are as large before it is weighted"
    )
    start: int = option(0, "optimizer steps before the discriminators learn and their loss counts")
    frame_width: int = option(64, "first channels of the discriminator of frames; 0 for none")
    clip_width: int = option(64, "first channels of the discriminator of clips; 0 for none")
    layers: int = option(3, "layers of a discriminator that halve its input")
    discriminator_lr: float = option(0.0, "peak learning rate of the discriminators; 0 takes optimizer.lr")
    decay: float = option(0.999, "decay per step of a moving average of the tokenizer; 0 keeps none")
    grey_start: bool = option(
        False, "whether the decoder begins with grey, not near black as the library's start has it: for short runs"
    )
    crop: int = option(0, "side in pixels of the piece of each clip that is learned from; 0 takes whole frames")
    moving: float = option(0.0, "share of these pieces that are taken where something moves")


def check_options(report: Report) -> None:
    """See `config.sections.Section`."""
    sizes = "objective.width objective.groups objective.units objective.layers"
    report.check_range("at least 1", lambda v: v >= 1, sizes)
    report.check_range("at least 2", lambda v: v >= 2, "objective.levels")
    rest = "l1 l2 feature_weight adversarial start discriminator_lr frame_width clip_width".split()
    report.check_range("at least 0", lambda v: v >= 0, " ".join(f"objective.{name}" for name in rest))
    report.check_range("at least 0 and below 1", lambda v: 0 <= v < 1, "objective.decay")
    report.check_range("from 0 to 1", lambda v: 0 <= v <= 1, "objective.moving")
    _check_losses(report)
    _check_around(report)
    _check_frames(report)


def _check_losses(report: Report) -> None:
    """Something is learned, by what is there."""
    options: TokenizerOptions = report.config.objective
    if report.sound("objective.width", "objective.groups") and options.width % options.groups:
        report.add("objective.groups", f"divide objective.width = {options.width}", "use a divisor")
    if report.sound("objective.l1", "objective.l2") and not options.l1 + options.l2:
        report.add("objective.l1", "be above 0 where objective.l2 is 0: pixels are compared", "use 1.0")
    has_path, wants = bool(options.lpips_path), options.feature == LPIPS
    if wants and not has_path:
        must = "name a local folder with VGG-16's weights where objective.feature = lpips (nothing is downloaded)"
        report.add("objective.lpips_path", must, "or use objective.feature=pyramid")
    elif has_path and not wants:
        report.add("objective.lpips_path", f"be empty with objective.feature = {options.feature}", "or use lpips")
    if options.adversarial and not options.frame_width + options.clip_width:
        must = "be 0 without discriminators (objective.frame_width and objective.clip_width are 0)"
        report.add("objective.adversarial", must, "use 0, or a width")


def _check_around(report: Report) -> None:
    """What other sections say must suit."""
    config: Config = report.config
    if config.codec.name != PIXELS and report.sound("codec.name"):
        must = f"be {PIXELS} with objective.name = {NAME}, which learns from frames"
        report.add("codec.name", must, f"use codec.name={PIXELS}, without codec.path")
    if config.model.patch_size != FSQ_STRIDES[0] and report.sound("model.patch_size"):
        must = f"be {FSQ_STRIDES[0]} with objective.name = {NAME}: a code stands for so many pixels a side"
        report.add("model.patch_size", must, f"use {FSQ_STRIDES[0]}; the rest of [model] is not built")
    if config.optimizer.ema_decay and report.sound("optimizer.ema_decay"):
        must = f"be 0 with objective.name = {NAME}, which keeps an average of its own"
        report.add("optimizer.ema_decay", must, "use objective.decay")


def _check_frames(report: Report) -> None:
    """Clips and pieces of them that the tokenizer divides."""
    data, options = report.config.data, report.config.objective
    stride = FSQ_STRIDES[1]
    if report.sound("data.frames") and (data.frames - 1) % stride:
        must = f"be 1 + {stride}n with objective.name = {NAME}"
        report.add("data.frames", must, f"use {1 + (data.frames - 1) // stride * stride}")
    if report.sound("data.min_frames", "data.frames") and data.min_frames not in (0, data.frames):
        must = f"be 0 with objective.name = {NAME}, whose clips all have data.frames"
        report.add("data.min_frames", must, "use 0: shorter videos are left out")
    if report.sound("objective.crop") and (options.crop < 0 or options.crop % FSQ_STRIDES[0]):
        report.add("objective.crop", f"be a multiple of {FSQ_STRIDES[0]}, or 0", "use for example 32")
    if options.moving and not options.crop and report.sound("objective.moving", "objective.crop"):
        report.add("objective.moving", "be 0 without objective.crop: whole frames have no place", "use 0, or a crop")


def shrink_options(small: Shrinking) -> None:
    """Thin networks, short clips, small pieces of them; discriminators learn from the second step on at the latest."""
    was, stride = small.was, FSQ_STRIDES[1]
    small.divide("objective.groups", 2)
    groups = small.config.objective.groups
    small.divide("objective.width", 8, groups)
    small.divide("objective.units")
    small.divide("objective.frame_width", 8)
    small.divide("objective.clip_width", 8)
    small.divide("objective.layers", 2)
    small.limit("objective.start", 1)
    small.frames(1 + fewer(was.data.frames - 1, 1, small.factor, stride, stride))
    side = frame_side(small.config), frame_side(was)
    small.set("objective.crop", fewer(was.objective.crop, *side, multiple=FSQ_STRIDES[0]))


# Data parallel alone: a tokenizer fits a device, and none of its layers is cut.
enter(
    "objective",
    NAME,
    TokenizerOptions,
    check_options,
    __package__,
    axes=frozenset(),
    sampling=frozenset(),
    shrink=shrink_options,
)
