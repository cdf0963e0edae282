"""Standard output and error of a run: files on a disk which may be full (`train > log`), a pipe whose reader may end
(`train | tee log`), a terminal that may be closed.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any

from .records import STORAGE, Records


class Kept(io.RawIOBase):
    """A descriptor that takes everything: what the disk does not is counted as lost.  Closing leaves it open.

    A base class, because text streams ask their buffer for all that it has.
    """

    def __init__(self, descriptor: int, kind: str, records: Records) -> None:
        self.descriptor, self.kind, self.records = descriptor, kind, records
        self._cut = False

    def fileno(self) -> int:
        """The descriptor."""
        return self.descriptor

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return os.isatty(self.descriptor)

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, data: Any) -> int:
        """Takes all; raises what no storage, pipe or terminal explains."""
        whole = bytes(data)
        # The rest of a line that was lost is no beginning of the next one.
        left = b"\n" + whole if self._cut else whole
        try:
            while left:
                left = left[os.write(self.descriptor, left) :]
                self._cut = False
        except OSError as error:
            if error.errno not in (*STORAGE, errno.EPIPE):
                raise
            self.records.failed(self.kind, error)
            self.records.lost(self.kind, "line", count=max(1, left.count(b"\n") - self._cut))
            taken = whole[: max(0, len(whole) - len(left))]
            self._cut = self._cut or not (taken or b"\n").endswith(b"\n")
        return len(whole)


def outlive_full_disk(records: Records) -> None:
    """From here to the end of the process no `print` fails for want of room, nor does Python's own end (exit code 120).

    Streams that something else has put in place of the process's own stay as they are.
    """
    for name, kind in (("stdout", "standard output"), ("stderr", "standard error")):
        stream = getattr(sys, name)
        if stream is not None and stream is getattr(sys, f"__{name}__"):
            stream.flush()
            kept: Any = Kept(stream.fileno(), kind, records)
            text = io.TextIOWrapper(kept, encoding=stream.encoding, errors=stream.errors, line_buffering=True)
            setattr(sys, name, text)
