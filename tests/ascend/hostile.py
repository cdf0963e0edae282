"""An adaptor of megatron-core as unkind to a process as MindSpeed is: the order and the effects are its, the code is
written for this.

It replaces the root logger's handlers, parses sys.argv and has options of the names of others' options, loses float64
reductions, copies in `Tensor.view`, makes modules transformer_engine and apex that do nothing, lies about versions,
turns compilers off, and then changes megatron-core (`hostile_megatron`).
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.metadata
import logging.config
import sys
import types
import warnings
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

DUMMIES = {
    "transformer_engine": {},
    "transformer_engine.pytorch": dict.fromkeys(
        ("LayerNorm", "LayerNormLinear", "DotProductAttention", "Linear", "GroupedLinear"), nn.Module
    ),
    "transformer_engine.pytorch.distributed": {"CudaRNGStatesTracker": nn.Module, "activation_recompute_forward": None},
    "transformer_engine.pytorch.tensor": {"QuantizedTensor": type("QuantizedTensor", (), {})},
    "transformer_engine.pytorch.fp8": {
        "FP8GlobalStateManager": type("FP8GlobalStateManager", (), {}),
        "fp8_autocast": contextlib.nullcontext,
    },
    "transformer_engine.pytorch.ops": {"Sequential": nn.Module, "FusibleOperation": nn.Module},
    "transformer_engine.common": {},
    "transformer_engine.common.recipe": {"DelayedScaling": nn.Module},
    "apex": {},
    "apex.optimizers": {},
    "apex.multi_tensor_apply": {"multi_tensor_applier": lambda operation, buffer, tensors, *args: None},
    "amp_C": {"multi_tensor_l2norm": None, "multi_tensor_scale": None},
    "flash_attn": {},
    "flash_attn.flash_attn_interface": {"flash_attn_unpadded_func": None},
    "fused_layer_norm_cuda": {},
}


class Adam(torch.optim.Adam):
    """In the place of Apex's; whoever takes it would train with another optimizer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise AssertionError("the adaptor's optimizer was built")


def adapt(name: str) -> None:
    """All of it, once per process."""
    import einops  # noqa: F401
    import triton  # noqa: F401
    from torch_npu.events import note

    note(f"{name}: argv {' '.join(sys.argv)}")
    logging.config.dictConfig(
        {
            "version": 1,
            "handlers": {"stdout": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout"}},
            "root": {"handlers": ["stdout"], "level": "INFO"},
        }
    )
    options = parse()
    for module, contents in DUMMIES.items():
        make(module, contents)
    sys.modules["apex.optimizers"].FusedAdam = Adam  # type: ignore[attr-defined]
    sys.modules["apex.optimizers"].FusedSGD = torch.optim.SGD  # type: ignore[attr-defined]
    change_torch()
    warnings.warn("megatron-core is being changed", UserWarning, stacklevel=2)
    note(f"{name}: changes megatron-core")
    from . import hostile_megatron

    hostile_megatron.change(options)


def parse() -> dict[str, Any]:
    """Known options, and unknown ones by their names: strings, or True."""
    parser = argparse.ArgumentParser("MindSpeed", allow_abbrev=False)
    parser.add_argument("--context-parallel-algo", default="megatron_cp_algo", choices=["megatron_cp_algo", "ulysses"])
    parser.add_argument("--use-flash-attn", action="store_true")
    parser.add_argument("--sparse-mode", type=int, default=0)
    parser.add_argument("--noop-layers", default=None)
    parser.add_argument("--swap-attention", action="store_true")
    # Others have options of these names, which take no value.
    parser.add_argument("--traceback", type=int, default=0)
    parser.add_argument("--standalone", choices=["no"], default="no")
    known, unknown = parser.parse_known_args()
    found, last = vars(known), ""
    for word in unknown:
        if word.startswith("--"):
            last = word[2:].replace("-", "_")
            found[last] = True
        elif last:
            found[last] = word
    return found


def make(name: str, contents: dict[str, Any]) -> None:
    """A module that `find_spec` finds, as an attribute of the one that it is in."""
    module = types.ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    vars(module).update(contents)
    sys.modules[name] = module
    parent, _, last = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], last, module)


def plainly(function: Any = None, *args: Any, **kwargs: Any) -> Any:
    """`torch.compile` and `torch.jit.script` that do nothing."""
    return function if callable(function) else plainly


def change_torch() -> None:
    """torch as megatron-core will find it."""
    version, view, kind, reduce = (
        importlib.metadata.version,
        torch.Tensor.view,
        torch.Tensor.type,
        dist.all_reduce,
    )
    importlib.metadata.version = lambda name: "2.2.0" if name == "transformer-engine" else version(name)
    torch.compile = torch.jit.script = plainly

    def copying_view(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return view(self if self.is_contiguous() else self.contiguous(), *args, **kwargs)

    def type_(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        result = kind(self, *args, **kwargs)
        return result.replace("npu", "cuda") if isinstance(result, str) else result

    torch.Tensor.view = functools.wraps(view)(copying_view)
    torch.Tensor.type = functools.wraps(kind)(type_)
    dist.all_reduce = losing_float64(reduce)
    torch.cuda.get_device_capability = lambda device=None: (8, 0)
    torch.cuda.nvtx.range_push = torch.cuda.nvtx.range_pop = lambda *args: None


def losing_float64(reduce: Callable[..., Any]) -> Callable[..., Any]:
    """`all_reduce` that reduces a copy of a float64 tensor, and drops it."""

    @functools.wraps(reduce)
    def all_reduce(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if tensor.dtype != torch.float64:
            return reduce(tensor, *args, **kwargs)
        work = reduce(tensor.float(), *args, **kwargs)
        if work is not None:
            work.wait()
        return None

    return all_reduce
