#!/usr/bin/env python3
"""Hold the builds of a container while pip installs beside them.

    python docker/keep_builds.py hold FILE      writes the installed ones as a constraint file for pip
    python docker/keep_builds.py same FILE      exit code 1 if one of them changed since

Held are torch and what is compiled against it; not held are pure Python packages, which pip may raise.
"""

import re
import sys
from importlib.metadata import distributions
from pathlib import Path

COMPILED = r"torch|torchvision|torchaudio|torch-tensorrt|.*triton|transformer-engine.*|flash-attn.*|nvidia-.*|numpy"
"""torch, what is compiled against it, and the CUDA libraries; numpy because their extensions know one major version."""


def installed() -> list[str]:
    """name==version of every package that is held, sorted."""
    found = {}
    for distribution in distributions():
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"] or "").lower()
        if re.fullmatch(COMPILED, name):
            found[name] = distribution.version
    return [f"{name}=={version}" for name, version in sorted(found.items())]


def main(arguments: list[str]) -> int:
    """Entry point."""
    if len(arguments) != 2 or arguments[0] not in ("hold", "same"):
        print("error: python docker/keep_builds.py hold|same FILE", file=sys.stderr)
        return 2
    mode, file = arguments[0], Path(arguments[1])
    now = installed()
    if not any(line.startswith("torch==") for line in now):
        print("error: no torch is installed here: this is for containers that bring one", file=sys.stderr)
        return 1
    if mode == "hold":
        file.write_text("".join(line + "\n" for line in now), encoding="utf-8")
        return 0
    before = file.read_text(encoding="utf-8").split()
    changed = [line for line in before if line not in now]
    if changed:
        print(f"error: pip changed the container's builds, before it was {', '.join(changed)}", file=sys.stderr)
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
