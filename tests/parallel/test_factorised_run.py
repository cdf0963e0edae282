"""The factorised network of frame as prompt trains and samples in every layout as it does in one process; it resumes
bit for bit, and in another layout.
"""

from __future__ import annotations

from typing import Any

import pytest

from .layout_runs import RESUMED, SAVED, run_layouts
from .next_block_worker import BEFORE, STEPS

WORKER = "tests/parallel/factorised_run_worker.py"
OPTIONS = """objective.name=frame_prompt_diffusion objective.network=factorised objective.prompts=[1,3]
objective.chunk=2 objective.factorised.places=5 condition.kind=text condition.encoder=words
model.norm=layer model.activation=gelu_tanh
model.biases=true model.positions=none model.norm_epsilon=1e-6 model.num_layers=2 model.hidden_size=32
model.ffn_hidden_size=48 model.num_attention_heads=4 data.frames=5 data.min_frames=3 data.clips=[1,1]
train.platform=cpu train.precision=fp32 train.threads=1 train.global_batch_size=4 train.micro_batch_size=2
attention.backend=ranged optimizer.lr=1e-2 optimizer.eps=1e-3 optimizer.warmup_steps=2 checkpoint.async_save=false
sample.history=1 sample.clips=[2,4] sample.window=5 sample.steps=3 sample.guidance=2.0""".split()
LAYOUTS: dict[int, dict[str, str]] = {
    2: {
        "TP2": "tensor=2",
        "TP2+SP": "tensor=2 sequence=true",
        "CP2": "context=2",
        "DP2": "",
        "TP2 full": "tensor=2 recompute=full",
    },
    1: {"one": "", "selective": "recompute=selective"},
    4: {"TP2 CP2": "tensor=2 context=2 recompute=mlp"},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """See `run_layouts`."""
    return run_layouts(tmp_path_factory.mktemp("factorised"), WORKER, OPTIONS, LAYOUTS, RESUMED)


def test_every_layout_trains_as_one_process(runs: Any) -> None:
    wanted = runs["one"]["numbers"]
    assert len(wanted) == STEPS and all({"loss", "norm", "noise_error", "variance_bits"} <= n.keys() for n in wanted)
    assert all(n["loss"] == pytest.approx(n["noise_error"] + n["variance_bits"], rel=1e-6) for n in wanted)
    for name in runs.keys() - {"one"}:
        steps = runs[name]["numbers"]
        assert len(steps) == (STEPS - BEFORE if name in RESUMED else STEPS), name
        for number, (ours, theirs) in enumerate(zip(steps[::-1], wanted[::-1])):
            assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6), (name, STEPS - number)


@pytest.mark.parametrize("end", ["keep", "recompute"])
def test_every_layout_samples_as_one_process(runs: Any, end: str) -> None:
    """With a cache, past the window's end, and without one."""
    wanted = runs["one"][end]
    # Of a model that has hardly learned: numbers of all sizes, whose rounding is that of the largest.
    largest = max(map(abs, wanted))
    for name in runs.keys() - {"one"}:
        assert runs[name][end] == pytest.approx(wanted, rel=2e-4, abs=1e-6 * largest), name


def test_it_resumes_bit_for_bit(runs: Any) -> None:
    resumed, straight = runs["resumed"], runs[SAVED]
    assert resumed["numbers"] == straight["numbers"][BEFORE:] and resumed["weights"] == straight["weights"]
    assert resumed["weights"] != runs["one"]["weights"]
