"""A configuration's memory is measured on the rows that `check` estimates."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from megatron_videogpt.data.plans import Sample
from megatron_videogpt.errors import UserError
from megatron_videogpt.objective.build import build_objective
from tools.memory_runs import Recipe

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SMALL = ("data.frames=4", "data.clips=[1, 2]", "data.longest_side=32", "data.size_multiple=32", "data.max_aspect=1.0")
# file, overrides: tokens of the longest sample, by hand
ROWS = {
    # 80 blocks of 16 codes, of which the last is no input.
    ("nbp/k600_700m.toml", ()): 79 * 16,
    # 8 ids of a text before all 80 blocks, the first of which is single steps.
    ("nbp/ucf_700m.toml", ("train.precision=fp32",)): 8 + 80 * 16,
    # 4 frames of 2x2 patches and two tokens more, in two clips: the last frame has no clean copy.
    ("videogpt/stage1.toml", (*SMALL, "parallel.recompute=none", "train.precision=fp32")): 7 * 6,
}


@pytest.mark.parametrize(("file", "overrides"), ROWS)
def test_rows_are_the_ones_that_check_estimates(file: str, overrides: tuple[str, ...]) -> None:
    recipe = Recipe(str(EXAMPLES / file), list(overrides), 1)
    config = recipe.settings()
    clips, latents = tuple(recipe.clips(config)), recipe.latents(config)
    sample = Sample(key=1, name="1", mean=torch.zeros(sum(clips), *latents), logvar=None, clips=clips)
    row = build_objective(config).prepare([sample] * config.train.micro_batch_size, 1)
    tokens = ROWS[file, overrides] * config.train.micro_batch_size
    assert row.length == recipe.work(config).tokens == tokens


def test_what_only_a_run_decides_is_asked_for() -> None:
    with pytest.raises(UserError, match=r"^parallel\.recompute = auto: .*; use parallel\.recompute=none"):
        Recipe(str(EXAMPLES / "videogpt/stage1.toml"), list(SMALL), 1).settings()
    packed = ["parallel.recompute=none", "train.precision=fp32", "data.pack_tokens=4096"]
    with pytest.raises(UserError, match=r"^data\.pack_tokens = 4096: .*; use 0$"):
        Recipe(str(EXAMPLES / "videogpt/stage1.toml"), [*SMALL, *packed], 1).settings()
