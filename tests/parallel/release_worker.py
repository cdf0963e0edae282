"""Which megatron-core a process of a test imports: `release_worker.py FOLDER` leaves its version and place in
``rank_<n>.json``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def main() -> None:
    """Entry point under torchrun, or alone."""
    from megatron_videogpt.platforms import activate

    activate("cpu")
    import megatron.core

    Path(sys.argv[1], f"rank_{os.environ.get('RANK', '0')}.json").write_text(
        json.dumps([megatron.core.__version__, megatron.core.__file__])
    )


if __name__ == "__main__":
    main()
