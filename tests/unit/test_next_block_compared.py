"""Runs of next block prediction beside each other: how many tokens are right where a video moves, and weights whose ids
mean something else.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megatron_videogpt.config.load import config_from_dict
from megatron_videogpt.config.schema import Config
from megatron_videogpt.errors import RunError
from megatron_videogpt.evaluate.tokens import score_tokens
from megatron_videogpt.objective.build import differences
from tests.tokenizer import SMALL, saved


def test_tokens_that_are_right_where_a_video_moves() -> None:
    true = torch.tensor([[[9, 9], [9, 9]], [[1, 2], [3, 4]], [[1, 5], [3, 4]], [[6, 5], [3, 7]]])
    # One given frame more than is looked at; of the 8 predicted tokens 1, then 3, are not as in the last given one.
    drawn = torch.tensor([[[1, 5], [3, 0]], [[6, 2], [3, 4]]])
    score = score_tokens([drawn], [true], 2)
    assert score.changed == pytest.approx(2 / 4) and score.moving == pytest.approx(4 / 8)
    assert score.right == pytest.approx(5 / 8) and score.repeated == pytest.approx(4 / 8)
    still = score_tokens([true[:1], true[1:2]], [true[:1].repeat(2, 1, 1), true[1:2].repeat(2, 1, 1)], 1)
    assert math.isnan(still.changed) and (still.moving, still.right, still.repeated) == (0, 1, 1)
    with pytest.raises(ValueError, match="2 of a video of"):
        score_tokens([drawn], [true[:3]], 2)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    codec = saved(tmp_path_factory.mktemp("meaning") / "codec", SMALL)
    return config_from_dict(
        {
            "objective": {"name": "next_block_prediction", "block": 4, "layout": "hybrid"},
            "codec": {"name": "fsq", "path": str(codec)},
            "model": {"patch_size": 1},
            "data": {"source": "physics", "frames": 3, "clips": [1, 1]},
            "condition": {"kind": "class", "classes": ["fall", "roll"]},
        }
    )


def test_ids_that_mean_something_else_are_told_before_anything_is_loaded(config: Config) -> None:
    from megatron_videogpt.checkpoint.checks import check_same_model, check_same_shapes
    from megatron_videogpt.checkpoint.saved import Saved

    def other(**options: object) -> Config:
        return replace(config, objective=replace(config.objective, **options))

    plain = replace(config, condition=replace(config.condition, kind="none", classes=()))
    gone = replace(config, codec=replace(config.codec, path="/no/longer/there"))
    for there in (config, gone, other(block_shape=(1, 2, 2))):
        assert differences(there, config) == []
    runs = [replace(other(layout="unconditional", block=size), condition=plain.condition) for size in (4, 8)]
    assert differences(*runs) == []
    wrong = {
        "objective.block is 8 there and 4 here, which moves the ids of the codes": other(block=8),
        "objective.layout is given_first_block there and hybrid here": other(layout="given_first_block"),
        "condition.kind is none there and class here, whose ids stand before": plain,
    }
    for message, there in wrong.items():
        (found,) = differences(there, config)
        assert found.startswith(message)
        for check in (check_same_model, check_same_shapes):
            with pytest.raises(RunError, match="was trained otherwise: (objective|condition)"):
                check(Saved(Path("run"), {}, there), config)
