"""Where a run is: prints `new`, `resumes at step N` or `finished at step N`.

  python tools/run_state.py [--processes N] [--free] FILE.toml [section.option=value ...] [--shrink [N]]

A wrong configuration, one that does not fit N processes, or a folder that is not free is named on stderr as `train`
would name it, with exit code 2.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_videogpt.checkpoint.folders import complete_folders, read_state
from megatron_videogpt.checkpoint.whole import GO_ON, first_whole
from megatron_videogpt.config import shrink
from megatron_videogpt.errors import UserError, exit_code
from megatron_videogpt.train.folder import check_free


def _step(run: Path, on_damaged: str) -> int:
    folders = complete_folders(run)[::-1]
    return int(read_state(first_whole(folders, on_damaged, GO_ON)[0])["step"]) if folders else 0


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, metavar="N", help="also check that the layout fits so many processes")
    parser.add_argument("--free", action="store_true", help="only ask whether no run is going on there now")
    parser.add_argument("file", metavar="FILE.toml")
    parser.add_argument("overrides", metavar="section.option=value", nargs="*")
    shrink.add_argument(parser)
    args = parser.parse_intermixed_args(shrink.with_factor(sys.argv[1:]))
    try:
        config = shrink.load(args.file, args.overrides, args.processes, args.shrink, tell=False)
        if args.free:
            check_free(Path(config.train.output))
            return 0
        step = _step(Path(config.train.output), config.checkpoint.on_damaged)
    except UserError as error:
        return exit_code(error)
    if step >= config.train.steps:
        print(f"finished at step {step}")
    else:
        print(f"resumes at step {step}" if step else "new")
    return 0


if __name__ == "__main__":
    sys.exit(main())
