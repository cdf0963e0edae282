"""Compile the flash backend's kernels for Hopper on a machine without a GPU: `python tools/kernel_flash.py
96:4:2:bfloat16 ...`, one JSON line for each head dimension, query heads, key-value heads and dtype.

`flash.attend` runs on tensors without memory, and then the package's own backward, with the arguments that its forward
kept.  In a process of its own, because the package reads its target from the environment when it is imported, and torch
aborts when autograd meets a device it was not built for.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tools.kernel_reading import later_of_ptx, program_of, shared_of_ir, threads_of_ptx, usage_of  # noqa: E402

TARGET = {
    "FLASH_ATTENTION_ARCH": "sm_90",
    "CUTE_DSL_ARCH": "sm_90a",
    "FLASH_ATTENTION_NUM_SMS": "132",
    "CUTE_DSL_KEEP": "ir,ptx,cubin",
}
KERNELS = {
    "forward": "fwd_sm90",
    "backward": "bwd_sm90",
    "before the backward": "bwd_preprocess",
    "after the backward": "bwd_postprocess",
}
"""What a kernel does -> what its files are named after."""


def _facts(folder: Path, kernel: str) -> dict[str, Any]:
    """Of a kernel: registers and bytes of stack of a thread, threads and bytes of shared memory of a block, bytes that
    go to and from the stack, matrix instructions by shape; and how often the program text loads intervals.
    """
    # Where heads share keys, three kernels round the sums of the backward; they differ in little.
    cubin, ptx, ir = (sorted(folder.glob(f"*{kernel}*{end}"))[0] for end in (".cubin", ".ptx", "_clean.mlir"))
    code, (registers, stack), text = cubin.read_bytes(), usage_of(cubin.read_bytes()), ptx.read_text(encoding="utf-8")
    found = program_of(code)
    return {
        "registers": registers,
        "later": later_of_ptx(text),
        "stack": stack,
        "threads": threads_of_ptx(text),
        "shared_bytes": shared_of_ir(ir.read_text(encoding="utf-8")),
        "stored": found.stored,
        "loaded": found.loaded,
        "products": [[*shape, number] for shape, number in found.products.items()],
        "loads": text.count("ld.global.nc.v4.b32"),
    }


def _on_cuda(build: Any, intervals: Any, *sizes: Any) -> Any:
    """`flash.mask` built on the CPU: a torch without CUDA cannot index tensors of that device, not
    even without memory.
    """
    import torch

    def move(x: Any) -> Any:
        return torch.empty_like(x, device="cuda") if isinstance(x, torch.Tensor) else x

    return torch.utils._pytree.tree_map(move, build(torch.empty(intervals.shape, dtype=torch.int32), *sizes))


def _step(rows: int, keys: int, head_dim: int, heads: int, kv_heads: int, dtype: str) -> tuple[float, float]:
    """Seconds of one forward and one backward."""
    import torch
    from flash_attn.cute.interface import FlashAttnFunc

    from megatron_videogpt.attention import flash

    kept = SimpleNamespace(set_materialize_grads=lambda _: None)
    kept.save_for_backward = lambda *tensors: setattr(kept, "saved_tensors", tensors)
    FlashAttnFunc.apply = lambda *arguments: FlashAttnFunc.forward(kept, *arguments)
    shapes = ((rows, heads), (keys, kv_heads), (keys, kv_heads))
    q, k, v = (torch.empty(*shape, head_dim, dtype=getattr(torch, dtype), device="cuda") for shape in shapes)
    started = time.perf_counter()
    out = flash.attend(q, k, v, torch.empty(rows, 4, dtype=torch.int32, device="cuda"), 0.1, deterministic=False)
    middle = time.perf_counter()
    gradients = FlashAttnFunc.backward(kept, torch.empty_like(out).unsqueeze(0), None)
    assert out.shape == q.shape and [x.shape[1:] for x in gradients[:3]] == [x.shape for x in (q, k, v)]
    return middle - started, time.perf_counter() - middle


def compiled(head_dim: int, heads: int, kv_heads: int, dtype: str, folder: Path) -> dict[str, Any]:
    """What compiling took and gave, by kernel that this case needed first, and how many were compiled again for other
    lengths.
    """
    import cutlass.cute as cute
    from torch._subclasses.fake_tensor import FakeTensorMode

    from megatron_videogpt.attention import flash

    calls, compile_kernel = [0], cute.compile

    def counted(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        return compile_kernel(*arguments, **options)

    cute.compile = counted
    build, flash.mask = flash.mask, partial(_on_cuda, flash.mask)
    shape = (head_dim, heads, kv_heads, dtype)
    try:
        with FakeTensorMode():
            forward, backward = _step(1600, 1600, *shape)
            first = calls[0]
            for rows, keys in ((38_478, 38_478), (700, 1024), (2048, 5003)):
                _step(rows, keys, *shape)
    finally:
        cute.compile, flash.mask = compile_kernel, build
    result = {
        "forward_s": round(forward, 2),
        "backward_s": round(backward, 2),
        "kernels": first,
        "again": calls[0] - first,
    }
    # What is the same as in a case before, as the sums before a backward of as many channels, is not compiled again.
    fresh = {name: kernel for name, kernel in KERNELS.items() if any(folder.glob(f"*{kernel}*.cubin"))}
    result |= {name: _facts(folder, kernel) for name, kernel in fresh.items()}
    for file in folder.iterdir():
        file.unlink()
    return result


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(TARGET, CUTE_DSL_DUMP_DIR=folder)
        for case in sys.argv[1:]:
            head_dim, heads, kv_heads, dtype = case.split(":")
            print(
                json.dumps({"case": case, **compiled(int(head_dim), int(heads), int(kv_heads), dtype, Path(folder))}),
                flush=True,
            )


if __name__ == "__main__":
    main()
