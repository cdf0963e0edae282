"""Sampling with the cache gives the same continuation in every layout: each rank keeps its own heads and layers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from .launch import torchrun

WORKER = "tests/parallel/cached_worker.py"
ALONE = {"cached": [], "uncached": ["sample.cache=false"]}
TWO = {
    "TP2": ["parallel.tensor=2"],
    "TP2+SP offload": ["parallel.tensor=2", "parallel.sequence=true", "sample.cache_offload=true"],
    "CP2": ["parallel.context=2"],
    "PP2": ["parallel.pipeline=2"],
    "PP2 VP2": ["parallel.pipeline=2", "parallel.virtual_pipeline=2"],
}


def test_every_layout_continues_alike(tmp_path: Path) -> None:
    found = {}
    for processes, cases in ((1, ALONE), (2, TWO)):
        (tmp_path / "cases.json").write_text(json.dumps(cases))
        torchrun(processes, WORKER, str(tmp_path / "cases.json"), str(tmp_path / "new.safetensors"))
        found.update(load_file(tmp_path / "new.safetensors"))
    for video in range(2):
        expected = found[f"uncached.{video}"]
        assert expected.shape[0] == 5 and float(expected.std()) > 0.1
        for name in ("cached", *TWO):
            assert float((found[f"{name}.{video}"] - expected).abs().max() / expected.abs().max()) == pytest.approx(
                0, abs=1e-5
            ), name
