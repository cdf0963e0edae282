"""A checkpoint takes its place, is replaced and is removed so that a run which dies at any call to the system still has
a whole one.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_videogpt.checkpoint import folders

CALLS = (("os", "replace"), ("os", "fsync"), ("os", "open"), ("shutil", "rmtree"))


class Killed(BaseException):
    """The process is gone."""


def written(run: Path, step: int, token: str) -> Path:
    """What a save leaves before it is published: tensors in two files, the state last."""
    partial = folders.partial_of(folders.checkpoint_root(run) / folders.checkpoint_name(step))
    (partial / "more").mkdir(parents=True)
    (partial / "tensors").write_text(token)
    (partial / "more" / "tensors").write_text(token)
    (partial / "state.json").write_text(json.dumps({"token": token}))
    return partial


def publish(run: Path, step: int, token: str) -> None:
    folders.publish(written(run, step, token), folders.checkpoint_root(run) / folders.checkpoint_name(step))


def token_of(path: Path | None) -> str:
    """Of a checkpoint that counts; every file of it must be whole."""
    assert path is not None, "no complete checkpoint is left"
    token = folders.read_state(path)["token"]
    assert (path / "tensors").read_text() == (path / "more" / "tensors").read_text() == token
    return token


def break_at(number: int, failure: BaseException, patch: pytest.MonkeyPatch) -> list[int]:
    """Let call `number` of `CALLS` (from 0) fail, and every later one too if the process is gone; an interrupted
    removal has taken what it could first.
    """
    count = [0]

    def broken(real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            count[0] += 1
            dead = isinstance(failure, Killed) and count[0] > number
            if count[0] == number + 1 or dead:
                if name == "rmtree" and count[0] == number + 1:
                    (Path(arguments[0]) / "tensors").unlink(missing_ok=True)
                raise failure
            return real(*arguments, **options)

        return call

    for module, name in CALLS:
        owner = {"os": os, "shutil": shutil}[module]
        patch.setattr(owner, name, broken(getattr(owner, name), name))
    return count


def replace_and_prune(run: Path) -> None:
    """Step 8 is saved once more, then step 12; step 4 goes."""
    publish(run, 8, "second")
    publish(run, 12, "third")
    folders.prune(run, 2, 0)


@pytest.mark.parametrize(
    "failure", [Killed(), OSError(errno.EIO, "input/output error"), OSError(errno.ENOSPC, "no space left")]
)
def test_something_whole_is_left_wherever_it_stops(failure: BaseException, tmp_path: Path) -> None:
    seen: set[str] = set()
    for number in range(200):
        run = tmp_path / str(number)
        publish(run, 4, "zeroth")
        publish(run, 8, "first")
        with pytest.MonkeyPatch.context() as patch:
            count = break_at(number, failure, patch)
            try:
                replace_and_prune(run)
            except type(failure):
                pass
        seen.add(token_of(folders.newest_folder(run)))
        assert all(token_of(path) for path in folders.complete_folders(run))
        if count[0] <= number:
            break
        # The next start cleans up, and the next save works.
        folders.remove_leftovers(run)
        again = token_of(folders.newest_folder(run))
        assert again in ("first", "second", "third")
        left = sorted(path.name for path in folders.checkpoint_root(run).iterdir())
        assert left == [path.name for path in folders.complete_folders(run)] and not any("." in name for name in left)
        replace_and_prune(run)
        assert [token_of(path) for path in folders.complete_folders(run)] == ["second", "third"]
    assert 20 < number < 199, "every call was broken once, up to the one that is not there"
    assert seen == {"first", "second", "third"}


def test_all_of_it_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    real_open, real_sync, real_replace = os.open, os.fsync, os.replace
    names: dict[int, str] = {}

    def opened(path: Any, *arguments: Any, **options: Any) -> int:
        handle = real_open(path, *arguments, **options)
        names[handle] = os.path.relpath(path, tmp_path)
        return handle

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append(names[handle]), real_sync(handle)))
    monkeypatch.setattr(
        os, "replace", lambda a, b: (done.append(f"{Path(a).name} -> {Path(b).name}"), real_replace(a, b))
    )
    partial = written(tmp_path, 4, "x")
    folders.publish(partial, partial.with_name("step_00000004"))
    here = "checkpoints/step_00000004.partial"
    turn = done.index("step_00000004.partial -> step_00000004")
    assert sorted(done[:turn]) == sorted(
        [f"{here}/{name}" for name in ("more", "more/tensors", "state.json", "tensors")] + [here]
    )
    assert done[turn - 1] == here and done[turn + 1] == "checkpoints"


def test_a_folder_that_cannot_be_flushed_is_no_failure_and_a_file_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def no_folders(handle: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(errno.EINVAL, "invalid argument")
        real(handle)

    monkeypatch.setattr(os, "fsync", no_folders)
    publish(tmp_path, 4, "x")
    assert token_of(folders.newest_folder(tmp_path)) == "x"

    def no_files(handle: int) -> None:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(os, "fsync", no_files)
    with pytest.raises(OSError, match="input/output"):
        publish(tmp_path, 8, "y")
    assert token_of(folders.newest_folder(tmp_path)) == "x"


def test_whoever_looks_during_a_replacement_sees_one(tmp_path: Path) -> None:
    publish(tmp_path, 4, "0")
    stop = threading.Event()
    missing: list[int] = []

    def look() -> None:
        while not stop.is_set():
            missing.extend([1] if folders.newest_folder(tmp_path) is None else [])

    reader = threading.Thread(target=look)
    reader.start()
    for number in range(100):
        publish(tmp_path, 4, str(number))
    stop.set()
    reader.join()
    assert not missing and token_of(folders.newest_folder(tmp_path)) == "99"


def test_folders_of_other_names_are_nobody_s(tmp_path: Path) -> None:
    for step in (4, 8, 12):
        publish(tmp_path, step, str(step))
    root = folders.checkpoint_root(tmp_path)
    kept = ["step_00000004_backup", "step_00000008.partial.mine", "step_4", "best"]
    for name in kept:
        shutil.copytree(root / "step_00000004", root / name)
    folders.prune(tmp_path, 1, 0)
    folders.remove_leftovers(tmp_path)
    assert [token_of(path) for path in folders.complete_folders(tmp_path)] == ["12"]
    assert sorted(path.name for path in root.iterdir()) == sorted([*kept, "step_00000012"])


def test_a_folder_without_a_state_is_replaced(tmp_path: Path) -> None:
    publish(tmp_path, 4, "x")
    (folders.checkpoint_root(tmp_path) / "step_00000008").mkdir()
    assert token_of(folders.newest_folder(tmp_path)) == "x"
    publish(tmp_path, 8, "y")
    assert token_of(folders.newest_folder(tmp_path)) == "y"
