"""Memory of the factorised network as it is counted against what autograd saves, and against the resident set of real
training steps.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_videogpt.config.load import config_from_dict
from megatron_videogpt.objective.frame_prompt.factorised.activations import layer_bytes
from megatron_videogpt.objective.frame_prompt.factorised.options import variant_of_run
from megatron_videogpt.objective.work import Work
from tools.measure_memory import estimate, measure
from tools.memory_runs import Recipe

from .launch import REPOSITORY, torchrun

WORKER = str(REPOSITORY / "tests" / "parallel" / "saved_worker.py")
FRAMES, WORDS, WIDTH = 4, 5, 32
SMALL: dict[str, Any] = {
    "model": {
        "hidden_size": 96,
        "ffn_hidden_size": 208,
        "num_attention_heads": 4,
        "norm": "layer",
        "norm_epsilon": 1e-6,
        "activation": "gelu_tanh",
        "biases": True,
        "positions": "none",
    },
    "data": {"frames": FRAMES, "clips": [1, 1]},
}
OBJECTIVE = {"name": "frame_prompt_diffusion", "network": "factorised", "prompts": [1], "chunk": 3}
TEXT = {"kind": "text", "encoder": "t5", "encoder_path": "none", "width": WIDTH, "max_tokens": WORDS}
VARIANTS: dict[str, dict[str, Any]] = {
    "all": {"objective": OBJECTIVE, "condition": TEXT},
    "plain": {"objective": OBJECTIVE | {"factorised": {"enhance": "none", "mask_channel": False}}},
}
LAYOUTS: dict[int, list[dict[str, Any]]] = {
    1: [{"recompute": policy} for policy in ("none", "selective", "mlp", "full")],
    2: [{"tensor": 2}, {"tensor": 2, "sequence": True, "recompute": "selective"}, {"context": 2}],
}


@pytest.mark.parametrize("processes", LAYOUTS)
def test_a_layer_keeps_what_autograd_saves(processes: int, tmp_path: Path) -> None:
    cases = {
        f"{name} {precision} {json.dumps(layout)}": {
            **SMALL,
            **variant,
            "parallel": layout,
            "train": {"precision": precision},
        }
        for name, variant in VARIANTS.items()
        for precision in ("fp32", "bf16")
        for layout in LAYOUTS[processes]
        # What differs by precision or by pieces differs alike in every layout.
        if (name, precision) == ("all", "fp32") or layout.get("recompute") in ("none", "selective")
    }
    asked, answered = tmp_path / "asked.json", tmp_path / "answered.json"
    asked.write_text(json.dumps(cases))
    torchrun(processes, WORKER, str(asked), str(answered))
    answers = json.loads(answered.read_text())
    assert answers.keys() == cases.keys()
    for name, values in cases.items():
        config = config_from_dict(values)
        variant, tokens = variant_of_run(config), answers[name]["tokens"]
        layer = layer_bytes(config, variant, Work(tokens, 0.0, tokens), (FRAMES, WORDS))
        kept = layer.kept(config.parallel.recompute)
        assert kept == pytest.approx(answers[name]["bytes"], rel=0.01), name


SETTINGS = """parallel.tensor=2 train.micro_batch_size=1 train.global_batch_size=1 objective.prompts=[25]
optimizer.ema_decay=0 attention.backend=ranged""".split()
"""The longest prompt is every sample's."""
TEXTS = """condition.kind=text condition.encoder=t5 condition.encoder_path=none condition.width=4096
condition.max_tokens=120""".split()
RUNS = {
    "one layer": ["model.num_layers=1", "train.precision=fp32", "parallel.recompute=none"],
    "one layer, text": ["model.num_layers=1", "train.precision=fp32", "parallel.recompute=none", *TEXTS],
}
"""At the published width, with 33 frames of 256 patches."""


@pytest.mark.long
@pytest.mark.parametrize("name", RUNS)
def test_memory_is_the_measured_one(name: str) -> None:
    run = Recipe(str(REPOSITORY / "examples" / "vidgpt" / "base.toml"), [*SETTINGS, *RUNS[name]], 2)
    assert estimate(run).total == pytest.approx(max(measure(run)["bytes"]), rel=0.15)
