"""NVIDIA Apex's accumulation of weight gradients, over a stand-in of its extension (tests/nvidia): the gradients of
doing without, to rounding.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .launch import REPOSITORY, cli, interpreter, release, run, torchrun
from .test_resume import CONFIG

WORKER = str(REPOSITORY / "tests" / "parallel" / "engine_worker.py")
MODEL = ("model.num_layers=2", "model.num_attention_heads=4", "model.num_query_groups=2")
FP32, BF16 = "train.precision=fp32", "train.precision=bf16"
SP = ("parallel.tensor=2", "parallel.sequence=true")
ONE = {"fp32": [*MODEL, FP32], "bf16": [*MODEL, BF16, "parallel.overlap_grad_reduce=false"]}
MANY = {
    # Four and two micro-batches of each rank: gradients of all of them meet in the buffer.
    "TP2, sequence parallel": [*MODEL, FP32, *SP, "train.micro_batch_size=2"],
    "TP2, sequence parallel, bf16": [*MODEL, BF16, *SP, "train.micro_batch_size=4"],
    "TP2, biases": [*MODEL, FP32, *SP, "model.biases=true", "model.activation=gelu"],
    "DP2, selective": [*MODEL, FP32, "parallel.recompute=selective"],
    "PP2 x VP2, full": [
        *MODEL, FP32, "model.num_layers=4", "parallel.pipeline=2", "parallel.virtual_pipeline=2",
        "parallel.recompute=full",
    ],
    "CP2": [*MODEL, FP32, "parallel.context=2"],
}  # fmt: skip
LIMITS = {FP32: 1e-6, BF16: 4e-3}
"""Of the first step's gradients together: without the kernel each is rounded to bf16 before it is added up."""


def check(output: Path, layouts: dict[str, list[str]]) -> None:
    found = json.loads(output.read_text(encoding="utf-8"))
    assert found["megatron"] == release() and found["layouts"].keys() == layouts.keys()
    for name, result in found["layouts"].items():
        precision = next(option for option in layouts[name] if option in LIMITS)
        assert result["calls"][0] == 0 < result["calls"][1], name
        assert result["gradients"] <= LIMITS[precision], (name, result["gradients"])
        assert (result["gradients"] > 0) or precision == FP32, "bf16 is rounded once less"
        for without, with_it in (result["losses"], result["norms"]):
            assert with_it == pytest.approx(without, rel=1e-5 if precision == FP32 else 1e-2), name


def test_one_process(tmp_path: Path) -> None:
    output = tmp_path / "found.json"
    done = run(interpreter(WORKER, "apex", output, json.dumps(ONE)), cold=True)
    assert done.returncode == 0, done.stderr[-3000:]
    check(output, ONE)


@pytest.mark.long
@pytest.mark.parametrize("what", ["apex", "both"])
def test_layouts(what: str, tmp_path: Path) -> None:
    """Alone, and with Transformer Engine's layers, which do the same by themselves."""
    output = tmp_path / "found.json"
    layouts = MANY
    if what == "both":
        layouts = {name: MANY[name] for name in ("TP2, sequence parallel", "TP2, sequence parallel, bf16")}
    torchrun(2, WORKER, what, str(output), json.dumps(layouts), cold=True, timeout=1500)
    if what == "apex":
        check(output, layouts)
        return
    for name, result in json.loads(output.read_text(encoding="utf-8"))["layouts"].items():
        assert result["gradients"] <= (1e-5 if FP32 in layouts[name] else 2e-2), (name, result["gradients"])


def test_it_is_refused_where_it_is_not() -> None:
    done = cli("train", CONFIG, "parallel.gradient_accumulation_fusion=on")
    assert done.returncode != 0
    assert "NVIDIA Apex's kernel is for NVIDIA GPUs, and this is cpu" in done.stderr.splitlines()[-1]
