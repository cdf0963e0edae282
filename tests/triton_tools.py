"""Triton kernels without a GPU: run them in Triton's interpreter (`tools/kernel_triton.py` compiles them).

Both in one process: Triton decides at import whether a kernel is interpreted, so `interpreted` imports a second copy of
the kernels' modules and undoes what the interpreter changes in `triton.language`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest

# That of pyproject.toml's extra dev: what is patched below and read by `tools/kernel_triton.py` has moved before.
LEAST = "3.7"


def triton_or_skip() -> Any:
    """Triton where it is new enough for these tools; else the test, or the file, is skipped."""
    reason = f"Triton {LEAST} or newer is not installed, so its kernels can neither be interpreted nor compiled"
    return pytest.importorskip("triton", minversion=LEAST, reason=reason)


triton = triton_or_skip()
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
