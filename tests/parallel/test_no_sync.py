"""No rank of any layout waits for its device in a step, nor computes or sends anything in float64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .launch import REPOSITORY, torchrun

WORKER = str(REPOSITORY / "tests" / "parallel" / "no_sync_worker.py")
MODEL = {
    "num_layers": 4,
    "hidden_size": 32,
    "ffn_hidden_size": 48,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "position_table_size": 8,
}
LAYOUTS: list[dict[str, Any]] = [
    {"overlap_grad_reduce": True, "overlap_param_gather": True},
    {"tensor": 2},
    {"tensor": 2, "sequence": True, "recompute": "mlp"},
    {"context": 2},
    {"pipeline": 2},
    {"pipeline": 2, "virtual_pipeline": 2},
]


def test_no_layout_waits_but_for_rows_that_differ_in_length(tmp_path: Path) -> None:
    train = {"precision": "fp32", "global_batch_size": 2}
    cases = [
        ({"model": MODEL, "parallel": layout, "train": train, "attention": {"backend": "reference"}}, [4, 4])
        for layout in LAYOUTS
    ]
    ragged = [(cases[4][0], [4, 5])]
    (tmp_path / "cases.json").write_text(json.dumps(cases + ragged))
    torchrun(2, WORKER, str(tmp_path / "cases.json"), str(tmp_path / "found.json"))
    *found, differing = json.loads((tmp_path / "found.json").read_text())
    for layout, places in zip(LAYOUTS, found, strict=True):
        # megatron-core compares two states of the CPU's generator, which are on the CPU anywhere.
        assert [place for place in places if "tensor_parallel/random.py" not in place] == [], layout
    # The control: stages that do not know each other's lengths read them.
    assert any(place.startswith("Tensor.tolist") and "p2p_communication.py" in place for place in differing)
