"""`check --data` on real clips: what it counts against the files themselves."""

from __future__ import annotations

import re
from pathlib import Path

import av
import pytest

from megatron_videogpt.__main__ import main
from megatron_videogpt.data.sources.files import EXTENSIONS

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "videogpt" / "stage3.toml"


def number(out: str, title: str, column: int = 1) -> float:
    """A cell of the first table row with this title."""
    row = next(line for line in out.splitlines() if re.match(rf"^│ *{title} *│", line))
    return float(row.split("│")[column + 1].strip().replace(",", ""))


def test_real_clips_are_counted(
    videos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short videos are left out by kind, the others' durations are those of their containers, and packing says what it
    gains.
    """
    monkeypatch.setenv("COLUMNS", "140")
    wide, narrow = [], 0
    for path in (path for path in videos.rglob("*") if path.suffix in EXTENSIONS):
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            if min(stream.width, stream.height) < 130:
                narrow += 1
            else:
                wide.append(stream.frames / float(stream.average_rate))
    common = [
        "check",
        str(EXAMPLE),
        "--data",
        "--gpus",
        "4",
        f"data.path={videos}",
        "codec.name=tiny",
        "train.global_batch_size=40",
    ]
    assert main([*common, "data.min_frames=2", "data.min_side=130", "data.validation_fraction=0.2"]) == 0
    plain = capsys.readouterr().out
    assert number(plain, "too_small") == narrow > 0
    assert number(plain, "videos") + number(plain, "held out for validation") == len(wide)
    assert number(plain, "longest") <= max(wide) + 0.1 and number(plain, "seconds, mean") > min(wide)
    assert number(plain, "frames", 4) == 48 and number(plain, "tokens", 4) <= 95 * 402
    budget = int(re.search(r"data.pack_tokens=(\d+)", plain).group(1))  # type: ignore[union-attr]
    assert budget >= number(plain, "tokens", 4)
    assert main([*common, "data.min_frames=2", "data.min_side=130", f"data.pack_tokens={2 * budget}"]) == 0
    packed = capsys.readouterr().out
    imbalance = "cost imbalance, max/mean rank"
    assert number(packed, imbalance) < 1.03 < number(packed, imbalance, 2) and "nothing to change" in packed
    assert main([*common, "data.path=/nowhere"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
