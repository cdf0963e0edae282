"""Triton kernels without a GPU: run them in Triton's interpreter, compile them for a Hopper GPU and read what the
compiler used.

Both in one process: Triton decides at import whether a kernel is interpreted, so `interpreted` imports a second copy of
the kernels' modules and undoes what the interpreter changes in `triton.language`.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

import pytest

triton = pytest.importorskip(
    "triton", reason="Triton is not installed, so its kernels can neither be interpreted nor compiled"
)
tl = triton.language


def _copies(names: tuple[str, ...]) -> list[ModuleType]:
    """The modules imported once more, in this order, so that later ones import the copies of earlier ones; the first
    imports stay what others see.
    """
    originals = {name: importlib.import_module(name) for name in names}
    for name in names:
        del sys.modules[name]
    try:
        return [importlib.import_module(name) for name in names]
    finally:
        sys.modules.update(originals)
        for name, module in originals.items():
            parent, _, child = name.rpartition(".")
            setattr(sys.modules[parent], child, module)


@contextmanager
def interpreted(*names: str) -> Iterator[list[ModuleType]]:
    """Copies of the modules whose `@triton.jit` functions run in Triton's interpreter, on CPU tensors, inside the
    `with` block only.

    names: the modules with kernels and those that launch them, each after the modules that it imports kernels from with
    ``from .x import kernel``. bf16 `tl.dot` is silently wrong in the interpreter (use float16 or float32), and kernels
    are launched as ever.
    """
    from triton.runtime import interpreter

    patch, patched = interpreter._patch_lang, set()

    def patch_once(fn: Any) -> Any:
        # At every call of a kernel's function the interpreter patches triton.language again, which takes half of all
        # time; here the end of the block undoes it.
        if id(fn.__globals__) not in patched:
            patched.add(id(fn.__globals__))
            patch(fn)
        return interpreter._LangPatchScope()

    touched: list[Any] = [tl, tl.core, tl.math, tl.standard, tl.tensor, tl.dtype, tl.core.tensor_descriptor_base]
    before = [dict(vars(one)) for one in touched]
    interpret = triton.knobs.runtime.interpret
    triton.knobs.runtime.interpret = True
    interpreter._patch_lang = patch_once
    try:
        # Triton's own kernel functions (tl.sum, tl.zeros) were imported to be compiled.
        for one, members in zip(touched, before):
            for name, member in members.items():
                if isinstance(member, triton.JITFunction):
                    setattr(one, name, interpreter.InterpretedFunction(member.fn))
        yield _copies(names)
    finally:
        triton.knobs.runtime.interpret = interpret
        interpreter._patch_lang = patch
        for one, members in zip(touched, before):
            # The interpreter's rewritten functions keep the names it adds to their module.
            added = set() if one is tl.standard else set(vars(one)) - set(members)
            for name in added:
                delattr(one, name)
            for name, member in members.items():
                if vars(one)[name] is not member:
                    setattr(one, name, member)


class Compiled(NamedTuple):
    """What a kernel needs on the target: registers and spilled bytes a thread, bytes of shared memory a block; and its
    PTX.
    """

    registers: int
    spilled: int
    shared: int
    ptx: str


def compiled(
    kernel: Any,
    signature: Mapping[str, str],
    constexprs: Mapping[str, Any],
    num_warps: int,
    num_stages: int,
    aligned: Iterable[str] = (),
    capability: int = 90,
) -> Compiled:
    """Compile a `@triton.jit` function for a GPU that need not be there.

    signature: argument -> type, as in ``{"q": "*bf16", "rows": "i32", "scale": "fp32"}``, without the constexpr ones.
    aligned: the integer arguments that are multiples of 16 at run time (row strides), which Triton then knows; pointers
    always are.  Compilation is cached on disk by Triton.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

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
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, usage
    return Compiled(int(found[1]), int(found[2]), binary.metadata.shared, binary.asm["ptx"])
