"""The sample command's options, and the settings that they leave of the model's own."""

from __future__ import annotations

import argparse
from dataclasses import replace

from ..config import paths
from ..config.check import find_problems
from ..config.load import ConfigError
from ..config.schema import Config, SampleConfig, TrainConfig
from ..config.schema_data import SCENES
from ..config.sections import not_sampled_with

FORMATS = {"mp4": ".mp4", "gif": ".gif", "png": ".png", "latents": ".safetensors"}
"""What can be asked for, and how its file name ends."""
DESCRIPTION = """\
Continue videos, images and physics scenes with a trained model, clip after clip, or make videos of a class or a text.

The model is given some frames (the history; an image is a history of one; none at all for --class or --text alone), and
generates the clips that you ask for one after another; finished clips become history.  For each input it writes
NAME.mp4 (given frames outlined in blue, generated ones in orange, ground truth at the left where there is some),
NAME.png (all frames side by side) and NAME.json (settings, versions and errors) into OUT, or OUT.mp4, OUT.png, OUT.json
for a single one. What you do not say comes from the configuration that the model was trained with.
"""

EXAMPLES = """\
examples:
  16 new frames after a video's frames but its last 16, which serve as ground truth:
    python -m megatron_videogpt sample --checkpoint runs/quickstart in.mp4 --output out.mp4 --clips 8,8
  the first 8 frames of every fourth frame, then 24 new ones, stronger guidance by the history:
    python -m megatron_videogpt sample --checkpoint runs/mine in.mp4 --output out.mp4 --history 8 --interval 4 \\
        --clips 24 --guidance 3.0
  a folder of videos and images and two scenes of the built-in physics generator, with errors against what really
  followed:
    python -m megatron_videogpt sample --checkpoint runs/quickstart clips/ --scene bounce/3 --scene fall/1 --output \\
        out/ --compare
  a video of each of two classes, from nothing, by a model that was trained with condition.kind = "class":
    python -m megatron_videogpt sample --checkpoint runs/classes --class bounce/left --class roll --output out/
  a video for each line of a file, and one that continues a photo as a text says:
    python -m megatron_videogpt sample --checkpoint runs/texts --text captions.txt --output out/
    python -m megatron_videogpt sample --checkpoint runs/texts photo.jpg --text "a dog runs off" --output dog.mp4
  240 frames from a picture and a Hugging Face folder, the model shared by two devices:
    torchrun --nproc_per_node=2 -m megatron_videogpt sample --checkpoint hub/videogpt photo.jpg --output long.mp4 \\
        --clips 8x30
"""

SETTINGS = tuple(
    """clips history window window_end steps guidance guidance_schedule history_noise time_shift temperature top_k top_p
    guidance_ratio guidance_grows cache cache_dtype cache_offload""".split()
)


def _clips(text: str) -> tuple[int, ...]:
    """`8,8` -> (8, 8); `8x3,4` -> (8, 8, 8, 4)."""
    clips: list[int] = []
    try:
        for part in text.split(","):
            frames, _, times = part.partition("x")
            clips += [int(frames)] * (int(times) if times else 1)
    except ValueError:
        clips = []
    if not clips:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected frames per clip, separated by commas, for example 8,8, or 8x30 for 30 clips of 8"
        )
    return tuple(clips)


def _scene(text: str) -> tuple[str, int]:
    """`bounce/3` -> ("bounce", 3)."""
    kind, _, number = text.partition("/")
    if kind not in SCENES or not number.isdecimal():
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected KIND/NUMBER, for example bounce/3; kinds: {', '.join(SCENES)}"
        )
    return kind, int(number)


def _schedule(text: str) -> tuple[tuple[float, float], ...]:
    """`0.2:5,0.8:1` -> ((0.2, 5.0), (0.8, 1.0)); `none` -> ()."""
    if text == "none":
        return ()
    try:
        pairs = [part.split(":") for part in text.split(",")]
        return tuple((float(start), float(scale)) for start, scale in pairs)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected noise level:scale, separated by commas, for example 0.2:5,0.8:1, or none"
        ) from None


def _formats(text: str) -> tuple[str, ...]:
    """`mp4,gif` -> ("mp4", "gif")."""
    formats = tuple(dict.fromkeys(text.split(",")))
    if not set(formats) <= set(FORMATS):
        raise argparse.ArgumentTypeError(f"{text!r}: expected some of {', '.join(FORMATS)}, separated by commas")
    return formats


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options and help."""
    parser.description, parser.epilog, parser.formatter_class = (
        DESCRIPTION,
        EXAMPLES,
        argparse.RawDescriptionHelpFormatter,
    )
    inputs = "videos of any format that PyAV reads, images, and folders of them, which are searched recursively"
    parser.add_argument("inputs", nargs="*", default=[], type=paths.path, metavar="INPUT", help=inputs)
    parser.add_argument(
        "--video",
        action="append",
        default=[],
        type=paths.path,
        metavar="FILE",
        help="the same as INPUT; may be given several times",
    )
    scene = f"a physics scene instead of a video, may be given several times; kinds: {', '.join(SCENES)}"
    parser.add_argument("--scene", action="append", default=[], type=_scene, metavar="KIND/NUMBER", help=scene)
    label = (
        "a class that the video is to show, by its name in condition.classes; several times for as many videos from "
        "nothing, once for all inputs"
    )
    parser.add_argument("--class", dest="labels", action="append", default=[], metavar="NAME", help=label)
    text = "the same with a text; a file that ends in .txt stands for its lines"
    parser.add_argument("--text", dest="texts", action="append", default=[], metavar="TEXT", help=text)
    parser.add_argument(
        "--output",
        required=True,
        type=paths.path,
        metavar="OUT",
        help="a folder; for a single input also OUT.mp4, and the others beside it",
    )
    formats = (
        "what to write, of mp4, gif, png (contact sheet) and latents (safetensors); a JSON report comes always "
        "(default: mp4,png)"
    )
    parser.add_argument("--formats", type=_formats, default=("mp4", "png"), metavar="A,B,...", help=formats)
    compare = "measure PSNR, SSIM and LPIPS against the true continuation, frame by frame: a JSON file and a plot"
    parser.add_argument("--compare", action="store_true", help=compare)
    parser.add_argument(
        "--batch",
        type=int,
        default=4,
        metavar="N",
        help="inputs that share a row: more are faster and take more memory (default: 4)",
    )
    _add_model(parser.add_argument_group("model"))
    add_settings(parser.add_argument_group("sampling (default: as the model's configuration has it)"))


def _add_model(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--checkpoint",
        required=True,
        type=paths.path,
        metavar="RUN",
        help="folder of a training run (its train.output), or a Hugging Face folder",
    )
    group.add_argument(
        "--step", type=int, metavar="N", help="use the run's checkpoint of this step (default: the newest)"
    )
    group.add_argument(
        "--platform",
        choices=TrainConfig.__dataclass_fields__["platform"].metadata["choices"],
        default="auto",
        help="what computes; auto is an NPU or GPU where there is one that starts, else the CPU (default: %(default)s)",
    )
    encoder = "folder of the text encoder, where it is not that of the model's configuration"
    group.add_argument("--text-encoder", type=paths.place, default="", metavar="FOLDER", help=encoder)
    weights = "trained, or average: their moving average, which a run keeps with optimizer.ema_decay (default: trained)"
    group.add_argument("--weights", choices=("trained", "average"), default="trained", help=weights)


def add_settings(group: argparse._ArgumentGroup) -> None:
    """The options that `resolve` reads, and the seed."""
    clips = (
        "frames of each generated clip, in order (latent frames, where the codec joins frames); 8x30 is 30 clips of 8"
    )
    group.add_argument("--clips", type=_clips, metavar="N,N,...", help=clips)
    history = (
        "frames given, from the video's start (default: those before its last sum(clips), or the last ones "
        "of a shorter video: as many as sample.history of "
        "the model's configuration says and the window holds beside the first clip)"
    )
    group.add_argument("--history", type=int, metavar="N", help=history)
    group.add_argument(
        "--interval", type=int, metavar="N", help="use every N-th frame (default: the smallest interval of training)"
    )
    group.add_argument(
        "--window", type=int, metavar="N", help="most frames the model sees at once, history and clip together"
    )
    end = "of models with frame prompts, when the window moves: compute what is left again, or keep it, which is faster"
    group.add_argument("--window-end", choices=("recompute", "keep"), help=end)
    group.add_argument("--steps", type=int, metavar="N", help="denoising steps per clip: more is slower and finer")
    group.add_argument(
        "--guidance",
        type=float,
        metavar="X",
        help="how strongly to follow history, class and text; 1 turns guidance off and is faster",
    )
    schedule = (
        "other guidance from noise level T on (0 noise, 1 data): 0.2:5,0.8:1 guides by 5 from 0.2 and not at all "
        "from 0.8; none: the same throughout"
    )
    group.add_argument("--guidance-schedule", type=_schedule, metavar="T:X,T:X,...", help=schedule)
    noise = (
        "noise mixed into the history from the second clip on (into all of a frame prompt), in [0, 1), against drift"
    )
    group.add_argument("--history-noise", type=float, metavar="X", help=noise)
    group.add_argument("--time-shift", type=float, metavar="X", help="above 1 spends more of the steps on high noise")
    _add_drawing(group)
    group.add_argument(
        "--seed", type=int, default=0, metavar="N", help="another seed, another continuation (default: 0)"
    )
    group.add_argument(
        "--no-cache",
        dest="cache",
        action="store_false",
        default=None,
        help="compute the history again at every step: slower, same result",
    )
    group.add_argument(
        "--cache-dtype",
        choices=("auto", "fp32", "bf16", "fp16"),
        help="dtype of the cache; auto is that of the weights",
    )
    group.add_argument(
        "--cache-offload",
        action="store_true",
        default=None,
        help="keep the cache in host memory, for windows that do not fit the device",
    )


def _add_drawing(group: argparse._ArgumentGroup) -> None:
    """Of models that predict tokens."""
    temperature = "of models that draw tokens: below 1 likelier ones, 0 always the likeliest"
    group.add_argument("--temperature", type=float, metavar="X", help=temperature)
    group.add_argument("--top-k", type=int, metavar="N", help="draw from the N likeliest tokens; 0 from all of them")
    top_p = "and of these from the likeliest that have a share X of the probability together; needs --top-k"
    group.add_argument("--top-p", type=float, metavar="X", help=top_p)
    ratio = "how strongly tokens follow the class or text: (1 + X) * logits - X * logits without it; 0 turns it off"
    group.add_argument("--guidance-ratio", type=float, metavar="X", help=ratio)
    grows = "multiply --guidance-ratio by the number of the step, from 0 on"
    group.add_argument("--guidance-grows", action="store_true", default=None, help=grows)


def resolve(args: argparse.Namespace, config: Config) -> tuple[SampleConfig, int]:
    """The model's sampling settings with the command's on top, and the frame interval; raises `ConfigError` with all
    problems.
    """
    given = {name: getattr(args, name) for name in SETTINGS if getattr(args, name) is not None}
    settings = replace(config.sample, **given)
    interval = config.data.frame_interval[0] if args.interval is None else args.interval
    problems = _unused(args, config)
    if not problems:
        changed = replace(config, sample=settings)
        asked = [f"sample.{name}" for name in given]
        problems += [line for line in find_problems(changed, None, asked=asked) if line.startswith("sample.")]
    if interval < 1:
        problems.append(f"--interval {interval}: must be at least 1 (1 uses every frame)")
    if args.history is not None and args.history < 1:
        problems.append(f"--history {args.history}: must be at least 1 (there must be something to continue)")
    if not problems:
        problems += _without_effect(args, settings)
    if problems:
        raise ConfigError(problems)
    return settings, interval


def _unused(args: argparse.Namespace, config: Config) -> list[str]:
    """What this kind of model makes no use of."""
    names = [name for name in SETTINGS if getattr(args, name) is not None]
    objective, useless = config.objective.name, not_sampled_with(config.objective.name)
    return [
        f"--{name.replace('_', '-')}: a model of objective.name = {objective} makes no use of it; leave it out"
        for name in names
        if name in useless
    ]


def _without_effect(args: argparse.Namespace, settings: SampleConfig) -> list[str]:
    """What the command asks for and other settings leave no room for."""
    found = []
    if args.guidance is not None and settings.guidance_schedule and settings.guidance_schedule[0][0] <= 0:
        shown = ",".join(f"{start:g}:{scale:g}" for start, scale in settings.guidance_schedule)
        fix = "give --guidance-schedule too, or none for it"
        found.append(f"--guidance {args.guidance:g}: the schedule {shown} holds from 0 on and overrides it; {fix}")
    if args.cache is False and (args.cache_dtype is not None or args.cache_offload):
        found.append("--no-cache: leaves no cache for --cache-dtype or --cache-offload; leave out one or the other")
    return found
