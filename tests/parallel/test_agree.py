"""Rank 0 decides what is on a shared file system, and what one rank alone suffers ends no rank in a collective that the
others are not in.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from .launch import REPOSITORY, torchrun

WORKER = str(REPOSITORY / "tests" / "parallel" / "agree_worker.py")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks came to, by case."""
    folder = tmp_path_factory.mktemp("agree")
    torchrun(2, WORKER, str(folder), timeout=600)
    return [json.loads((folder / f"rank_{rank}.json").read_text()) for rank in range(2)]


def test_ranks_agree_on_every_outcome(found: list[dict[str, Any]]) -> None:
    assert found[0] == found[1] and len(found[0]) > 25


def test_the_checkpoint_is_the_one_that_rank_0_sees(found: list[dict[str, Any]]) -> None:
    newest = found[0]["afterwards later"].rpartition(" ")[2]
    assert newest > "step_00000010"
    assert all(found[0][case] == newest for case in ("stale", "stale find", "read by rank 0"))
    assert found[0]["new run"] == "None"


def test_who_does_not_see_it_is_named(found: list[dict[str, Any]]) -> None:
    assert found[0]["late"] == found[0]["stale"] and found[0]["seen"] == "step_00000001"
    for case in ("unseen", "unseen newest"):
        assert found[0][case].startswith("RunError: rank 1 of 2: ") and found[0]["stale"] in found[0][case], found[0][
            case
        ]
        assert "files are not seen there; every node needs the same" in found[0][case]
    assert "no complete checkpoint of step 7; it has: step_00000001, step_00000002" in found[0]["no such step"]
    assert "gone: no such folder" in found[0]["no such run"]
    assert "step_00000001: is damaged" in found[0]["damaged"]
    assert found[0]["another codec"].startswith("RunError: rank 1 of 2: codec.name = tiny: fingerprint ")
    trained = found[0]["trained with another codec"]
    assert trained.startswith("RunError: rank 1 of 2: ") and "fingerprint codec, this one has other" in trained


def test_a_save_that_fails_on_one_rank_fails_on_all_and_leaves_the_one_before(found: list[dict[str, Any]]) -> None:
    cases = found[0]
    assert (
        cases["foreground"] == "step_00000001, newest step_00000001"
        and cases["background"] == "None, newest step_00000002"
    )
    wrong = {
        name: text
        for name, text in cases.items()
        if name.endswith((" now", " later")) and not name.startswith("afterwards")
    }
    assert len(wrong) >= 4, "metadata and format are written by rank 0 in every release"
    for name, text in wrong.items():
        if name.endswith("now"):
            assert (
                text.startswith("RunError: ")
                and "No space left on device" in text
                and "the newest complete one is still step_00000002" in text
            )
        else:
            assert text in ("failed, newest step_00000002", "None, newest step_00000002"), (name, text)
    for number in range(2):
        assert cases[f"killed writer on {number}"] == "failed, newest step_00000002"
        assert cases[f"no process on {number}"] == "None, newest step_00000002"
        assert cases[f"writer gone on {number}"] is True, "it would hold the run's output open for ever"
        assert "could not be saved" in cases[f"failing writer on {number}"]
    for name in ("publish", "config_to_toml", "remove_leftovers"):
        assert "No space left on device" in cases[name] and "still step_00000002" in cases[name]
    assert "an unknown number of MiB of disk space are free" in cases["disk_usage"]


def test_the_next_save_is_whole(found: list[dict[str, Any]]) -> None:
    """An answer of a writer that nobody waited for must not be taken for that of the next."""
    for case in ("afterwards now", "afterwards later"):
        assert "step_000000" in found[0][case] and "failed" not in found[0][case]
    assert found[0]["loaded"] is True
    assert (
        found[0]["obstacle"].startswith("RunError: rank 1 of 2: checkpoint.async_save = true: ")
        and "async_save=false" in found[0]["obstacle"]
    )
