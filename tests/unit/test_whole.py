"""A checkpoint is compared with the record of its files before it is read; a damaged one is told of and kept."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_videogpt.checkpoint import folders, whole
from megatron_videogpt.errors import RunError

SHARD = "__0_0.distcp"


def saved(run: Path, *steps: int) -> list[Path]:
    """Checkpoints with the names of real files, sealed and in place; newest first."""
    made = []
    for step in sorted(steps, reverse=True):
        final = folders.checkpoint_root(run) / folders.checkpoint_name(step)
        partial = folders.partial_of(final)
        partial.mkdir(parents=True)
        (partial / SHARD).write_bytes(bytes(range(256)) * 40)
        for name in (".metadata", "common.pt", "metadata.json", "config.toml"):
            (partial / name).write_text(f"{name}\n" * 3)
        (partial / "config.toml").write_text("[train]\nsteps = 4\n")
        whole.seal(partial, {"step": step})
        folders.publish(partial, final)
        made.append(final)
    return made


def cut(name: str, size: int) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def flip(name: str, place: int) -> Callable[[Path], None]:
    """One bit of a file, counted from its end where `place` is negative."""

    def change(folder: Path) -> None:
        held = bytearray((folder / name).read_bytes())
        held[place] ^= 1
        (folder / name).write_bytes(held)

    return change


def gone(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def put(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text)


KINDS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a short shard": (cut(SHARD, 8_000), f"{SHARD} has 8,000 bytes, expected 10,240"),
    "an empty shard": (cut(SHARD, 0), f"{SHARD} has 0 bytes, expected 10,240"),
    "no shard": (gone(SHARD), f"{SHARD} is missing"),
    "the first bit of a shard": (flip(SHARD, 0), f"{SHARD} is not what was written"),
    "the first 4 KiB of a shard": (flip(SHARD, 4095), f"{SHARD} is not what was written"),
    "the last 4 KiB of a shard": (flip(SHARD, -4096), f"{SHARD} is not what was written"),
    "no metadata": (gone(".metadata"), ".metadata is missing"),
    "a bit of the metadata": (flip(".metadata", 7), ".metadata is not what was written"),
    "an empty state": (cut("state.json", 0), "state.json has 0 bytes, expected 11"),
    "a cut state": (cut("state.json", 5), "state.json has 5 bytes, expected 11"),
    "another state": (put("state.json", '{"step": 5}'), "state.json is not what was written"),
    "no state": (gone("state.json"), "state.json is missing"),
    "an empty configuration": (cut("config.toml", 0), "config.toml has 0 bytes, expected 18"),
    "an edited configuration": (put("config.toml", "[train]\nsteps = 40\n"), "if it was edited on purpose, remove"),
    "a cut common file": (cut("common.pt", 9), "common.pt has 9 bytes, expected"),
    "no format": (gone("metadata.json"), "metadata.json is missing"),
    "an empty record": (cut("files.json", 0), "files.json cannot be read"),
    "a record of something else": (put("files.json", "[1]"), "files.json is no record of files"),
    "a record of nonsense": (put("files.json", '{"state.json": 7}'), "state.json is not what was written"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_told_by_file(kind: str, tmp_path: Path) -> None:
    newest, before = saved(tmp_path, 2, 4)
    assert whole.damage(newest) == ""
    change, told = KINDS[kind]
    change(newest)
    with pytest.raises(RunError) as caught:
        whole.first_whole(folders.complete_folders(tmp_path)[::-1], "stop", whole.GO_ON)
    text = str(caught.value)
    assert "\n" not in text and text.startswith(f"{newest}: is damaged (") and told in text
    assert f"the newest whole one is {before.name}; checkpoint.on_damaged=previous" in text
    assert whole.first_whole(folders.complete_folders(tmp_path)[::-1], "previous", "") == (before, (newest,))


def test_the_middle_of_a_shard_is_not_hashed(tmp_path: Path) -> None:
    (newest,) = saved(tmp_path, 4)
    flip(SHARD, 5_000)(newest)
    assert whole.damage(newest) == ""


WITHOUT_RECORD: dict[str, tuple[Callable[[Path], None], str]] = {
    "whole": (lambda folder: None, ""),
    "an empty shard": (cut(SHARD, 0), f"{SHARD} is empty"),
    "no metadata": (gone(".metadata"), ".metadata is missing"),
    "an empty common file": (cut("common.pt", 0), "common.pt is empty"),
    "an empty state": (cut("state.json", 0), "state.json is empty"),
    "a cut state": (cut("state.json", 5), "state.json cannot be read"),
    "a state of garbage": (put("state.json", "[7]"), "state.json is no state"),
    "an empty configuration": (cut("config.toml", 0), "config.toml is empty"),
    "a cut configuration": (cut("config.toml", 14), "config.toml cannot be read"),
}


@pytest.mark.parametrize("kind", WITHOUT_RECORD)
def test_of_an_earlier_release(kind: str, tmp_path: Path) -> None:
    (folder,) = saved(tmp_path, 4)
    (folder / "files.json").unlink()
    change, told = WITHOUT_RECORD[kind]
    change(folder)
    assert whole.damage(folder).startswith(told) and bool(whole.damage(folder)) == bool(told)
    assert folders.complete_folders(tmp_path) == [folder], "it is there, and nobody may pass over it in silence"


def test_several_are_damaged_or_all(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = saved(tmp_path, 1, 2, 3, 4)
    for path in made[:2]:
        (path / ".metadata").unlink()
    with caplog.at_level(logging.WARNING):
        assert whole.first_whole(made, "previous", "") == (made[2], tuple(made[:2]))
    (record,) = caplog.records
    text = record.getMessage()
    assert "step_00000004: is damaged (.metadata is missing), and so is step_00000003; the newest whole" in text
    assert "one is step_00000002; going on from that" in text
    for path in made[2:]:
        (path / ".metadata").unlink()
    for choice in ("stop", "previous"):
        with pytest.raises(RunError, match="and so are step_00000003, step_00000002, step_00000001; no other one is"):
            whole.first_whole(made, choice, "")


def test_what_is_set_aside_is_nobody_s_and_never_removed(tmp_path: Path) -> None:
    (path,) = saved(tmp_path, 4)
    assert folders.set_aside(path).name == "step_00000004.damaged"
    (again,) = saved(tmp_path, 4)
    assert folders.set_aside(again).name == "step_00000004.damaged-2"
    kept = sorted(folders.checkpoint_root(tmp_path).iterdir())
    saved(tmp_path, 4, 8)
    folders.prune(tmp_path, 1, 0)
    folders.remove_leftovers(tmp_path)
    assert [path.name for path in folders.complete_folders(tmp_path)] == ["step_00000008"]
    assert set(kept) < set(folders.checkpoint_root(tmp_path).iterdir())
    assert all(json.loads((path / "state.json").read_text()) == {"step": 4} for path in kept)


def test_a_folder_that_lost_its_state_is_not_replaced(tmp_path: Path) -> None:
    """Of an earlier release, so that no record says that it was whole."""
    (path,) = saved(tmp_path, 4)
    (path / "state.json").unlink(), (path / "files.json").unlink()
    assert folders.complete_folders(tmp_path) == []
    (again,) = saved(tmp_path, 4)
    assert whole.damage(again) == "" and (path.with_name("step_00000004.damaged") / SHARD).is_file()
