"""Frame as prompt trains and samples in every layout as it does in one process; it resumes bit for bit, and in another
layout.
"""

from __future__ import annotations

from typing import Any

import pytest

from .layout_runs import RESUMED, SAVED, run_layouts
from .next_block_worker import BEFORE, STEPS

WORKER = "tests/parallel/frame_prompt_worker.py"
OPTIONS = """objective.name=frame_prompt_diffusion objective.prompts=[1,2,3] objective.chunk=2
objective.prompt_noise=0.1 condition.kind=class condition.classes=["a","b","c"] model.num_layers=4
model.hidden_size=32 model.ffn_hidden_size=48 model.num_attention_heads=4 model.dropout=0.1
data.frames=5 data.min_frames=3 data.clips=[1,1] train.platform=cpu train.precision=fp32
train.threads=1 train.global_batch_size=4 train.micro_batch_size=2 attention.backend=ranged
optimizer.lr=1e-2 optimizer.eps=1e-3 optimizer.warmup_steps=2 checkpoint.async_save=false
sample.history=1 sample.clips=[2,2,2] sample.window=4 sample.steps=2 sample.guidance=2.0""".split()
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
    1: {"one": "", "selective": "recompute=selective"},
    4: {"TP2 CP2": "tensor=2 context=2"},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """See `run_layouts`."""
    return run_layouts(tmp_path_factory.mktemp("frame_prompt"), WORKER, OPTIONS, LAYOUTS, RESUMED)


def test_every_layout_trains_as_one_process(runs: Any) -> None:
    wanted = runs["one"]["numbers"]
    names = {"loss", "norm", *(f"loss_t{low / 5:.1f}-{(low + 1) / 5:.1f}" for low in range(5))}
    assert len(wanted) == STEPS and all({"loss", "norm"} <= numbers.keys() <= names for numbers in wanted)
    for name in runs.keys() - {"one"}:
        steps = runs[name]["numbers"]
        assert len(steps) == (STEPS - BEFORE if name in RESUMED else STEPS), name
        for number, (ours, theirs) in enumerate(zip(steps[::-1], wanted[::-1])):
            assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6), (name, STEPS - number)


def test_every_layout_samples_as_one_process(runs: Any) -> None:
    wanted = runs["one"]["sampled"]
    assert wanted["keep"][:4] == pytest.approx(wanted["recompute"][:4], rel=1e-5), "the window stands"
    assert wanted["keep"][4:] != pytest.approx(wanted["recompute"][4:], rel=1e-3, abs=1e-3)
    for name in runs.keys() - {"one"}:
        for end, values in wanted.items():
            assert runs[name]["sampled"][end] == pytest.approx(values, rel=1e-4, abs=1e-4), (name, end)


def test_it_resumes_bit_for_bit(runs: Any) -> None:
    resumed, straight = runs["resumed"], runs[SAVED]
    assert resumed["numbers"] == straight["numbers"][BEFORE:] and resumed["weights"] == straight["weights"]
    assert resumed["weights"] != runs["one"]["weights"]
