"""What surrounds a process: the launcher's variables, the limit of open files, the folder of sockets, the encoding of
the screen.  Nothing here needs more than Python.
"""

from __future__ import annotations

import contextlib
import errno
import getpass
import io
import locale
import multiprocessing.util
import os
import resource
import site
import stat
import sys
import tempfile
from pathlib import Path

from .errors import UserError, shortened

MOST_OPEN = 65536
"""Open files that are asked for where the system allows more: some libraries walk over all that may be open."""
OPEN_ANYWAY, OPEN_PER_READER = 128, 8
"""Of a training process alone (115 counted, one process on a CPU), and for each of its readers (6 counted)."""
LONGEST_FOLDER = 60
"""Bytes of a temporary folder in which sockets still fit: a socket's path has at most 107, multiprocessing adds up to
40.
"""
UTF8 = ("utf-8", "utf8")
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108


def settle() -> None:
    """Make the best of the surroundings; for the start of a command, may be called again."""
    for stream in (sys.stdout, sys.stderr):
        # A name that the screen's encoding does not have must not end a run.
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_OPEN if hard == resource.RLIM_INFINITY else min(hard, MOST_OPEN)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    _name_user()
    shorten_sockets()


def _name_user() -> None:
    """A user that the system does not know gets a name: libraries call folders after it, and fail without."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = f"user{os.getuid()}"


def shorten_sockets() -> None:
    """Let multiprocessing make its sockets in a short folder where the temporary one is too long for them."""
    if len(os.fsencode(tempfile.gettempdir())) <= LONGEST_FOLDER:
        return
    usual = tempfile.tempdir
    for folder in SHORT_FOLDERS:
        if os.access(folder, os.W_OK | os.X_OK):
            try:
                tempfile.tempdir = folder
                # Makes a private folder once and keeps it, for this process and those that it starts.
                made = multiprocessing.util.get_temp_dir()
            except OSError:
                continue
            finally:
                tempfile.tempdir = usual
            if len(os.fsencode(made)) <= LONGEST_FOLDER:
                return
    raise UserError(
        f"TMPDIR = {tempfile.gettempdir()}: is too long for the sockets that processes talk through; set TMPDIR to a "
        f"folder of at most {LONGEST_FOLDER} bytes"
    )


def private_folder() -> Path:
    """A folder in the temporary folder that belongs to this user and that nobody else can enter; UserError where
    another one is in its place.
    """
    folder = Path(tempfile.gettempdir()) / f"megatron_videogpt_{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    # Of the name itself: a link of somebody else's leads where he likes, tomorrow elsewhere.
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "not a folder"
        raise UserError(
            f"{folder}: {kind} of user {found.st_uid} with mode {stat.S_IMODE(found.st_mode):04o}; expected a "
            f"folder of user {os.getuid()} with mode 0700, "
            "through which the ranks of a node find each other: remove it, or set TMPDIR to a folder of your own"
        )
    return folder


def world_size() -> int:
    """Processes of this launch, 1 without a launcher.

    Raises:
        UserError: one line: the variables of a launcher do not fit together.
    """
    found = {name: _number(name) for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")}
    size, rank = found["WORLD_SIZE"], found["RANK"]
    fix = "start with torchrun, which sets both, or unset them for one process"
    if size == 0:
        raise UserError(f"WORLD_SIZE = 0: must be at least 1; {fix}")
    if rank is None and (size or 1) > 1:
        raise UserError(f"WORLD_SIZE = {size}, but RANK is not set; {fix}")
    if rank is not None and size is None:
        raise UserError(f"RANK = {rank}, but WORLD_SIZE is not set; {fix}")
    if rank is not None and size is not None and rank >= size:
        raise UserError(f"RANK = {rank}: must be below WORLD_SIZE = {size}; {fix}")
    return size or 1


def _number(name: str) -> int | None:
    text = os.environ.get(name)
    if text is None:
        return None
    if not text.strip().isdecimal():
        raise UserError(
            f"{name} = {text!r}: must be a whole number, as launchers set it; unset {name} to start one process, or "
            "start with torchrun"
        )
    return int(text)


def package_environment() -> dict[str, str]:
    """The environment in which `python -m megatron_videogpt` is this package in a process of its own, also where it
    runs from a checkout that is not installed.
    """
    root = str(Path(__file__).resolve().parents[1])
    if root in map(os.path.realpath, site.getsitepackages()):
        return dict(os.environ)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}


def check_open_files(readers: int) -> None:
    """UserError, one line, where a process that starts so many readers would run out of open files."""
    limit, needed = resource.getrlimit(resource.RLIMIT_NOFILE)[0], OPEN_ANYWAY + OPEN_PER_READER * readers
    if limit not in (resource.RLIM_INFINITY, -1) and limit < needed:
        raise UserError(
            f"open files: this process may have {limit}, and with data.workers = {readers} it needs about {needed}; "
            f"ulimit -n {max(1024, needed)} before the start raises the limit (the hard one: ulimit -Hn)"
        )


def explained(error: Exception) -> Exception:
    """The mistake behind a library's error that comes from the surroundings; any other error as it is."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return UserError(f"too many open files: this process may have {limit}; ulimit -n before the start raises it")
    if isinstance(error, RuntimeError) and "backend extension: torch_npu" in str(error):
        return UserError(
            f"importing torch loads torch_npu, which fails ({shortened(error.__cause__ or error)}); source CANN's "
            "set_env.sh before the start, or set TORCH_DEVICE_BACKEND_AUTOLOAD=0 to run without NPUs"
        )
    encoding = locale.getpreferredencoding(False)
    if isinstance(error, UnicodeError) and not isinstance(error, UserError) and encoding.lower() not in UTF8:
        return UserError(
            f"{' '.join(str(error).split())}: a library reads or writes text as {encoding}, the encoding of this "
            "locale; set PYTHONUTF8=1 before the start"
        )
    return error
