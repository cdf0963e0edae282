"""Blocks of codes are drawn alike in every layout, the vocabulary split among ranks, too."""

from __future__ import annotations

import json
from pathlib import Path

from .block_sampling_worker import LEVELS
from .launch import torchrun

WORKER = "tests/parallel/block_sampling_worker.py"
COMMON = """objective.name=next_block_prediction objective.block=4 objective.layout=hybrid codec.name=fsq
condition.kind=class condition.classes=["a","b","c"] model.patch_size=1 model.num_layers=4 model.hidden_size=32
model.ffn_hidden_size=48 model.num_attention_heads=4 model.norm=layer model.activation=gelu model.biases=true
model.positions=learned model.max_position_embeddings=160 data.frames=4 data.clips=[1,1] data.source=videos data.path=.
data.size_multiple=32 train.platform=cpu train.precision=fp32 train.threads=1 attention.backend=ranged
sample.clips=[2,1] sample.window=4 sample.guidance_ratio=0.7 sample.top_k=40 sample.top_p=0.9""".split()
ALONE = {"cached": "", "uncached": "sample.cache=false"}
TWO = {
    "TP2": "parallel.tensor=2",
    "TP2+SP offload": "parallel.tensor=2 parallel.sequence=true sample.cache_offload=true",
    "CP2": "parallel.context=2",
    "PP2": "parallel.pipeline=2",
    "PP2 VP2": "parallel.pipeline=2 parallel.virtual_pipeline=2",
}


def test_every_layout_draws_the_same(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"levels": LEVELS}))
    common = [*COMMON, f"codec.path={tmp_path}"]
    found = {}
    for processes, layouts in ((1, ALONE), (2, TWO)):
        cases = {name: [*common, *words.split()] for name, words in layouts.items()}
        (tmp_path / "cases.json").write_text(json.dumps(cases))
        torchrun(processes, WORKER, str(tmp_path / "cases.json"), str(tmp_path / "ids.json"))
        found.update(json.loads((tmp_path / "ids.json").read_text()))
    expected = found["uncached"]
    assert [len(ids) for ids in expected] == [3 * 16, 3 * 32] and len(set(expected[0])) > 8
    assert all(ids == expected for ids in found.values()), found
