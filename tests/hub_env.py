"""Environments that hold torch, transformers, diffusers and what these need, and nothing of ours.

There is one for each set of versions, made once and kept.  What the running environment has in a fitting version is
linked, not installed again; only what differs comes from the package index.
"""

from __future__ import annotations

import hashlib
import importlib.metadata as metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOTS = ("torch", "transformers", "diffusers", "pillow")
PINS: dict[str, dict[str, str]] = {
    "4.57": {"transformers": "4.57.1", "diffusers": "0.36.0", "huggingface_hub": "0.36.0", "tokenizers": "0.22.1"},
    "5.0": {
        "transformers": "5.0.0",
        "diffusers": "0.37.1",
        "huggingface_hub": "1.3.1",
        "tokenizers": "0.22.2",
        "typer-slim": "0.21.1",
    },
    "installed": {},  # as constraints-cpu.txt has them
    "accelerate": {"accelerate": "1.15.0"},
}
"""What each environment has in other versions than the running one, or on top of it.  Written here only."""

SECONDS = 900  # for pip, and for the lock of a process that waits for another one's pip


class Unavailable(Exception):
    """The package index does not give what an environment needs, in one line."""


def python_of(name: str) -> Path:
    """The interpreter of an environment of `PINS`, made now unless the cache has it.

    Raises:
        Unavailable: pip cannot install what differs.
        filelock.Timeout: another process has been making it for `SECONDS`.
    """
    folder = cache_folder() / f"hub-env-{_digest(name)}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock", timeout=SECONDS):
            if not folder.is_dir():
                _make(name, folder)
    return folder / "bin" / "python"


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/megatron_videogpt`, by default in `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "megatron_videogpt"


def _digest(name: str) -> str:
    """Of everything that the environment depends on: versions, interpreter, where links point to, and this file."""
    versions = {found.name: found.version for found in _needed(list(ROOTS), None)}
    facts = [PINS[name], versions, sys.version, sys.prefix, Path(__file__).read_text(encoding="utf-8")]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _make(name: str, folder: Path) -> None:
    """Under another name, then renamed: an environment is there whole or not at all.  Call it with the lock held."""
    for left in folder.parent.glob(f"{folder.name}.half-*"):
        shutil.rmtree(left)
    half = Path(tempfile.mkdtemp(prefix=f"{folder.name}.half-", dir=folder.parent))
    try:
        venv.create(half, with_pip=False, symlinks=True)
        site = half / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
        if PINS[name]:
            _install([f"{package}=={version}" for package, version in PINS[name].items()], site)
        for found in _needed([*ROOTS, *PINS[name]], site):
            _link(found, site)
        half.rename(folder)
    finally:
        shutil.rmtree(half, ignore_errors=True)


def _install(packages: list[str], site: Path) -> None:
    # Without dependencies: those that fit are linked, and those that do not are named in PINS.
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-compile",
        "--retries",
        "1",
        "--target",
        str(site),
        *packages,
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise Unavailable(f"pip cannot install {', '.join(packages)} here: {reason}")


def _needed(names: list[str], site: Path | None) -> Iterator[metadata.Distribution]:
    """Distributions of these names and what they require, those of `site` first.

    AssertionError where one does not fit and PINS has no other.
    """
    seen: set[str] = set()
    waiting = [Requirement(name) for name in names]
    while waiting:
        wanted = waiting.pop()
        found = _find(wanted.name, site)
        assert wanted.specifier.contains(found.version, prereleases=True), (
            f"{wanted} is needed, {found.version} is there: pin it in {__file__}"
        )
        if canonicalize_name(wanted.name) in seen:
            continue
        seen.add(canonicalize_name(wanted.name))
        yield found
        required = [Requirement(line) for line in found.requires or ()]
        waiting += [entry for entry in required if entry.marker is None or entry.marker.evaluate({"extra": ""})]


def _find(name: str, site: Path | None) -> metadata.Distribution:
    own = list(metadata.distributions(name=name, path=[str(site)])) if site else []
    return own[0] if own else metadata.distribution(name)


def _link(found: metadata.Distribution, site: Path) -> None:
    """Links to the top-level entries of a distribution; nothing to do for one that was installed there."""
    for entry in sorted({file.parts[0] for file in found.files or () if file.parts[0] not in ("..", "__pycache__")}):
        source = Path(str(found.locate_file(entry))).resolve()
        if not (site / entry).exists() and source.exists():
            (site / entry).symlink_to(source)
