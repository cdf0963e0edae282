"""Results that take long and depend on versions and sources only, kept from one run of the suite to the next."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


def cached(kind: str, versions: Iterable[str], sources: Iterable[Path], make: Callable[[], Any]) -> Any:
    """What `make` gives (JSON), from ${XDG_CACHE_HOME:-~/.cache}/megatron_videogpt/<kind> when it was made there with
    these versions and sources.

    Several processes may do this at once: each writes a file of its own and renames it; one that cannot be read is made
    again.
    """
    digest = hashlib.sha256(json.dumps([*versions]).encode())
    for source in sources:
        digest.update(source.name.encode() + b"\0" + hashlib.sha256(source.read_bytes()).digest())
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "megatron_videogpt" / kind
    path = folder / f"{digest.hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError):
        return json.loads(path.read_text(encoding="utf-8"))
    value = make()
    with contextlib.suppress(OSError):  # nowhere to keep it
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, partial = tempfile.mkstemp(dir=folder, suffix=".partial")
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump(value, file)
        os.replace(partial, path)
    return value
