"""`python -m megatron_videogpt data encode-text`: captions of shards through a text encoder, in several processes."""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import ExitStack

import numpy as np

from ...condition.build import build_encoder
from ...condition.options import CAPTION, ENCODERS, LABEL, ConditionConfig
from ...config import paths
from ...config.schema_data import DataConfig
from ...errors import UserError
from ...platforms import activate
from ...platforms.together import fail_together
from ..jobs import reading_of
from ..locks import locked
from ..shards.dataset import open_index
from ..shards.latents import STORED
from ..sources.datasets import Shards, cache_of
from ..video.container import limits_of
from .sharing import AFTER, bar, make_folder, share, summed
from .texts import Done, TextEncoding, claim, default_output, encode_shards, finish

DESCRIPTION = """\
Encode the captions of a data set of shards with a text encoder, once, so that training reads features and needs no
encoder.

SRC is a folder or URL of shards of videos or latents (data prepare, data encode); a caption is "caption" of a sample's
JSON, or its text file, or with --text-from label the name of its class as words.  The features go to the folder text
beside the shards, or to --cache where that cannot be written (far away, read-only); training finds them in both, given
the same data.cache.  Elsewhere (--output) it finds them only once they are copied there.  A data set has the features
of one encoder.

Then train with condition.kind=text and the same encoder, max_tokens, tokens and text_from in [condition], and with
condition.encoder_path, or condition.width where the encoder is not there.  Run again after an interruption, it goes on
behind the last whole shard.  Samples without a caption are counted; a run that draws one counts it as bad.
"""

EXAMPLES = """\
examples:
  python -m megatron_videogpt data encode-text /data/panda --encoder clip \\
      --encoder-path checkpoints/clip-vit-large-patch14
  torchrun --nproc_per_node=8 -m megatron_videogpt data encode-text /data/panda-latents --encoder t5 \\
      --encoder-path checkpoints/t5-v1_1-xxl --max-tokens 128 --dtype bf16
"""

LOCK = ".encode.lock"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options and help."""
    data, condition = DataConfig(), ConditionConfig()
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    parser.add_argument("source", type=paths.place, metavar="SRC", help="folder or fsspec URL of shards, as data.path")
    parser.add_argument(
        "--encoder", choices=ENCODERS, default=condition.encoder, help="as condition.encoder (default: %(default)s)"
    )
    parser.add_argument("--encoder-path", type=paths.place, default="", help="as condition.encoder_path")
    parser.add_argument(
        "--max-tokens", type=int, default=condition.max_tokens, help="as condition.max_tokens (default: %(default)s)"
    )
    parser.add_argument(
        "--tokens", type=int, default=condition.tokens, help="as condition.tokens, of ids (default: %(default)s)"
    )
    parser.add_argument(
        "--text-from",
        choices=(CAPTION, LABEL),
        default=condition.text_from,
        help="as condition.text_from (default: %(default)s)",
    )
    parser.add_argument(
        "--output", type=paths.path, default=None, help="another folder for the features; the same for all processes"
    )
    parser.add_argument("--batch", type=int, default=64, help="captions per call of the encoder (default: %(default)s)")
    parser.add_argument(
        "--dtype", choices=STORED, default="fp32", help="in which the encoder computes (default: %(default)s)"
    )
    parser.add_argument(
        "--store", choices=STORED, default="fp16", help="in which features are stored (default: %(default)s)"
    )
    parser.add_argument("--cache", type=paths.place, default="", help="as data.cache")
    parser.add_argument("--cache-gb", type=float, default=data.cache_gb, help="as data.cache_gb (default: %(default)g)")
    for name in ("max_video_mb", "max_video_frames", "max_megapixels"):
        default = getattr(data, name)
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=type(default),
            default=default,
            help=f"as data.{name}, which decides what is in the index (default: %(default)g)",
        )
    parser.add_argument("--platform", default="auto", help="auto, cpu, cuda or npu (default: %(default)s)")


def prepare(args: argparse.Namespace) -> TextEncoding:
    """What is encoded; UserError, one line, when that cannot be."""
    for name, least in (("batch", 1), ("max_tokens", 1), ("tokens", 2)):
        if getattr(args, name) < least:
            raise UserError(f"--{name.replace('_', '-')}={getattr(args, name)}: must be at least {least}")
    chosen = {name: getattr(args, name) for name in ("encoder", "encoder_path", "max_tokens", "tokens", "text_from")}
    options = ConditionConfig("text", **chosen)
    encoder = build_encoder(options)
    limits = {name: getattr(args, name) for name in ("max_video_mb", "max_video_frames", "max_megapixels")}
    data = DataConfig(source="shards", path=args.source, cache=args.cache, cache_gb=args.cache_gb, **limits)
    cache = cache_of(data)
    index = open_index(args.source, cache, limits=limits_of(data))
    shards = Shards(index, cache, reading_of(data))
    output = args.output or default_output(shards, args.source)
    encoder = encoder.to(activate(args.platform).device, STORED[args.dtype])
    return TextEncoding(shards, encoder, args.store, args.batch, output, options)


def encode(args: argparse.Namespace, rank: int, world: int) -> str:
    """Encode this process's shards; the line that says what was done (by all processes)."""
    with fail_together(None, "preparing"):
        encoding = prepare(args)
    with ExitStack() as stack:
        with fail_together(None, "claiming the output folder"):
            if rank == 0:
                make_folder(encoding.output, str(encoding.output))
                stack.enter_context(locked(encoding.output / LOCK, 0, "encoding there"))
                claim(encoding)
        return _encode(encoding, rank, world)


def _encode(encoding: TextEncoding, rank: int, world: int) -> str:
    start = time.monotonic()
    mine = range(rank, len(encoding.index.shards), world)
    sizes = np.diff(encoding.firsts)
    total = sum(int(sizes[shard]) for shard in mine if not encoding.file(shard).is_file())
    with bar(total, "captions", rank, world) as shown:
        done = Done(shown)
        encode_shards(encoding, mine, done)
    for error in done.damaged:
        print(f"counted as without a caption: {error}", file=sys.stderr)
    captions, tokens = summed([done.captions, done.tokens], world)
    if rank:
        return ""
    counts = finish(encoding)
    seconds = max(time.monotonic() - start, 1e-9)
    return (
        f"{encoding.output}: {captions} captions, {tokens} tokens encoded in {seconds:.1f} s, "
        f"{captions / seconds:.1f} captions/s; {np.count_nonzero(counts)} of {len(counts)} samples have one, "
        f"{np.count_nonzero(counts == 0)} have none"
    )


def run(args: argparse.Namespace) -> None:
    """Encode; UserError, one line, when that cannot be done."""
    share(encode, args)


def after(args: argparse.Namespace) -> str:
    """What to do after a signal."""
    return AFTER
