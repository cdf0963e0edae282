#!/usr/bin/env python
"""Write a held-out sample of a run as an mp4, as the run would see it (size, frame interval): something to continue
that was never trained on.

    python tools/held_out_video.py runs/quickstart held_out.mp4
    python -m megatron_videogpt sample --checkpoint runs/quickstart --video held_out.mp4 --interval 1 --output out.mp4
"""

from __future__ import annotations

import argparse
import sys

from megatron_videogpt.codec.build import build_codec
from megatron_videogpt.config import paths
from megatron_videogpt.config.load import load_config
from megatron_videogpt.data.bad import BadVideo
from megatron_videogpt.data.encoding import encode
from megatron_videogpt.data.sources.open import open_source
from megatron_videogpt.data.video.pictures import write_video
from megatron_videogpt.errors import UserError, exit_code, unusable


def main() -> int:
    """Write the mp4; 2 with one line on stderr when that cannot be done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=paths.path, help="folder of a run (its config.toml says what the data is)")
    parser.add_argument("output", type=paths.path, help="the mp4 to write")
    parser.add_argument("--number", type=int, default=0, help="which sample (default: %(default)s)")
    learned = "one that was trained on: of few videos a model can know little else"
    parser.add_argument("--learned", action="store_true", help=learned)
    args = parser.parse_args()
    try:
        config = load_config(args.run / "config.toml")
        codec = build_codec(config.codec)
        source = open_source(config.data, codec)
        split = source.train if args.learned else source.validation
        sample = encode(split.job(split.plans(config.train.seed, [args.number])[0]).read(), codec, keep_pixels=True)
    except (UserError, BadVideo) as error:
        return exit_code(error)
    assert sample.pixels is not None
    # Real videos have rates of their own; a quarter of 24 frames per second is what the usual interval of 4 gives.
    fps = (config.data.physics.fps if config.data.source == "physics" else 24.0) / config.data.frame_interval[0]
    try:
        write_video(args.output, sample.pixels, fps)
    except OSError as error:
        return exit_code(unusable(args.output, error))
    print(f"{args.output}: {len(sample.pixels)} frames of {sample.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
