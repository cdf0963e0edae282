"""The stand-ins behave as badly as what they stand for: HCCL's refusals, and what MindSpeed's adaptor does to torch."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.npu_runs import PACKAGES, REPOSITORY, search_path
from tests.parallel.launch import environment_of

PROGRAM = """
import json, os, sys
import torch, torch_npu
import torch.distributed as dist
rank = int(sys.argv[1])
dist.init_process_group("hccl", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
beside = dist.new_group(backend="gloo")
found = {"backend": dist.get_backend()}

def attempt(name, action):
    try:
        action()
        found[name] = "done"
    except RuntimeError as error:
        found[name] = str(error)

one = torch.ones(2)
for dtype in ("float64", "bool", "uint8", "bfloat16", "int64"):
    attempt(f"sum of {dtype}", lambda: dist.all_reduce(one.to(getattr(torch, dtype))))
attempt("mixed", lambda: dist.all_reduce(one if rank else one.long()))
attempt("other calls", lambda: dist.all_reduce(one) if rank else dist.broadcast(one, 0))
attempt("bitwise", lambda: dist.all_reduce(one.long(), op=dist.ReduceOp.BAND))
attempt("broadcast of float64", lambda: dist.broadcast(one.double(), 0))
attempt("gloo", lambda: dist.all_reduce(one.double(), group=beside))
total = torch.full((2,), float(rank + 1))
dist.all_reduce(total)
found["total"] = total.tolist()

import importlib.metadata
from torch_npu.contrib import transfer_to_npu
from tests.ascend import hostile
for name, contents in hostile.DUMMIES.items():
    hostile.make(name, contents)
hostile.change_torch()
lost = torch.tensor(float(rank + 1), dtype=torch.float64)
dist.all_reduce(lost, group=beside)
found["a float64 sum with MindSpeed"] = lost.item()
strided = torch.zeros(2, 3).t()
strided[:2].view(2, 2).fill_(1.0)
found["written through view"] = float(strided.sum())
found["says"] = [importlib.metadata.version("transformer-engine"), torch.zeros(1).type()]
import importlib.util
found["transformer_engine"] = importlib.util.find_spec("transformer_engine") is not None
found["compiled"] = torch.compile(lambda x: x + 1)(1)
print(json.dumps(found))
"""


def test_what_hccl_and_mindspeed_do(tmp_path: Path) -> None:
    env = environment_of(PYTHONPATH=search_path("torch_npu"))
    commands = [[sys.executable, "-c", PROGRAM, str(rank), str(tmp_path / "store")] for rank in range(2)]
    processes = [
        subprocess.Popen(command, env=env, cwd=REPOSITORY, stdout=subprocess.PIPE, encoding="utf-8")
        for command in commands
    ]
    zero, one = (json.loads(process.communicate(timeout=300)[0].splitlines()[-1]) for process in processes)
    assert zero == {**one, "a float64 sum with MindSpeed": 1.0} and one["a float64 sum with MindSpeed"] == 2.0
    assert one["backend"] == "hccl" and one["total"] == [3.0, 3.0]
    for dtype in ("float64", "bool", "uint8"):
        assert one[f"sum of {dtype}"] == f"HCCL: allreduce: Unsupported data type torch.{dtype}"
    for allowed in ("sum of bfloat16", "sum of int64", "broadcast of float64", "gloo"):
        assert one[allowed] == "done"
    different = "HCCL: the ranks of a group call different things: "
    assert one["mixed"] == f"{different}allreduce of torch.int64, allreduce of torch.float32"
    assert one["other calls"] == f"{different}broadcast of torch.float32, allreduce of torch.float32"
    assert one["bitwise"] == "HCCL: allreduce: Unsupported reduce operator"
    assert one["written through view"] == 0.0 and one["compiled"] == 2
    assert one["says"] == ["2.2.0", "torch.cuda.FloatTensor"] and one["transformer_engine"]


def hostile() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hostile", PACKAGES.parent / "hostile.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_its_parser_takes_what_it_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    parse = hostile().parse
    monkeypatch.setattr(sys, "argv", ["program"])
    plain = parse()
    monkeypatch.setattr(sys, "argv", ["program", "train", "tiny.toml", "--shrink", "--window", "4"])
    assert parse() == plain | {"shrink": True, "window": "4"}
    monkeypatch.setattr(sys, "argv", ["program", "train", "tiny.toml", "--traceback"])
    with pytest.raises(SystemExit):
        parse()
