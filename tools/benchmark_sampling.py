#!/usr/bin/env python3
"""How fast a model samples, and what its cache of the past is worth: the ways side by side in one run.

    # next clip diffusion: the two tables of docs/benchmarks.md, on one CPU thread
    python tools/benchmark_sampling.py
    python tools/benchmark_sampling.py --histories 8,24 --clips 8     # other rows of the second table
    # next block prediction by the protocol of Kinetics-600, in blocks of 16 and of 1
    python tools/benchmark_sampling.py --objective next_block_prediction
    # frame as prompt over a window that moves, both networks, 100 steps a chunk: takes a while
    python tools/benchmark_sampling.py --objective frame_prompt_diffusion
    python tools/benchmark_sampling.py --objective frame_prompt_diffusion --steps 10 --repeat 1    # a look
    # any of them with a tiny model, in seconds: does it run here?
    python tools/benchmark_sampling.py --quick

Every objective has options and tables of its own: --objective NAME --help tells them.  Models have random weights: only
their shape matters, no checkpoint is needed.  The ways take turns, --repeat times, and the fastest run of each counts.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from megatron_videogpt.config import paths  # noqa: E402
from megatron_videogpt.errors import UserError, exit_code  # noqa: E402
from megatron_videogpt.platforms import activate  # noqa: E402
from tools.measuring.report import heading, progress  # noqa: E402

MODULES = {
    "next_clip_diffusion": "sampling_next_clip",
    "next_block_prediction": "sampling_next_block",
    "frame_prompt_diffusion": "sampling_frame_prompt",
}


def arguments() -> tuple[ModuleType, argparse.Namespace]:
    """(module of the objective, the command line)."""
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, add_help=False)
    first = next(iter(MODULES))
    parser.add_argument("--objective", choices=MODULES, default=first, help="what is sampled (default: %(default)s)")
    name = parser.parse_known_args()[0].objective
    module = importlib.import_module(f"tools.measuring.{MODULES[name]}")
    parser.description = f"{__doc__}\n{name}\n\n{module.__doc__}"
    parser.add_argument("-h", "--help", action="help", help="show this and stop; with --objective, its options")
    number: dict[str, Any] = {"type": int, "metavar": "N"}
    parser.add_argument("--layers", help="(default: %(default)s)", **number)
    parser.add_argument("--hidden", help="width of the layers (default: %(default)s)", **number)
    parser.add_argument("--heads", help="(default: %(default)s)", **number)
    module.add_arguments(parser)
    parser.add_argument("--threads", default=1, help="CPU threads (default: %(default)s)", **number)
    parser.add_argument("--repeat", help="runs of each way, in turn (default: %(default)s)", **number)
    parser.add_argument("--quick", action="store_true", help="a tiny model, where no option says otherwise")
    parser.add_argument("--json", type=paths.path, help="also write all results into this file")
    parser.set_defaults(**module.DEFAULTS)
    if parser.parse_args().quick:
        # As defaults: what the command line says still counts.
        parser.set_defaults(**module.QUICK)
    return module, parser.parse_args()


def check(options: argparse.Namespace) -> None:
    """UserError, one line, for what nothing can be measured with."""
    for name in ("layers", "hidden", "heads", "threads", "repeat"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} {getattr(options, name)}: must be at least 1")
    if options.hidden % options.heads or options.hidden // options.heads % 2 or options.hidden % 4:
        raise UserError(f"--hidden {options.hidden}: must be a multiple of 4, and of twice --heads {options.heads}")


def main() -> int:
    """Measure and print Markdown tables."""
    module, options = arguments()

    def save(results: dict[str, Any]) -> None:
        if options.json:
            options.json.write_text(json.dumps(results, indent=1), encoding="utf-8")

    try:
        check(options)
        module.check(options)
        os.environ["OMP_NUM_THREADS"] = str(options.threads)
        import torch

        torch.set_num_threads(options.threads)
        activate("cpu")
        print(f"{heading('cpu', options.threads)}\n\n{module.describe(options)}\n", flush=True)
        with progress() as bar:
            tables = module.measure(options, bar, save)
        print(tables, flush=True)
    except UserError as error:
        return exit_code(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
