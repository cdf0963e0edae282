"""Runs in the surroundings that people have: no home folder, a user without a name, a long temporary folder, another
encoding, a small limit of open files.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import CONFIG
from .launch import REPOSITORY, interpreter, run

NOBODY = "54321"


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    """A folder that every user may enter; pytest's own is for one alone."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))  # noqa: S108
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


def locale_in(folder: Path) -> list[str]:
    """Variables of a locale that is not UTF-8, made in a folder; none where the system cannot make one."""
    folder.mkdir()
    if shutil.which("localedef"):
        subprocess.run(["localedef", "-i", "zh_CN", "-f", "GBK", str(folder / "zh_CN.GBK")], capture_output=True)
    return [f"LOCPATH={folder}", "LC_ALL=zh_CN.GBK"] if any(folder.iterdir()) else []


def test_a_run_without_home_name_room_for_sockets_or_utf8(open_to_all: Path, videos: Path) -> None:
    """All at once, since each is a start from nothing: a user whom the system does not know, without HOME, whose
    TMPDIR is too long for sockets, in a GBK locale; videos behind a link, with names that are no text, and macOS's own
    files beside them.
    """
    if os.getuid() or not shutil.which("setpriv"):
        pytest.skip("only root can become a user without a name, by setpriv")
    become = ["setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]
    if run([*become, sys.executable, "-c", "import numpy, megatron_videogpt"], cold=True).returncode:
        pytest.skip(f"other users may not read {REPOSITORY} or its environment")
    long = open_to_all / ("x" * 60) / ("y" * 60)
    data, elsewhere = open_to_all / "data", open_to_all / "elsewhere"
    for folder in (long, data, elsewhere):
        folder.mkdir(parents=True)
    long.chmod(0o777)
    first, second, *_ = sorted(path for path in videos.iterdir() if path.suffix == ".mp4")
    shutil.copy(first, os.fsencode(data) + b"/caf\xe9.mp4")
    shutil.copy(second, elsewhere / "b.mp4")
    (data / "link").symlink_to("../elsewhere")
    (data / "._a.mp4").write_bytes(b"Mac OS X")
    names = ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "XDG_CACHE_HOME")
    gone = [word for name in names for word in ("-u", name)]
    changed = [f"TMPDIR={long}", "PYTHONDONTWRITEBYTECODE=1", *locale_in(open_to_all / "locale")]
    settings = [
        "data.source=videos",
        f"data.path={data}",
        "data.workers=1",
        "data.max_bad_fraction=0",
        "data.frames=2",
        "data.clips=[1, 2]",
        "data.min_side=16",
        "data.longest_side=64",
        f"train.output={open_to_all}/run",
        "train.steps=1",
    ]
    train = [sys.executable, "-m", "megatron_videogpt", "train", CONFIG, *settings]
    done = run(["env", *gone, *changed, *become, *train], cold=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "step 1/1" in done.stdout + done.stderr
    assert "only one video" not in done.stderr and "._a" not in done.stderr
    assert (open_to_all / "run" / "checkpoints").is_dir() and not (REPOSITORY / "~").exists()


def test_too_few_open_files_are_told_at_once(tmp_path: Path) -> None:
    train = shlex.join(interpreter("-m", "megatron_videogpt", "train", CONFIG, f"train.output={tmp_path}/run"))
    done = run(["bash", "-c", f"ulimit -n 64 && exec {train}"], cold=True, timeout=120)
    assert done.returncode == 2 and done.stderr.startswith("error: open files: this process may have 64, ")
    assert len(done.stderr.splitlines()) == 1 and list(tmp_path.iterdir()) == []
