"""What compiled GPU code says of itself, and how much of it fits one multiprocessor of sm_90; for kernel_facts.py.

Nothing here compiles or needs a GPU: cubins are read with NVIDIA's cuobjdump, which Triton brings.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

Shape = tuple[int, int, int]
"""Rows, columns and inner length of the product that one matrix instruction computes."""

REGISTERS = 65_536
"""Of a multiprocessor of compute capability 9.0; this and what follows from NVIDIA's tables ("Technical
Specifications per Compute Capability" and the CUDA occupancy calculator).
"""
SHARED = 228 * 1024
SHARED_OF_BLOCK = 227 * 1024
RESERVED = 1024
"""Bytes of shared memory that the system takes for each block, on top of what the kernel asks for."""
SHARED_UNIT = 128
GROUP_ROWS = 64
"""Of a matrix instruction that four warps issue together (wgmma)."""
WARPS = 64
BLOCKS = 32
QUARTERS = 4
"""Parts of a multiprocessor, each with a quarter of the registers; warps are dealt to them in turn."""
WARP_REGISTERS_UNIT = 256

RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+)")
LOCAL = re.compile(r"\b(STL|LDL)((?:\.\w+)*)\s")
WARP_GROUP = re.compile(r"\b[HQI]GMMA\.(\d+)x(\d+)x(\d+)")
THREADS = re.compile(r"\.reqntid\s+(\d+),\s*(\d+),\s*(\d+)")
MOVED = re.compile(r"setmaxnreg\.(?:inc|dec)\.sync\.aligned\.u32\s+(\d+)")
SHARED_TYPE = re.compile(r'^(!\w+) = !cute\.memref<i8, smem, [^"]*"(\d+):1">', re.MULTILINE)
SHARED_PLACE = re.compile(r"cute\.memref\.alloca\(\).* : (!\w*smem\w*)$", re.MULTILINE)
ONE_WARP = re.compile(r"\bHMMA\.(16)(8)(8|16)\b")


class Occupancy(NamedTuple):
    """Blocks and warps that one multiprocessor holds at a time, and what allows no more ("registers, threads")."""

    blocks: int
    warps: int
    limit: str


def _up(number: int, unit: int) -> int:
    return -(-number // unit) * unit


def occupancy(threads: int, registers: int, shared: int) -> Occupancy:
    """On sm_90, of blocks of so many threads with so many registers each and so many bytes of shared memory a block, by
    the rules of NVIDIA's cuda_occupancy.h.

    Registers are given to whole warps, 256 at a time, from the quarter of the multiprocessor that the warp is on; a
    block must fit with as many warps on each.
    """
    warps, of_warp = -(-threads // 32), _up(registers * 32, WARP_REGISTERS_UNIT)
    starts = of_warp * _up(warps, QUARTERS) <= REGISTERS
    allowed = {
        "registers": REGISTERS // QUARTERS // of_warp * QUARTERS // warps if starts else 0,
        "shared memory": SHARED // _up(shared + RESERVED, SHARED_UNIT) if shared <= SHARED_OF_BLOCK else 0,
        "threads": WARPS // warps,
        "blocks": BLOCKS,
    }
    blocks = min(allowed.values())
    return Occupancy(blocks, blocks * warps, ", ".join(name for name, most in allowed.items() if most == blocks))


class Usage(NamedTuple):
    """Registers and bytes of stack of a thread, as `cuobjdump -res-usage` prints them.

    The stack holds what found no register, and arrays that are indexed at run time.
    """

    registers: int
    stack: int


def usage(text: str) -> Usage:
    """Of the one kernel in what `cuobjdump -res-usage` printed."""
    found = RESOURCES.findall(text)
    if len(found) != 1:
        raise ValueError(f"cuobjdump names {len(found)} kernels where one was expected: {text.strip()[:200]!r}")
    return Usage(*map(int, found[0]))


class Program(NamedTuple):
    """What stands in a kernel's machine code, each instruction counted once however often it runs.

    stored, loaded: bytes a thread that move to and from its stack.  products: matrix instructions by shape.
    """

    stored: int
    loaded: int
    products: dict[Shape, int]


def program(sass: str) -> Program:
    """From what `cuobjdump -sass` printed."""
    moved = Counter[str]()
    for name, suffixes in LOCAL.findall(sass):
        width = re.search(r"\.(64|128)\b", suffixes)
        moved[name] += int(width[1]) // 8 if width else 4
    shapes = Counter(
        (int(m), int(n), int(k)) for pattern in (WARP_GROUP, ONE_WARP) for m, n, k in pattern.findall(sass)
    )
    return Program(moved["STL"], moved["LDL"], dict(sorted(shapes.items(), reverse=True)))


def for_a_tile(products: dict[Shape, int], count: int, size: int) -> dict[Shape, int] | None:
    """Matrix instructions that all warps of a block spend on one tile; None where the program does not tell.

    products: of the whole program.  count: products of matrices that a tile takes.  size: multiplications in each.

    The loop over tiles stands several times in a program (tiles attended in full and in part, a first one taken out of
    the loop), and several groups of warps may run the same text.  Both cancel out: a tile takes instructions of the
    same mixture until their multiplications are all done.  Where some products stand there more often than others,
    each product has a shape of its own, or nothing can be said.
    """
    # Four warps issue an instruction of 64 rows together, and smaller ones each for itself.
    issued = {shape: number * (1 if shape[0] == GROUP_ROWS else 4) for shape, number in products.items()}
    work = sum(m * n * k * number for (m, n, k), number in issued.items())
    whole = {shape: divmod(number * count * size, max(work, 1)) for shape, number in issued.items()}
    if any(rest for _, rest in whole.values()):
        whole = {(m, n, k): divmod(size, m * n * k) for m, n, k in products}
        if len(whole) != count or any(rest for _, rest in whole.values()):
            return None
    return {shape: number for shape, (number, _) in whole.items()}


def threads_of_ptx(text: str) -> int:
    """Threads of a block, where the kernel is compiled for one number of them."""
    found = THREADS.findall(text)
    if len(found) != 1:
        raise ValueError(f"PTX names {len(found)} numbers of threads where one was expected (.reqntid)")
    return int(found[0][0]) * int(found[0][1]) * int(found[0][2])


def later_of_ptx(text: str) -> list[int]:
    """Registers of a thread after groups of warps have given some away or taken them (setmaxnreg), ascending."""
    return sorted({int(number) for number in MOVED.findall(text)})


def shared_of_ir(text: str) -> int:
    """Bytes of shared memory of a block in the intermediate code of the CuTe DSL (CUTE_DSL_KEEP=ir).

    The DSL hands the sum of these to the launch; a cubin does not hold it.
    """
    sizes = dict(SHARED_TYPE.findall(text))
    named = SHARED_PLACE.findall(text)
    if missing := [name for name in named if name not in sizes]:
        raise ValueError(f"the CuTe DSL's code asks for shared memory of an unknown size: {missing[0]}")
    return sum(int(sizes[name]) for name in named)


def _cuobjdump(option: str, cubin: bytes) -> str:
    import triton

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, option, str(path)]
        return subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout


def usage_of(cubin: bytes) -> Usage:
    """Of a cubin with one kernel."""
    return usage(_cuobjdump("-res-usage", cubin))


def program_of(cubin: bytes) -> Program:
    """Of a cubin with one kernel."""
    return program(_cuobjdump("-sass", cubin))
