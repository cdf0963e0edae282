#!/usr/bin/env python3
"""Train the same small model in every parallel layout, and compare with one process: tests/layouts/compare.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.layouts.compare import main

if __name__ == "__main__":
    sys.exit(main())
