"""Options and closed forms of the factorised network: what is right, what is refused, the work of a sample."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from megatron_videogpt.config.schema import Config
from megatron_videogpt.objective.frame_prompt.factorised.variant import Variant
from megatron_videogpt.sequence.intervals import attended_pairs

GOOD = {
    "objective": {"name": "frame_prompt_diffusion", "network": "factorised", "prompts": [1, 9], "chunk": 8},
    "model": {
        "norm": "layer",
        "norm_epsilon": 1e-6,
        "activation": "gelu_tanh",
        "biases": True,
        "positions": "none",
        "hidden_size": 64,
        "num_attention_heads": 4,
    },
    "data": {"frames": 17, "clips": [1, 1]},
    "sample": {"clips": [8], "history": 1, "window": 17, "guidance": 1.0},
}
WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"parallel": {"pipeline": 2}}, "parallel.pipeline", "timestep network feeds every layer"),
    ({"parallel": {"recompute": "auto"}}, "parallel.recompute", "keep more than estimates of memory count"),
    ({"model": {"biases": False}}, "model.biases", "use model.biases=true"),
    ({"model": {"norm_epsilon": 1e-5}}, "model.norm_epsilon", "1e-06"),
    ({"model": {"num_query_groups": 2}}, "model.num_query_groups", "every head"),
    ({"objective": {"prompts": [1, 2, 9]}}, "objective.prompts", "the first counts several times"),
    ({"objective": {"prompts": [0, 9]}}, "objective.prompts", "attends frames of the prompt"),
    ({"objective": {"factorised": {"places": 16}}}, "objective.factorised.places", "use 17"),
    ({"objective": {"factorised": {"places": 0}}}, "objective.factorised.places", "at least 1"),
    ({"objective": {"factorised": {"time_scale": 0.0}}}, "objective.factorised.time_scale", "above 0"),
    ({"objective": {"factorised": {"prompt_step": 1000}}}, "objective.factorised.prompt_step", "from -1 to 999"),
    ({"objective": {"factorised": {"solver": "euler"}}}, "objective.factorised.solver", "ddpm"),
    ({"objective": {"prompt_noise": 0.1}}, "objective.prompt_noise", "objective.factorised.prompt_step"),
    ({"condition": {"kind": "class", "classes": ["a", "b"]}}, "condition.kind", "gives features"),
    ({"objective": {"factorised": {"time": "full"}}, "sample": {"cache": True}}, "sample.cache", "sample.cache=false"),
    ({"sample": {"clips": [12]}}, "sample.clips", "multiples of objective.chunk = 8"),
    ({"sample": {"time_shift": 2.0}}, "sample.time_shift", "left out"),
    ({"objective": {"network": "decoder", "factorised": {"places": 20}}}, "objective.network", "are set"),
]


def merged(change: dict[str, Any]) -> Config:
    from megatron_videogpt.config.load import config_from_dict

    def joined(below: Any, above: Any) -> Any:
        return (
            {key: joined(below.get(key), above[key]) if key in above else below[key] for key in below | above}
            if isinstance(below, dict) and isinstance(above, dict)
            else above
        )

    return config_from_dict(joined(GOOD, change))


def test_good_options_have_no_problem_and_a_network() -> None:
    from megatron_videogpt.config.check import find_problems
    from megatron_videogpt.objective.build import parameter_table
    from megatron_videogpt.plan.estimate import objective_work

    config = merged({})
    assert not find_problems(config, 1)
    assert "sides.merge.weight" in {rule.name for rule in parameter_table(config).rules}
    work = objective_work(config)
    found = work.largest((128, 128))
    assert found.tokens == 17 * found.scored // 8 and work.expected((128, 128)).tokens < found.tokens


@pytest.mark.parametrize(("change", "name", "words"), WRONG)
def test_wrong_options_are_named_with_a_fix(change: dict[str, Any], name: str, words: str) -> None:
    from megatron_videogpt.config.check import find_problems
    from megatron_videogpt.config.load import ConfigError

    try:
        lines = find_problems(merged(change), change.get("parallel", {}).get("pipeline", 1))
    except ConfigError as error:
        lines = list(error.problems)
    about = [line for line in lines if line.startswith(f"{name} = ") or name in line.split(":")[0]]
    assert len(about) == 1 and words in about[0], lines
    assert len(lines) == 1, lines


def test_work_of_plans_is_that_of_their_rows() -> None:
    from megatron_videogpt.data.plans import Plans, Sample
    from megatron_videogpt.objective.frame_prompt.factorised.objective import FactorisedPrompt
    from megatron_videogpt.objective.frame_prompt.factorised.work import FactorisedWork

    variant = Variant(places=12, text_width=5, text_tokens=6)
    objective = FactorisedPrompt(variant, 2, (1, 4), 3, 100)
    work = FactorisedWork(variant, 16, 9, (1, 4), 3, (0.0, 0.0))
    count, words = [9, 3, 5, 4, 1], [2, 6, 0, 3, 1]
    samples = [
        Sample(
            key,
            "",
            torch.zeros(frames, 4, 4, 6),
            None,
            (frames,),
            condition=torch.zeros(said, 5) if said else None,
            dropped=key == 3,
        )
        for key, (frames, said) in enumerate(zip(count, words))
    ]
    fields = dict.fromkeys(Plans.__annotations__, np.zeros(5, dtype=np.int64))
    fields |= {"key": np.arange(5), "count": np.array(count), "prefix": np.array(words)}
    fields |= {"height": np.full(5, 32), "width": np.full(5, 48)}
    found = work.of(Plans(**fields))
    for number, sample in enumerate(samples):
        row = objective.prepare([sample], 1)
        seen = attended_pairs(row.context["seen"].value)
        assert found.tokens[number] == row.length == objective.length(sample)
        assert found.pairs[number] == seen + sum(attended_pairs(mask.intervals) for mask in row.masks)
        assert found.scored[number] == len(row.scored_rows)
        again = objective.prepare([sample], 4)
        assert torch.equal(again.streams["patch"]["value"], row.streams["patch"]["value"])
