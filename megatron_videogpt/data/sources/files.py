"""Files of a folder, by their names: one walk for training, preparation and sampling."""

from __future__ import annotations

import logging
import os
from collections.abc import Container, Iterator
from functools import lru_cache
from pathlib import Path, PurePath

from ...errors import UserError
from ..bad import shown

log = logging.getLogger(__name__)

EXTENSIONS = frozenset(
    ".3gp .avi .flv .gif .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .vob .webm .wmv .y4m".split()
)
ARCHIVED = "__MACOSX"  # macOS's zip keeps its ._ files in a folder of this name
NAMED = 5  # folders left out that the log names; the others are counted


def is_apple_double(name: str) -> bool:
    """Whether a file is macOS's own about another file, and not what its ending says: ``._NAME``, which appears beside
    NAME on foreign disks and in archives, or anything in ``__MACOSX/``.

    name: a path with slashes.
    """
    *folders, last = name.split("/")
    return last.startswith("._") or ARCHIVED in folders


def list_videos(folder: str | Path) -> list[Path]:
    """All files with a known video extension, searched recursively, sorted; ValueError when there are none."""
    root = Path(folder)
    if not str(folder):
        raise UserError("data.path is empty: data.source=videos needs a folder of videos")
    if not root.exists():
        raise UserError(f"data.path={folder}: no such folder")
    if not root.is_dir():
        raise UserError(f"data.path={folder}: is a file; give the folder that holds the videos")
    videos = list(walk(root, EXTENSIONS))
    if not videos:
        raise UserError(f"data.path={folder}: no videos in it (looked for {', '.join(sorted(EXTENSIONS))})")
    return videos


def walk(folder: Path, endings: Container[str], hidden: bool = True) -> Iterator[Path]:
    """Files below a folder, and below the folders that links in it lead to, in the order of ``sorted(rglob("*"))``.

    A folder is listed once, however many links lead to it, so that loops end: the path with the fewest links counts,
    of these the first by name.  Left out are broken links, what `is_apple_double` finds and, with a line in the log,
    folders that cannot be listed.

    Args:
        folder: the paths begin with it.
        endings: of the files, in lower case with their dots.
        hidden: take also what has a name that begins with a dot.

    Raises:
        ValueError: the folder itself cannot be listed, one line.
    """
    tree = _Tree(endings, hidden)
    top = os.fspath(folder)
    tree.look_through(top)
    if top in tree.failed:
        raise UserError(
            f"{shown(top)}: cannot be listed ({tree.failed[top]}); make it readable, or give another folder"
        )
    tree.follow_links()
    tree.tell(top)
    yield from tree.files(top)


class _Tree:
    """What was found so far.

    Attributes:
        names: by folder, names of the files wanted in it and of the folders that are in ``names`` themselves.
        links: to folders, not followed yet.
        entered: which folders were listed, once links are followed.
        repeated: folders left out because they are listed under another name.
        failed: why a folder could not be listed.
    """

    def __init__(self, endings: Container[str], hidden: bool) -> None:
        self._endings, self._hidden = endings, hidden
        self.names: dict[str, list[str]] = {}
        self.links: list[str] = []
        self.entered: set[tuple[int, int]] | None = None
        self.repeated: list[str] = []
        self.failed: dict[str, str] = {}

    def look_through(self, top: str) -> None:
        """List a folder and all below it but what links lead to."""
        folders = [top]
        while folders:
            folder = folders.pop()
            names = self.names[folder] = []
            try:
                with os.scandir(folder) as found:
                    entries = list(found)
            except OSError as error:
                self.failed[folder] = error.strerror or str(error)
                continue
            for entry in entries:
                path = os.path.join(folder, entry.name)
                if entry.name == ARCHIVED or (entry.name.startswith(".") and not self._hidden):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    if self._is_new(path):
                        names.append(entry.name)
                        folders.append(path)
                elif entry.is_symlink() and os.path.isdir(path):
                    self.links.append(path)
                elif self._is_wanted(entry):
                    names.append(entry.name)

    def follow_links(self) -> None:
        """List what links lead to, and links in there."""
        if self.links:
            # Not before: some file systems number their folders badly, which without links does not matter.
            self.entered = {_identity(folder) for folder in self.names if os.path.isdir(folder)}
        while self.links:
            links, self.links = sorted(self.links, key=lambda path: path.split(os.sep)), []
            for link in links:
                if self._is_new(link):
                    parent, name = os.path.split(link)
                    self.names[parent].append(name)
                    self.look_through(link)

    def tell(self, top: str) -> None:
        """What was left out, in the log."""
        if self.repeated:
            what = _counted(self.repeated, "linked folder")
            _say_once(
                f"{shown(top)}: left out {what}, leading to what is listed already or in a circle: "
                f"{_some(self.repeated)}"
            )
        if self.failed:
            failed = [f"{folder} ({why})" for folder, why in self.failed.items()]
            _say_once(f"{shown(top)}: left out {_counted(failed, 'folder')} that cannot be listed: {_some(failed)}")

    def files(self, top: str) -> Iterator[Path]:
        """All files in order; can be called once."""
        waiting = [top]
        while waiting:
            path = waiting.pop()
            if path in self.names:
                waiting += (os.path.join(path, name) for name in sorted(self.names.pop(path), reverse=True))
            else:
                yield Path(path)

    def _is_new(self, folder: str) -> bool:
        """Whether a folder is to be listed; once links are followed, each is so only once."""
        if self.entered is None:
            return True
        try:
            identity = _identity(folder)
        except OSError as error:
            self.failed[folder] = error.strerror or str(error)
            return False
        if identity in self.entered:
            self.repeated.append(folder)
            return False
        self.entered.add(identity)
        return True

    def _is_wanted(self, entry: os.DirEntry[str]) -> bool:
        if PurePath(entry.name).suffix.lower() not in self._endings or is_apple_double(entry.name):
            return False
        # Unlike DirEntry's own test it takes no offence at links that lead nowhere, or where nobody may look.
        return entry.is_file(follow_symlinks=False) or os.path.isfile(entry.path)


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _counted(names: list[str], what: str) -> str:
    return f"{len(names)} {what}{'s' if len(names) > 1 else ''}"


def _some(names: list[str]) -> str:
    return ", ".join(shown(name) for name in sorted(names)[:NAMED]) + (", ..." if len(names) > NAMED else "")


@lru_cache(maxsize=256)
def _say_once(line: str) -> None:
    # Preparation lists its sources twice.
    log.warning("%s", line)
