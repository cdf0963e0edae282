"""The project's Triton kernels as they are launched, compiled for a GPU that need not be there; for kernel_facts.py and
the tests.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

INT_TENSORS = {"intervals", "order", "counts", "lists"}
FLOAT_TENSORS = {"lse", "delta"}
NAMES = {"bfloat16": "bf16", "float16": "fp16"}
"""Number types by their names in torch -> in Triton."""
PRODUCTS = {"forward": 2, "key_value": 4, "atomic": 5, "query": 3}
"""Attention kernel -> products of matrices for a tile of rows and keys."""
STAGES = 3
"""Triton's default, which the fused kernels leave as it is."""


class Compiled(NamedTuple):
    """What a kernel needs on the target: registers and bytes of stack a thread, bytes of shared memory a block; its
    threads, its PTX and its cubin.
    """

    registers: int
    spilled: int
    shared: int
    threads: int
    ptx: str
    cubin: bytes


def compiled(
    kernel: Any,
    signature: Mapping[str, str],
    constexprs: Mapping[str, Any],
    num_warps: int,
    num_stages: int,
    aligned: Iterable[str] = (),
    capability: int = 90,
) -> Compiled:
    """Compile a `@triton.jit` function.

    signature: argument -> type, as in ``{"q": "*bf16", "rows": "i32", "scale": "fp32"}``, without the constexpr ones.
    aligned: the integer arguments that are multiples of 16 at run time (row strides), which Triton then knows; pointers
    always are.  Compilation is cached on disk by Triton.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from tools.kernel_reading import usage_of

    aligned = set(aligned)
    types = {name: "constexpr" if name in constexprs else signature[name] for name in kernel.arg_names}
    known = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(types)
        if types[name].startswith("*") or name in aligned
    }
    source = ASTSource(kernel, types, dict(constexprs), known)
    binary = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"num_warps": num_warps, "num_stages": num_stages}
    )
    cubin = binary.asm["cubin"]
    return Compiled(*usage_of(cubin), binary.metadata.shared, 32 * num_warps, binary.asm["ptx"], cubin)


def attention_kernels() -> dict[str, Any]:
    """Name of a launch (`triton_attention.Launches`) -> its kernel."""
    from megatron_videogpt.attention.triton_backward_kernels import key_value_kernel, query_kernel
    from megatron_videogpt.attention.triton_kernels import forward_kernel

    return {
        "forward": forward_kernel,
        "key_value": key_value_kernel,
        "atomic": key_value_kernel,
        "query": query_kernel,
    }


def attention(
    name: str, head_dim: int, capability: tuple[int, int] = (9, 0), group: int = 1, dtype: str = "bfloat16"
) -> Compiled:
    """An attention kernel as the backend launches it on tensors whose strides are multiples of 16.

    group: query heads that share a key-value head.
    """
    import torch

    from megatron_videogpt.attention.triton_attention import HEAD_DIMS, default_launches

    kernel = attention_kernels()[name]
    launch = getattr(default_launches(head_dim, getattr(torch, dtype), capability), name)
    first, second = HEAD_DIMS[head_dim]
    every = {
        "GROUP": group,
        "ROW_TILE": launch.rows,
        "KEY_TILE": launch.keys,
        "FIRST": first,
        "SECOND": second,
        "ATOMIC": name == "atomic",
    }
    constexprs = {key: value for key, value in every.items() if key in kernel.arg_names}
    strides = [arg for arg in kernel.arg_names if arg.startswith("stride")]
    types = {arg: f"*{NAMES[dtype]}" for arg in kernel.arg_names}
    types |= {arg: "i32" for arg in ["rows", "keys", "width", *strides]} | {"scale": "fp32"}
    types |= {arg: "*i32" for arg in INT_TENSORS} | {arg: "*fp32" for arg in FLOAT_TENSORS}
    types |= {"grad_q": "*fp32"} if name == "atomic" else {}
    return compiled(kernel, types, constexprs, launch.warps, launch.stages, strides, capability[0] * 10 + capability[1])


def delta(head_dim: int, dtype: str = "bfloat16") -> Compiled:
    """The kernel before the backward ones, as the backend launches it."""
    from megatron_videogpt.attention.triton_attention import _DELTA_ROWS, HEAD_DIMS
    from megatron_videogpt.attention.triton_backward_kernels import delta_kernel

    first, second = HEAD_DIMS[head_dim]
    strides = [arg for arg in delta_kernel.arg_names if arg.startswith("stride")]
    types = {"out": f"*{NAMES[dtype]}", "grad": f"*{NAMES[dtype]}", "delta": "*fp32", "rows": "i32"}
    types |= {arg: "i32" for arg in strides}
    sizes = {"ROW_TILE": _DELTA_ROWS, "FIRST": first, "SECOND": second}
    return compiled(delta_kernel, types, sizes, 4, STAGES, strides)


class Case(NamedTuple):
    """A fused kernel: its function's name, argument types, compile-time arguments (`num_warps` among them), integer
    arguments that are multiples of 16.
    """

    kernel: str
    types: dict[str, str]
    constants: dict[str, Any]
    aligned: list[str]


def _norms(kind: str) -> Iterator[tuple[str, Case]]:
    from megatron_videogpt.model.fused_triton import MAX_WIDTH, norm_options

    types = {"x": kind, "weight": kind, "rstd": "*fp32", "x_stride": "i32"}
    back = {**types, "grad": kind, "grad_x": kind, "partial": "*fp32", "rows": "i32", "grad_stride": "i32"}
    forward = {**types, "y": kind, "eps": "fp32"}
    for width in (3072, MAX_WIDTH):
        options = norm_options(width)
        yield f"norm {width}", Case("rms_norm_kernel", forward, options, ["x_stride"])
        yield f"norm backward {width}", Case("rms_norm_backward_kernel", back, options, ["x_stride", "grad_stride"])


def fused_cases(dtype: str = "bfloat16") -> dict[str, Case]:
    """At the released model's sizes and the widest norm's."""
    from megatron_videogpt.model.fused_triton import COLUMNS, rotary_options

    kind = f"*{NAMES[dtype]}"
    cases = dict(_norms(kind))
    gate, options = {"x": kind, "x_stride": "i32"}, {"WIDTH": 8192, "BLOCK": COLUMNS}
    cases["swiglu"] = Case("swiglu_kernel", {**gate, "y": kind}, options, ["x_stride"])
    back = {**gate, "grad": kind, "grad_x": kind, "grad_stride": "i32"}
    cases["swiglu backward"] = Case("swiglu_backward_kernel", back, options, ["x_stride", "grad_stride"])
    turn = {"angles": "*fp32", "place": "*i32", "angle_stride": "i32"}
    heads = rotary_options(32, 3, 96) | {"CHOSEN": True}
    forward = {**turn, "joint": kind, "q": kind, "k": kind, "v": kind, "joint_stride": "i32"}
    cases["rotary"] = Case("split_rotary_kernel", forward, heads, ["joint_stride", "angle_stride"])
    back = {**turn, "grad_q": kind, "grad_k": kind, "grad_v": kind, "grad_joint": kind}
    cases["rotary backward"] = Case("split_rotary_backward_kernel", back, heads, ["angle_stride"])
    return cases


def fused(case: Case) -> Compiled:
    """A fused kernel as `fused_triton` launches it."""
    import megatron_videogpt.model.fused_kernels as module

    options = {key: value for key, value in case.constants.items() if key != "num_warps"}
    warps = case.constants.get("num_warps", 4)
    return compiled(getattr(module, case.kernel), case.types, options, warps, STAGES, case.aligned)
