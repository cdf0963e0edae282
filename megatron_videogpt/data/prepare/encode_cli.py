"""`python -m megatron_videogpt data encode`: every frame of a data set through a VAE, in several processes."""

from __future__ import annotations

import argparse
import time
from contextlib import ExitStack
from pathlib import Path

from ...codec.base import Codec
from ...codec.build import build_codec
from ...codec.options import CodecConfig
from ...config import paths
from ...config.schema_data import DataConfig
from ...errors import UserError
from ...platforms import activate
from ...platforms.together import fail_together
from ..bad import Rejections
from ..locks import locked
from ..shards.latents import STORED
from ..sources.datasets import Shards
from ..sources.open import usable_videos
from .encode import Encoding, Progress, claim_output, encode_parts, finish
from .sharing import AFTER, bar, make_folder, share, summed

DESCRIPTION = """\
Encode every frame of a data set with a VAE, once, so that training reads latents: posterior mean and log-variance of
each frame, in shards.

SRC is a folder or URL of shards (data prepare), or a folder of videos.  Train with data.source="shards" and
data.path=DIR.  The videos are divided into parts of --part; a part is written by one process, in shards of its own, and
nothing in it depends on the number of processes.  Run again after an interruption, it goes on behind the last whole
shard of each part.  What cannot be encoded is in rejected.jsonl.
"""

EXAMPLES = """\
examples:
  python -m megatron_videogpt data encode /data/panda --output /data/panda-latents --codec autoencoder_kl \\
      --codec-path checkpoints/sdxl-vae --dtype bf16
  torchrun --nproc_per_node=8 -m megatron_videogpt data encode /data/panda --output /data/panda-latents \\
      --codec autoencoder_kl --codec-path checkpoints/sdxl-vae
"""

LOCK = ".encode.lock"
NAMED = 100_000  # videos left out by their size or length that are named in rejected.jsonl; all are counted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options and help."""
    data = DataConfig()
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    parser.add_argument(
        "source", type=paths.place, metavar="SRC", help="folder or fsspec URL of shards, or a folder of videos"
    )
    parser.add_argument(
        "--output", type=paths.path, required=True, help="folder for the latent shards; the same for all processes"
    )
    parser.add_argument(
        "--codec", default="autoencoder_kl", help="as codec.name in a configuration (default: %(default)s)"
    )
    parser.add_argument("--codec-path", type=paths.place, default="", help="as codec.path")
    parser.add_argument(
        "--longest-side", type=int, default=data.longest_side, help="as data.longest_side (default: %(default)s)"
    )
    parser.add_argument(
        "--size-multiple", type=int, default=data.size_multiple, help="as data.size_multiple (default: %(default)s)"
    )
    parser.add_argument(
        "--min-side",
        type=int,
        default=data.min_side,
        help="as data.min_side: smaller videos are left out (default: %(default)s)",
    )
    parser.add_argument(
        "--max-aspect", type=float, default=data.max_aspect, help="as data.max_aspect (default: %(default)s)"
    )
    parser.add_argument("--min-frames", type=int, default=1, help="shorter videos are left out (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="frames per call of the VAE (default: %(default)s)")
    parser.add_argument(
        "--dtype", choices=STORED, default="bf16", help="in which the VAE computes (default: %(default)s)"
    )
    parser.add_argument(
        "--store", choices=STORED, default="fp16", help="in which latents are stored (default: %(default)s)"
    )
    parser.add_argument(
        "--part", type=int, default=1000, help="videos of a part, which one process encodes (default: %(default)s)"
    )
    parser.add_argument(
        "--shard-mb",
        type=float,
        default=1000.0,
        help="a shard is closed when it has this size, in 10^6 bytes (default: %(default)g)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=data.workers,
        help="decoding processes of each process; 0 decodes in it (default: %(default)s)",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=600.0,
        help="seconds after which a decoder that is stuck is replaced (default: %(default)g)",
    )
    parser.add_argument(
        "--max-bad-fraction",
        type=float,
        default=data.max_bad_fraction,
        help="as data.max_bad_fraction (default: %(default)s)",
    )
    parser.add_argument("--cache", type=paths.place, default="", help="as data.cache")
    parser.add_argument("--cache-gb", type=float, default=data.cache_gb, help="as data.cache_gb (default: %(default)g)")
    parser.add_argument("--platform", default="auto", help="auto, cpu, cuda or npu (default: %(default)s)")


def source_config(args: argparse.Namespace) -> DataConfig:
    """How the videos are read."""
    local = Path(args.source)
    folder = local.is_dir() and not any(local.glob("*.tar"))
    return DataConfig(
        source="videos" if folder else "shards",
        path=args.source,
        longest_side=args.longest_side,
        size_multiple=args.size_multiple,
        min_side=args.min_side,
        max_aspect=args.max_aspect,
        workers=args.workers,
        cache=args.cache,
        cache_gb=args.cache_gb,
    )


def load_codec(args: argparse.Namespace) -> Codec:
    """The VAE on this process's device; ValueError when it cannot encode single frames, or frames of these sizes."""
    codec = build_codec(CodecConfig(args.codec, args.codec_path, args.batch))
    if codec.temporal_stride > 1:
        why = (
            f"joins {codec.temporal_stride} frames to one latent frame, so latents depend on where a sample "
            "starts and cannot be stored once"
        )
        raise UserError(
            f"--codec={args.codec}: {why}; train from the videos themselves (data.source=videos or shards), "
            "or use an AutoencoderKL"
        )
    if args.size_multiple % codec.spatial_stride or args.longest_side % args.size_multiple:
        rule = (
            f"must be a multiple of the VAE's stride {codec.spatial_stride}, and "
            f"--longest-side={args.longest_side} of it"
        )
        raise UserError(f"--size-multiple={args.size_multiple}: {rule}")
    return codec.to(activate(args.platform).device, STORED[args.dtype])


def prepare(args: argparse.Namespace, rank: int) -> Encoding:
    """What is encoded; ValueError, one line, when that cannot be."""
    codec = load_codec(args)
    usable = usable_videos(source_config(args), codec, args.source, args.min_frames, 0 if rank else NAMED)
    if isinstance(usable.collection, Shards) and usable.collection.index.kind == "latents":
        raise UserError(f"{args.source}: holds latents, not videos")
    names = ("source", "codec_path", "min_side", "max_aspect", "min_frames", "batch", "dtype")
    options = {name: getattr(args, name) for name in names}
    return Encoding(
        usable,
        codec,
        args.longest_side,
        args.size_multiple,
        args.store,
        args.batch,
        args.part,
        int(args.shard_mb * 1e6),
        args.output,
        options,
    )


def encode(args: argparse.Namespace, rank: int, world: int) -> str:
    """Encode this process's parts; the line that says what was done (by all processes)."""
    with fail_together(None, "preparing"):
        encoding = prepare(args, rank)
    with ExitStack() as stack:
        with fail_together(None, "claiming the output folder"):
            if rank == 0:
                make_folder(args.output, f"--output={args.output}")
                stack.enter_context(locked(args.output / LOCK, 0, "encoding there"))
                claim_output(encoding)
        return _encode(args, encoding, rank, world)


def _encode(args: argparse.Namespace, encoding: Encoding, rank: int, world: int) -> str:
    start = time.monotonic()
    mine = range(rank, len(encoding.parts), world)
    entries = encoding.usable.collection.entries
    total = sum(
        int(entries["frames"][encoding.parts[part]].sum()) for part in mine if not encoding.report(part).is_file()
    )
    with bar(total, "frames", rank, world) as shown:
        done = Progress(Rejections(args.max_bad_fraction), shown)
        encode_parts(encoding, mine, args.workers, args.timeout, done)
    videos, frames = summed([done.videos, done.frames], world)
    if rank:
        return ""
    rejected = finish(encoding)
    seconds = max(time.monotonic() - start, 1e-9)
    kinds = ", ".join(f"{count} {kind}" for kind, count in rejected.most_common()) or "none"
    return (
        f"{args.output}: {videos} videos, {frames} frames encoded in {seconds:.1f} s, {frames / seconds:.1f} "
        f"frames/s; rejected: {kinds}"
    )


def run(args: argparse.Namespace) -> None:
    """Encode; UserError, one line, when that cannot be done."""
    share(encode, args)


def after(args: argparse.Namespace) -> str:
    """What to do after a signal."""
    return AFTER
