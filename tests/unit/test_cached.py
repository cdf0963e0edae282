"""The cache of results that depend on versions and sources only."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cached import cached


def test_a_result_is_made_once_for_versions_and_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source, made = tmp_path / "kernel.py", []

    def value(*versions: str) -> int:
        return cached("kernels", versions, [source], lambda: made.append(1) or len(made))

    source.write_text("one")
    assert [value("1"), value("1"), value("2"), value("1")] == [1, 1, 2, 1]
    source.write_text("two")
    assert [value("1"), value("1")] == [3, 3]
    files = list((tmp_path / "cache" / "megatron_videogpt" / "kernels").iterdir())
    assert len(files) == 3 and {path.suffix for path in files} == {".json"}
    # Half a file, as a full disk would leave it.
    for path in files:
        path.write_text("{")
    assert [value("1"), value("1")] == [4, 4]
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    assert [value("1"), value("1")] == [5, 6]
