"""Pictures that lie on their side, or are mirrored, come upright as prompts: EXIF's eight orientations by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from megatron_videogpt.sample.prompts import Source, read_prompt
from tests.fakes import Unshuffle

from .test_animated_prompts import BLUE, GREEN, MOVING, RED, WHITE, quarters, save

UPRIGHT = ["RG/B.", "GR/.B", ".B/GR", "B./RG", "RB/G.", "BR/.G", ".G/BR", "G./RB"]
"""A picture stored as red, green / blue, white, as EXIF's orientations 1 to 8 mean it: where the first stored row and
the first stored column belong is top left, top right, bottom right, bottom left, then, for rows that are columns, left
top, right top, right bottom, left bottom.
"""


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tiff", "moving.webp", "moving.png"])
def test_all_orientations_come_upright(tmp_path: Path, ending: str) -> None:
    stored = np.zeros((32, 64, 3), np.uint8)
    stored[:16, :32], stored[:16, 32:], stored[16:, :32], stored[16:, 32:] = RED, GREEN, BLUE, WHITE
    for orientation, expected in enumerate(UPRIGHT, 1):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / f"{orientation}.{ending}"
        if "moving" in ending:
            # Frames 1 to 4 are given, of which the second is this picture.
            save(path, [stored, stored[::-1]] * 5, exif=exif)
        else:
            Image.fromarray(stored).save(path, exif=exif)
        frames = read_prompt(Source("x", path), MOVING, Unshuffle()).condition
        assert len(frames) == (4 if "moving" in ending else 1)
        assert frames.shape[1:3] == ((16, 32) if orientation < 5 else (32, 16)), path
        assert quarters(frames[1 if "moving" in ending else 0]) == expected, path
