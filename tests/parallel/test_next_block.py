"""Next block prediction trains in every layout as it does in one process: loss, accuracies, loss by frame, gradient
norm; it resumes bit for bit, and in another layout.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from .launch import torchrun
from .next_block_worker import BEFORE, LEVELS, STEPS

WORKER = "tests/parallel/next_block_worker.py"
COMMON = """objective.name=next_block_prediction objective.block=4 codec.name=fsq model.patch_size=1 model.num_layers=4
model.hidden_size=32 model.ffn_hidden_size=48 model.num_attention_heads=4 data.physics.size=32 data.frames=3
data.min_frames=2 data.clips=[1,1] data.source=videos data.path=. data.size_multiple=32 train.platform=cpu
train.precision=fp32 train.threads=1 train.global_batch_size=4 train.micro_batch_size=2 attention.backend=ranged
optimizer.lr=1e-2 optimizer.eps=1e-3 optimizer.warmup_steps=2 optimizer.schedule=nbp_cosine optimizer.weight_decay=0.1
checkpoint.async_save=false""".split()
MODELS = {
    "like GPT-2": """objective.layout=hybrid condition.kind=class condition.classes=["a","b","c"] model.norm=layer
    model.activation=gelu model.biases=true model.positions=learned model.max_position_embeddings=64
    model.dropout=0.1""".split(),
    "like Phi-3": ["objective.block_shape=[1,2,2]"],
}
FIRST = "like GPT-2"
LAYOUTS: dict[int, dict[str, str]] = {
    2: {
        "TP2": "tensor=2",
        "TP2+SP": "tensor=2 sequence=true",
        "PP2": "pipeline=2",
        "PP2 VP2": "pipeline=2 virtual_pipeline=2",
        "CP2": "context=2",
        "DP2": "",
        "TP2 full": "tensor=2 recompute=full",
        "CP2 mlp": "context=2 recompute=mlp",
    },
    1: {"one": ""},
    4: {"TP2+SP PP2": "tensor=2 sequence=true pipeline=2 recompute=selective"},
}
FEW = ("one", "TP2+SP", "PP2 VP2", "CP2 mlp")
"""Of the second model, whose only difference to layouts is its backbone."""
SAVED = "TP2+SP"
"""The layout that leaves a checkpoint."""
RESUMED = {"resumed": SAVED, "in CP2": "CP2", "in PP2": "PP2", "in one": "one"}
"""What goes on from it, and where; the last in another launch."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Layout -> model -> what the worker found; those of `RESUMED` have the last steps only."""
    folder = tmp_path_factory.mktemp("next_block")
    (folder / "config.json").write_text(json.dumps({"levels": LEVELS}))
    found: dict[str, dict[str, Any]] = {}
    for processes, layouts in LAYOUTS.items():
        cases: dict[str, Any] = {}

        def case(name: str, layout: str, model: str, save: bool = False, load: bool = False) -> None:
            options = [*COMMON, *MODELS[model], f"codec.path={folder}"]  # noqa: B023
            options += [f"parallel.{option}" for option in layout.split()]
            checkpoint = str(folder / model.replace(" ", "_"))
            held = {"save": checkpoint if save else None, "load": checkpoint if load else None}
            cases[f"{name}/{model}"] = {"options": options, **held}  # noqa: B023

        for model in MODELS:
            for name, layout in layouts.items():
                if model == FIRST or name in FEW:
                    case(name, layout, model, save=name == SAVED)
            for name, layout in RESUMED.items():
                if layout in layouts:
                    case(name, layouts[layout], model, load=True)
        (folder / "cases.json").write_text(json.dumps(cases))
        torchrun(processes, WORKER, str(folder / "cases.json"), str(folder / "found.json"))
        for key, answer in json.loads((folder / "found.json").read_text()).items():
            name, model = key.split("/")
            found.setdefault(name, {})[model] = answer
    return found


@pytest.mark.parametrize("model", MODELS)
def test_every_layout_trains_as_one_process(runs: Any, model: str) -> None:
    wanted = runs["one"][model]["numbers"]
    names = {"loss", "norm", "accuracy_top1", "accuracy_top5", "loss_frame0", "loss_frame1", "loss_frame2"}
    assert len(wanted) == STEPS and all(numbers.keys() == names for numbers in wanted)
    assert wanted[0]["loss"] - wanted[-1]["loss"] > 0.05
    for name in runs.keys() - {"one"}:
        if model not in runs[name]:
            continue
        steps = runs[name][model]["numbers"]
        assert len(steps) == (STEPS - BEFORE if name in RESUMED else STEPS), name
        for number, (ours, theirs) in enumerate(zip(steps[::-1], wanted[::-1])):
            assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6), (name, STEPS - number)


@pytest.mark.parametrize("model", MODELS)
def test_it_resumes_bit_for_bit(runs: Any, model: str) -> None:
    resumed, straight = runs["resumed"][model], runs[SAVED][model]
    assert resumed["numbers"] == straight["numbers"][BEFORE:] and resumed["weights"] == straight["weights"]
    assert resumed["weights"] != runs["one"][model]["weights"]
