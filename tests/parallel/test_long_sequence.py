"""A sequence of the paper's length goes through TP2 x CP2 without anything of L x L elements, and its loss is that of
one process.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from .launch import REPOSITORY, run


def measured(output: Path, *arguments: str, timeout: float = 300) -> list[dict[str, Any]]:
    """What every process of `tools/long_sequence.py` reported."""
    result = run(
        [sys.executable, str(REPOSITORY / "tools" / "long_sequence.py"), "--json", str(output), *arguments], timeout
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(output.read_text())


ONE_PROCESS = ("--tensor", "1", "--context", "1")


def test_short_sequence_and_a_dense_control(tmp_path: Path) -> None:
    """13 noisy frames of 82 tokens and 12 clean ones; the dense backend's scores must be seen."""
    short = ("--clips", "6,6,1", "--grid", "8,10")
    tokens = (13 + 12) * 82
    split, whole = (
        measured(tmp_path / "split", *short),
        measured(tmp_path / "whole", *short, *ONE_PROCESS, "--attention", "reference"),
    )
    assert [one["tokens"] for one in split] == [tokens] * 4
    assert split[0]["padded"] == tokens + -tokens % 4 == 2052
    assert split[0]["loss"] == pytest.approx(whole[0]["loss"], rel=1e-5)
    assert split[0]["norm"] == pytest.approx(whole[0]["norm"], rel=1e-5)
    assert whole[0]["largest"] >= tokens**2 and whole[0]["shape"][-2:] == [tokens, tokens], (
        "the watch must see what it is there for"
    )
    assert all(one["backward"] > 0 for one in split), "the watch must see the backward pass"


@pytest.mark.long
def test_eighty_frames(tmp_path: Path) -> None:
    split = measured(tmp_path / "split", "--recompute", "full", "--layers", "1", timeout=1800)
    assert len(split) == 4
    for one in split:
        # 80 noisy frames and 79 clean ones of 12 x 20 patches and two hint tokens.
        assert one["tokens"] == (80 + 79) * 242 == 38_478 and one["padded"] == 38_480
        assert one["backward"] > 0
        assert one["largest"] < 0.02 * one["tokens"] ** 2
        # Memory that kernels hold on their own is not seen by the watch: even one byte per pair would take 1.4 GiB;
        # layers are recomputed, so that what they keep does not hide it.
        assert one["peak"] - one["before"] < one["tokens"] ** 2
    whole = measured(tmp_path / "whole", *ONE_PROCESS, "--layers", "1", timeout=1800)
    assert split[0]["loss"] == pytest.approx(whole[0]["loss"], rel=1e-5)
    assert split[0]["norm"] == pytest.approx(whole[0]["norm"], rel=1e-5)
