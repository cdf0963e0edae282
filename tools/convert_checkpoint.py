#!/usr/bin/env python
"""`python -m megatron_videogpt convert` under the name that it had first."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from megatron_videogpt import signals  # noqa: E402

if __name__ == "__main__":
    # What is imported now takes a while.
    signals.remember()
    from megatron_videogpt.__main__ import main

    sys.exit(main(["convert", *sys.argv[1:]]))
