"""Videos of two lengths in one row of next block prediction, through a whole network."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from megatron_videogpt.config.load import config_from_dict
from megatron_videogpt.data.plans import Sample
from megatron_videogpt.objective.base import ONLY
from tests.unit.test_next_block import LEVELS, options, sample_of
from tools.measuring.networks import spread

PACKED = {
    "hybrid, runs of the raster order": ({"layout": "hybrid", "block": 4}, {"positions": "learned"}),
    "hybrid, blocks of a shape": ({"layout": "hybrid", "block": 4, "block_shape": [1, 2, 2]}, {"positions": "rope"}),
    "unconditional": ({"block": 8}, {"positions": "rope"}),
}


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("name", PACKED)
def test_videos_of_two_lengths_in_a_row_lose_what_they_lose_apart(name: str, tmp_path: Path) -> None:
    """Loss, its parts and every gradient, through a whole network."""
    from megatron_videogpt.model.init import load_released
    from megatron_videogpt.objective.build import build_network, build_objective
    from megatron_videogpt.platforms import activate

    (tmp_path / "config.json").write_text(json.dumps({"levels": LEVELS}))
    objective_options, model = PACKED[name]
    sizes = {"num_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "ffn_hidden_size": 24, "patch_size": 1}
    classes = {"kind": "class", "classes": ["a", "b", "c"]} if "hybrid" in name else {}
    config = config_from_dict(
        options(
            objective=objective_options,
            model=sizes | model | {"max_position_embeddings": 96},
            condition=classes,
            train={"precision": "fp32"},
            codec={"path": str(tmp_path)},
        )
    )
    objective, network = build_objective(config), build_network(config, len(LEVELS), activate("cpu"), "ranged")
    load_released(network, config.model, partial(spread, config=config, channels=len(LEVELS)))

    def lost(samples: list[Sample]) -> tuple[Tensor, list[Tensor]]:
        network.zero_grad()
        row = objective.prepare(samples, 8)
        score = objective.score(network(row), row, ONLY)
        score.total.backward()
        grads = [parameter.grad.clone() for parameter in network.parameters()]
        return torch.cat([score.total.detach().view(1), score.sums]), grads

    told = {"condition": torch.tensor([2])} if classes else {}
    samples = [sample_of((2, 4, 4), 1, **told), sample_of((5, 4, 4), 2, **told), sample_of((3, 4, 4), 3, **told)]
    (together, gradients), apart = lost(samples), [lost([sample]) for sample in samples]
    assert torch.allclose(together, sum(total for total, _ in apart), rtol=1e-6)
    for number, ours in enumerate(gradients):
        theirs = sum(grads[number] for _, grads in apart)
        assert float((ours - theirs).abs().max()) <= 1e-5 * float(theirs.abs().max()), number
