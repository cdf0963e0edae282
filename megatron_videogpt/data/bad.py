"""Input that cannot be used: why, how often, and when it is too much."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path

from ..errors import BadInput, UserError

log = logging.getLogger(__name__)

REASONS = {
    "unreadable": "not a video that FFmpeg can read, or damaged",
    "truncated": "the file or member ends early",
    "no_frames": "no video stream, or no frame in it",
    "too_small": "a side below data.min_side",
    "too_elongated": "an aspect ratio above data.max_aspect",
    "too_short": "fewer frames than a sample needs",
    "too_large": "more bytes, frames or pixels than the limits allow (a decompression bomb?)",
    "extension": "a file name extension that is no video's",
    "metadata": "JSON metadata that is not an object with the expected fields",
    "unsafe_name": "a member name that leads out of the folder, or is a link or a device",
    "corrupt_tar": "a tar file whose structure is damaged",
    "incomplete": "a key without its video or its metadata, or twice the same",
    "codec": "latents of another VAE or geometry",
    "condition": "no class or caption where one is asked for, or a class that is not known",
    "missing": "the file or object is not there, or may not be read",
    "stalled": "its reader did not finish in time",
    "crashed": "its reader died",
}
"""Kinds of rejection, as they are counted in TensorBoard and JSONL."""
DAMAGE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What readers of videos and pictures were seen to raise, or may, over damaged files, beside errors of their own."""
WINDOW = 1000  # samples over which data.max_bad_fraction is taken


def shown(name: str | os.PathLike[str]) -> str:
    """A name as text that can be printed and written as UTF-8: of a file name whose bytes are no UTF-8, which Python
    holds as surrogates, these bytes become ``\\xe9``; every other name stays as it is.
    """
    text = os.fspath(name)
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half a pair of surrogates, which no file name but a JSON text may hold
        return text.encode("utf-8", "backslashreplace").decode()


class BadVideo(BadInput):
    """Input that cannot be used; ``str()`` is one line with its name and what is wrong.

    name: path, or shard and key, kept as `shown`; reason: one line for people; kind: one of `REASONS`.
    """

    def __init__(self, name: str | os.PathLike[str], reason: str, kind: str = "unreadable") -> None:
        assert kind in REASONS, kind
        self.path, self.reason, self.kind = shown(name), " ".join(shown(str(reason)).split()), kind
        super().__init__(f"{self.path}: {self.reason}")

    def __reduce__(self):
        # Loader processes send it through a pipe, and the default would call the class with the joined message only.
        return BadVideo, (self.path, self.reason, self.kind)


class Rejections:
    """What one reader rejected.

    counts: by kind; file: gets a JSON line {"name", "kind", "reason"} for each name that is not in it yet (None: only
    the log); limit: largest share of the last 1000 samples; write: instead of `record`.
    """

    def __init__(
        self, limit: float, file: Path | None = None, write: Callable[[Path, BadVideo], None] | None = None
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._limit, self._file, self._write = limit, file, write or record
        self._named = set() if file is None else recorded(file)
        self._recent: deque[bool] = deque(maxlen=WINDOW)
        self._last: BadVideo | None = None

    @property
    def total(self) -> int:
        """All rejections so far."""
        return sum(self.counts.values())

    def good(self) -> None:
        """A sample that was read."""
        self._recent.append(False)

    def add(self, error: BadVideo) -> None:
        """Count a sample that could not be read, and name it unless it was named before."""
        self.counts[error.kind] += 1
        self._recent.append(True)
        self._last = error
        if error.path in self._named:
            return
        self._named.add(error.path)
        log.warning("rejected (%s) %s", error.kind, error)
        if self._file is not None:
            self._write(self._file, error)

    def check(self) -> None:
        """ValueError, one line, when the share of bad samples is over the limit."""
        bad = sum(self._recent)
        if bad <= self._limit * WINDOW:
            return
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.counts.most_common())
        raise UserError(
            f"{bad} of the last {len(self._recent)} samples could not be read, over "
            f"data.max_bad_fraction={self._limit:g} of {WINDOW}; "
            f"since the start: {kinds}; the last one: {self._last}"
        )


def record(file: Path, error: BadVideo) -> None:
    """Append a rejection to a JSONL file; several processes may."""
    file.parent.mkdir(parents=True, exist_ok=True)
    line = f"{json.dumps({'name': error.path, 'kind': error.kind, 'reason': error.reason})}\n".encode()
    with open(file, "ab+", buffering=0) as lines:
        # Half a line, which a full disk has left, can be another process's: it is ended and not removed.
        if lines.seek(0, os.SEEK_END) and os.pread(lines.fileno(), 1, lines.tell() - 1) != b"\n":
            line = b"\n" + line
        while line:
            line = line[lines.write(line) :]


def recorded(file: Path) -> set[str]:
    """Names in a file of `record`, but of half lines; empty when there is none."""
    names = set()
    for line in file.read_bytes().splitlines() if file.is_file() else ():
        with contextlib.suppress(ValueError):
            names.add(json.loads(line)["name"])
    return names
