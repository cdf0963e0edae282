"""Options of `convert to-hf` and `convert from-hf`."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from ..config import paths

TO = """\
A run's checkpoint, of any layout, as a Hugging Face folder that transformers and diffusers open without this package.
"""

FROM = """\
A Hugging Face folder, the released Video-GPT, a published file of another objective, or a stock Phi-3-mini (its
backbone; the video parts start afresh) as a run in the layout you ask for.
"""

BOTH = """
Nothing gets lost on the way: tensors that the model has no use for, dtypes, tokenizer and VAE travel along
(docs/checkpoints.md).  Everything is read one tensor at a time, compared after it is written, and appears under its
name only when it is complete.
"""


TO_EXAMPLES = """\
examples:
  python -m megatron_videogpt convert to-hf runs/videogpt/stage4 --output videogpt-hf  # the newest checkpoint
  python -m megatron_videogpt convert to-hf runs/videogpt/stage4 --output ema-hf --weights average --dtype bf16
  python -m megatron_videogpt convert to-hf runs/videogpt/stage4 --output videogpt-hf --step 90000 --vae ../sdxl-vae \\
      --license mit --verify
  python -m megatron_videogpt convert to-hf runs/quickstart --output quickstart-hf --push me/quickstart  # a private one
"""


FROM_EXAMPLES = """\
examples:
  python -m megatron_videogpt convert from-hf Video-GPT --output runs/released --verify
  # written by four processes:
  python -m megatron_videogpt convert from-hf Video-GPT --output runs/released --tensor 2 --pipeline 2
  # the SkyTimelapse network of Ca2-VDM, started from Open-Sora 1.0:
  python -m megatron_videogpt convert from-hf OpenSora-v1-HQ-16x512x512.pth --output runs/start --start open-sora \\
      --published caption_channels=0 --vae sd-vae-ft-ema
  # a backbone to start training from:
  python -m megatron_videogpt convert from-hf Phi-3-mini-4k-instruct --output runs/phi3 --vae ../sdxl-vae

Sample from the run, or train from it:
  python -m megatron_videogpt train FILE.toml train.init_from=runs/released train.output=runs/mine
"""


def size(text: str) -> int:
    """``5GB`` -> bytes, in powers of ten."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMG]?)B?", text.strip(), re.IGNORECASE)
    if not found or not float(found[1]):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a size such as 5GB or 500MB")
    return int(float(found[1]) * {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}[found[2].upper()])


def ids(text: str) -> tuple[int, ...]:
    """``a,b,c`` -> three numbers."""
    if not re.fullmatch(r"\d{1,9},\d{1,9},\d{1,9}", text):
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected the ids of <|diffusion|>, <img> and </img>, such as 32011,32012,32013"
        )
    return tuple(map(int, text.split(",")))


def licence(text: str) -> str:
    """A name that fits into the model card's front matter."""
    if not re.fullmatch(r"[A-Za-z0-9.+-]{1,40}", text):
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected a licence's identifier on the Hub, such as mit or apache-2.0"
        )
    return text


def positive(text: str) -> int:
    """A whole number from 1."""
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 1")
    return int(text)


def folder(text: str) -> Path:
    """A folder that is there."""
    found = paths.path(text)
    if not found.is_dir():
        raise argparse.ArgumentTypeError(f"{found}: no such folder")
    return found


def add_to_hf(out: argparse.ArgumentParser) -> None:
    """Options and help of `convert to-hf`."""
    out.description, out.epilog = TO + BOTH, TO_EXAMPLES
    _of_to_hf(out)
    _of_both(out, "Hugging Face folder")


def add_from_hf(back: argparse.ArgumentParser) -> None:
    """Options and help of `convert from-hf`."""
    back.description, back.epilog = FROM + BOTH, FROM_EXAMPLES
    _of_from_hf(back)
    _of_both(back, "run")


def _of_to_hf(out: argparse.ArgumentParser) -> None:
    out.add_argument("source", type=paths.path, metavar="RUN", help="folder of a training run (its train.output)")
    out.add_argument("--step", type=int, metavar="N", help="the checkpoint of this step (default: the newest)")
    out.add_argument(
        "--weights",
        choices=("trained", "average"),
        default="trained",
        help="the weights, or their moving average (optimizer.ema_decay)",
    )
    out.add_argument(
        "--max-shard-size",
        type=size,
        default=size("5GB"),
        metavar="SIZE",
        help="largest file of weights, beyond which there are several (5GB)",
    )
    out.add_argument(
        "--tokenizer",
        type=folder,
        metavar="FOLDER",
        help="tokenizer files to put into the folder, instead of those the run came with",
    )
    out.add_argument(
        "--license",
        type=licence,
        metavar="NAME",
        help="of the model card, such as mit (default: that of the folder the run came from, or unknown)",
    )
    out.add_argument(
        "--push",
        default="",
        metavar="REPO",
        help="upload the folder to the Hugging Face Hub, as NAME or ORGANISATION/NAME; needs HF_TOKEN or hf auth login",
    )
    out.add_argument("--public", action="store_true", help="a new repository on the Hub is public, not private")


def _of_from_hf(back: argparse.ArgumentParser) -> None:
    back.add_argument(
        "source",
        type=paths.path,
        metavar="FOLDER",
        help="folder with config.json and safetensors, or a published file",
    )
    back.add_argument(
        "--tensor",
        type=positive,
        default=1,
        metavar="N",
        help="tensor parallel size of the checkpoint (1); any layout can load it",
    )
    back.add_argument(
        "--pipeline",
        type=positive,
        default=1,
        metavar="N",
        help="pipeline parallel size (1); processes are started as needed",
    )
    back.add_argument(
        "--hint-ids",
        type=ids,
        metavar="A,B,C",
        help="rows of <|diffusion|>, <img>, </img> in the text table, where no tokenizer names them",
    )
    back.add_argument(
        "--codec",
        default="",
        choices=("tiny", "autoencoder_kl", "autoencoder_kl_wan"),
        help="codec of the model, where there is no VAE folder",
    )
    back.add_argument(
        "--allow-extra", action="store_true", help="carry tensors along that neither the model nor this format knows"
    )
    back.add_argument(
        "--published",
        metavar="NAME=VALUE",
        nargs="+",
        default=[],
        help="what a published file does not say of itself: mode, block, num_heads (of next block prediction); fields "
        "of config.json such as num_heads, max_tpe_len, chunk, input_size=32x32 (of frame as prompt)",
    )
    back.add_argument(
        "--start",
        default="",
        choices=("open-sora",),
        help="the weights are those of another network, from which training starts: Open-Sora 1.0's STDiT, for the "
        "factorised network of frame as prompt",
    )
    back.add_argument(
        "--levels",
        type=positive,
        nargs="+",
        default=[8, 8, 8, 5, 5, 5],
        metavar="N",
        help="levels of a published file's tokenizer (8 8 8 5 5 5)",
    )
    back.add_argument("--groups", type=positive, default=32, metavar="N", help="groups of that tokenizer's norms (32)")


def _of_both(command: argparse.ArgumentParser, made: str) -> None:
    command.add_argument(
        "--output",
        type=paths.path,
        required=True,
        metavar="FOLDER",
        help=f"the {made} to make; it must not exist",
    )
    command.add_argument(
        "--dtype",
        choices=("keep", "bf16", "fp32"),
        default="keep",
        help="of the tensors (default: what each one has)",
    )
    command.add_argument(
        "--vae",
        type=folder,
        metavar="FOLDER",
        help="diffusers VAE or FSQ tokenizer (config.json and safetensors), instead of the one that travels along",
    )
    command.add_argument(
        "--verify", action="store_true", help="compare predictions of both models on random input, too"
    )
