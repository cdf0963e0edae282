"""Transformer Engine's layers, over a stand-in with the signatures of the real package (tests/nvidia): the same names,
numbers and checkpoints as with the local layers.
"""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from .launch import REPOSITORY, cli, interpreter, release, run, torchrun
from .test_resume import CONFIG, losses

WORKER, RUN = (str(REPOSITORY / "tests" / "parallel" / name) for name in ("engine_worker.py", "engine_run.py"))
MODEL = ("model.num_layers=2", "model.num_attention_heads=4", "model.num_query_groups=2", "train.precision=fp32")
OTHER = ("model.norm=layer", "model.activation=gelu", "model.biases=true")
ONE = {"plain": [*MODEL], "norms, biases": [*MODEL, *OTHER]}
MANY = {
    "TP2": [*MODEL, "parallel.tensor=2"],
    "TP2, sequence parallel": [*MODEL, "parallel.tensor=2", "parallel.sequence=true"],
    "TP2, sequence parallel, norms, biases": [*MODEL, *OTHER, "parallel.tensor=2", "parallel.sequence=true"],
    "TP2, recomputed": [*MODEL, "parallel.tensor=2", "parallel.recompute=selective"],
    "PP2, recomputed": [*MODEL, "parallel.pipeline=2", "parallel.recompute=full"],
    "CP2": [*MODEL, "parallel.context=2"],
    "DP2": [*MODEL],
}


def check(output: Path, layouts: dict[str, list[str]], limit: float = 1e-5) -> None:
    """Names, what is saved and marked, losses, gradient norms and trained parameters are those of the local layers."""
    found = json.loads(output.read_text(encoding="utf-8"))
    assert found["megatron"] == release() and found["layouts"].keys() == layouts.keys()
    for name, result in found["layouts"].items():
        local, engine = result["classes"]
        assert "transformer_engine" in engine and "transformer_engine" not in local, name
        assert all(result["same"].values()), (name, result["same"])
        assert result["states"][0] == 0 < result["states"][1], "norms have states that checkpoints must do without"
        for mine, theirs in (result["losses"], result["norms"]):
            assert mine == pytest.approx(theirs, rel=limit), name
        assert result["parameters"] <= limit, name


def test_one_process(tmp_path: Path) -> None:
    output = tmp_path / "found.json"
    done = run(interpreter(WORKER, "engine", output, json.dumps(ONE)), cold=True)
    assert done.returncode == 0, done.stderr[-3000:]
    check(output, ONE)


@pytest.mark.long
def test_layouts(tmp_path: Path) -> None:
    output = tmp_path / "found.json"
    torchrun(2, WORKER, "engine", str(output), json.dumps(MANY), cold=True, timeout=1500)
    check(output, MANY)


@pytest.mark.long
@pytest.mark.parametrize("states", ["empty", "pickled"])
def test_a_run_goes_on_without_it_and_back(states: str, tmp_path: Path) -> None:
    """Local to step 4, with Transformer Engine to 12, and local from its step 8 on: the losses of a run that never
    changed, and its weights where they are exported.
    """
    whole, mixed = tmp_path / "whole", tmp_path / "mixed"
    options = ("train.steps=12", "checkpoint.every=4", "checkpoint.keep=9")
    assert cli("train", CONFIG, f"train.output={whole}", *options).returncode == 0
    mixed.mkdir()
    shutil.copytree(whole, mixed, dirs_exist_ok=True)
    for path in sorted((mixed / "checkpoints").iterdir()):
        if path.name > "step_00000004":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    trim(mixed / "metrics.jsonl", 4)
    done = run(
        interpreter(RUN, "train", CONFIG, f"train.output={mixed}", *options), cold=True, STAND_IN_EXTRA_STATE=states
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Transformer Engine for norms and linear layers" in done.stdout
    close(losses(mixed), losses(whole))
    local, engine = (exported(path, tmp_path / f"folder of {path.name}") for path in (whole, mixed))
    assert local.keys() == engine.keys()
    for name, value in local.items():
        assert (engine[name] - value).abs().max() <= 1e-5 * value.abs().max().clamp(min=1e-3), name
    for path in (mixed / "checkpoints").iterdir():
        if path.name > "step_00000008":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    trim(mixed / "metrics.jsonl", 8)
    assert cli("train", CONFIG, f"train.output={mixed}", *options).returncode == 0
    close(losses(mixed), losses(whole))


def trim(path: Path, step: int) -> None:
    """Leave the lines of the first steps."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(line for line in lines if json.loads(line).get("step", 0) <= step), encoding="utf-8")


def close(found: dict[int, float], wanted: dict[int, float]) -> None:
    assert found == pytest.approx(wanted, rel=1e-5)


def exported(folder: Path, to: Path) -> dict[str, Tensor]:
    """The weights of a run's newest checkpoint as a Hugging Face folder has them."""
    done = cli("convert", "to-hf", str(folder), "--output", str(to))
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(to / "model.safetensors")


def signatures(source: str) -> dict[str, list[str]]:
    """`Class.method` or function -> its arguments, in order, each with its default as text."""
    found = {}
    for node in ast.parse(source).body:
        owner = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
        for part in node.body if isinstance(node, ast.ClassDef) else [node]:
            if isinstance(part, ast.FunctionDef):
                given = [*[""] * (len(part.args.args) - len(part.args.defaults)), *map(ast.unparse, part.args.defaults)]
                found[owner + part.name] = [f"{arg.arg}={default}" for arg, default in zip(part.args.args, given)]
    return found


COMPARED = {
    "module/linear.py": {"Linear.__init__": "module/linear.py", "Linear.forward": "module/linear.py"},
    "module/rmsnorm.py": {"RMSNorm.__init__": "module/norms.py"},
    "module/layernorm.py": {"LayerNorm.__init__": "module/norms.py"},
    "module/base.py": {"get_dummy_wgrad": "module/base.py"},
    "quantization.py": {"fp8_autocast": "fp8.py", "fp8_model_init": "fp8.py"},
}


@pytest.mark.long
def test_signatures_are_those_of_the_real_package(tmp_path: Path) -> None:
    """Of the wheel on PyPI that has its Python."""
    here = REPOSITORY / "tests" / "nvidia" / "transformer_engine"
    (version,) = [
        ast.literal_eval(node.value)
        for node in ast.parse((here / "__init__.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__"
    ]
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(tmp_path)]
    subprocess.run([*pip, f"transformer-engine=={version}"], check=True, timeout=300)
    (wheel,) = tmp_path.glob("transformer_engine-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for path, names in COMPARED.items():
            real: dict[str, Any] = signatures(archive.read(f"transformer_engine/pytorch/{path}").decode())
            for name, place in names.items():
                text = (here / "pytorch" / place).read_text(encoding="utf-8")
                mine = signatures(text).get(name) or signatures(text)["_Norm.__init__"]
                assert mine == real[name], name
