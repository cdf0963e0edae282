"""What the compilers say of the GPU kernels, read without a GPU: registers, spills, shared memory, how many blocks fit
a multiprocessor, matrix instructions.  No speed.

    python tools/kernel_facts.py --output facts.md
    python tools/kernel_facts.py --only triton --head-dims 96 --dtypes bfloat16      # to the screen, in a minute

The kernels are compiled for sm_90 (H100, H200) as training launches them: the Triton attention kernels, the fused
kernels of norms, SwiGLU and rotary positions, and FlashAttention-4's.  All of it takes some ten minutes on one core the
first time; Triton keeps what it compiled.  Needs Triton (`pip install triton`; no CUDA toolkit), and flash-attn-4
(`pip install -e '.[flash]'`) for its rows, which are left out without it.

Columns:
  registers       of a thread.  In brackets, where groups of warps exchange registers as they start: those of each group
  stack B         bytes of a thread that found no register (spills); CUDA's sine and cosine reserve 32 that they never
                  touch for the angles of this model
  to, from stack  bytes that the program text stores there and loads from there, each instruction counted once
  shared B        shared memory of a block, bytes
  blocks, warps   that one multiprocessor holds at a time, of at most 32 and 64, and what allows no more (occupancy)
  in a tile       matrix instructions that all warps of a block spend on one tile: of four warps together (wgmma), and
                  of one warp (mma), the slower kind on this GPU; "?" where it cannot be told
  in the text     the same in the whole program, with the shape of each (rows x columns x inner length)

A program with fewer registers, or more warps, is not faster for that: kernels that keep the tensor cores busy run one
block on a multiprocessor on purpose.  Spills, matrix instructions with few columns, and tiles that do not fit are what
to look for here; how fast a kernel is, only a GPU can tell (tools/gpu_check.sh).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
from megatron_videogpt.config import paths  # noqa: E402
from megatron_videogpt.errors import UserError, exit_code  # noqa: E402
from tools.kernel_reading import GROUP_ROWS, Shape, for_a_tile, occupancy, program_of  # noqa: E402
from tools.kernel_triton import PRODUCTS, Compiled, attention, delta, fused, fused_cases  # noqa: E402

KINDS = ("triton", "fused", "flash")
DTYPES = ("bfloat16", "float16")
HEAD_DIMS = (64, 96, 128)
HEADS = 4
PACKAGES = ("torch", "triton", "flash-attn-4", "nvidia-cutlass-dsl")
FLASH_PRODUCTS = {"forward": 2, "backward": 5}
HEADER = (
    "kernel", "head dim", "dtype", "tile", "registers", "stack B", "to, from stack B", "shared B", "threads", "blocks",
    "warps", "limited by", "in a tile", "in the text",
)  # fmt: skip


def spent(in_tile: dict[Shape, int] | None) -> str:
    """Matrix instructions of a tile: "40", or "40 + 256 mma" where single warps issue some."""
    if in_tile is None:
        return "?"
    groups = sum(number for shape, number in in_tile.items() if shape[0] == GROUP_ROWS)
    alone = sum(in_tile.values()) - groups
    return f"{groups} + {alone} mma" if alone else str(groups)


@dataclass(frozen=True)
class Facts:
    """Of one kernel.  tile: rows and keys.  later: registers after groups of warps exchanged some.  products: matrix
    instructions by shape; in_tile: of one tile, None where unknown.
    """

    kernel: str
    head_dim: int | None
    dtype: str
    tile: tuple[int, int] | None
    registers: int
    later: tuple[int, ...]
    stack: int
    stored: int
    loaded: int
    shared_bytes: int
    threads: int
    products: dict[Shape, int]
    in_tile: dict[Shape, int] | None

    def row(self) -> str:
        """A line of the table."""
        fits = occupancy(self.threads, self.registers, self.shared_bytes)
        cells = (
            self.kernel,
            self.head_dim or "",
            self.dtype,
            f"{self.tile[0]} x {self.tile[1]}" if self.tile else "",
            f"{self.registers} ({', '.join(map(str, self.later))})" if self.later else self.registers,
            self.stack,
            f"{self.stored}, {self.loaded}",
            f"{self.shared_bytes:,}",
            self.threads,
            fits.blocks,
            fits.warps,
            fits.limit,
            spent(self.in_tile),
            ", ".join(f"{number} of {m}x{n}x{k}" for (m, n, k), number in self.products.items()) or "none",
        )
        return f"| {' | '.join(map(str, cells))} |"


def of_triton(kernel: str, head_dim: int | None, dtype: str, result: Compiled) -> Facts:
    """A compiled Triton kernel that has no tiles of rows and keys."""
    found = program_of(result.cubin)
    return Facts(
        kernel, head_dim, dtype, None, result.registers, (), result.spilled, found.stored, found.loaded, result.shared,
        result.threads, found.products, {},
    )  # fmt: skip


def attention_facts(name: str, head_dim: int, dtype: str) -> Facts:
    """One of Triton's attention kernels."""
    import torch

    from megatron_videogpt.attention.triton_attention import default_launches

    if name == "delta":
        return of_triton("Triton delta", head_dim, dtype, delta(head_dim, dtype))
    launch = getattr(default_launches(head_dim, getattr(torch, dtype), (9, 0)), name)
    found = of_triton(f"Triton {name}", head_dim, dtype, attention(name, head_dim, dtype=dtype))
    in_tile = for_a_tile(found.products, PRODUCTS[name], launch.rows * launch.keys * head_dim)
    return replace(found, tile=(launch.rows, launch.keys), in_tile=in_tile)


def fused_facts(name: str, dtype: str) -> Facts:
    """One of the fused kernels."""
    return of_triton(f"fused {name}", None, dtype, fused(fused_cases(dtype)[name]))


def flash_facts(line: dict[str, Any]) -> list[Facts]:
    """FlashAttention-4's kernels of one line of kernel_flash.py."""
    from megatron_videogpt.attention.flash import tile_sizes

    head_dim, _, _, dtype = line["case"].split(":")
    dim, facts = int(head_dim), []
    tiles = dict(zip(FLASH_PRODUCTS, tile_sizes(90, dim)))
    for name, one in line.items():
        if not isinstance(one, dict):
            continue
        products, tile = {(m, n, k): number for m, n, k, number in one["products"]}, tiles.get(name)
        in_tile = for_a_tile(products, FLASH_PRODUCTS[name], tile[0] * tile[1] * dim) if tile else {}
        given = {key: one[key] for key in ("registers", "stack", "stored", "loaded", "shared_bytes", "threads")}
        facts.append(
            Facts(
                f"FA4 {name}", dim, dtype, tile, later=tuple(one["later"]), products=products, in_tile=in_tile, **given
            )
        )
    return facts


def run_flash(options: argparse.Namespace) -> Iterator[list[Facts]]:
    """One head dimension and number type after the other."""
    cases = [f"{dim}:{HEADS}:{HEADS}:{dtype}" for dtype, dim in itertools.product(options.dtypes, options.head_dims)]
    command = [sys.executable, "-W", "ignore", str(REPOSITORY / "tools" / "kernel_flash.py"), *cases]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=errors, encoding="utf-8")
        assert process.stdout is not None
        try:
            for line in process.stdout:
                yield flash_facts(json.loads(line))
            failed = process.wait()
        finally:
            process.kill()
        if failed:
            errors.seek(0)
            last = (errors.read().strip().splitlines() or ["no message"])[-1]
            raise UserError(f"FlashAttention-4 did not compile: {last} (--only triton fused leaves it out)")


def compilations(options: argparse.Namespace, kinds: list[str]) -> list[Callable[[], Facts]]:
    """What Triton is to compile."""
    work: list[Callable[[], Facts]] = []
    if "triton" in kinds:
        cases = itertools.product(options.dtypes, (*PRODUCTS, "delta"), options.head_dims)
        work += [partial(attention_facts, name, dim, dtype) for dtype, name, dim in cases]
    if "fused" in kinds:
        work += [partial(fused_facts, name, dtype) for dtype, name in itertools.product(options.dtypes, fused_cases())]
    return work


def merged(facts: list[Facts]) -> list[Facts]:
    """Number types of a kernel whose facts are the same, in one row; by kernel, then head dimension."""
    order = list(dict.fromkeys(one.kernel for one in facts))
    rows: list[Facts] = []
    for one in sorted(facts, key=lambda one: (order.index(one.kernel), one.head_dim or 0)):
        if rows and replace(rows[-1], dtype="") == replace(one, dtype=""):
            one = replace(one, dtype=f"{rows.pop().dtype}, {one.dtype}")
        rows.append(one)
    return rows


def versions() -> str:
    """Of the compilers."""
    import triton

    found = {one.metadata["Name"]: one.version for one in importlib.metadata.distributions()}
    ptxas = triton.knobs.nvidia.ptxas.version
    return ", ".join([*(f"{name} {found[name]}" for name in PACKAGES if name in found), f"ptxas {ptxas} (Triton's)"])


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", type=paths.path, metavar="FILE.md", help="where the table goes (default: the screen)"
    )
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS, help="kernels to compile (default: all)")
    parser.add_argument(
        "--head-dims", nargs="+", type=int, choices=HEAD_DIMS, default=HEAD_DIMS, help="of the attention kernels"
    )
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES, help="number types of the tensors")
    return parser.parse_args()


def check(options: argparse.Namespace) -> tuple[list[str], str]:
    """(kinds that can be compiled here, why others are left out); UserError where none can."""
    if importlib.util.find_spec("triton") is None:
        raise UserError("the package triton is not installed, which brings the compiler and reads its output")
    if options.output and not options.output.resolve().parent.is_dir():
        raise UserError(f"--output {options.output}: the folder {options.output.parent} does not exist")
    if "flash" not in options.only:
        return [*options.only], ""
    import torch

    from megatron_videogpt.attention.flash import obstacle

    missing = obstacle((9, 0), torch.bfloat16, 96)
    if missing and list(options.only) == ["flash"]:
        raise UserError(f"--only flash: {missing}")
    kinds = [kind for kind in options.only if kind != "flash" or not missing]
    return kinds, f"FlashAttention-4's rows are left out: {missing}" if missing else ""


def compiled(options: argparse.Namespace, kinds: list[str]) -> Iterator[list[Facts]]:
    """Some rows after the other, with a bar on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    work = compilations(options, kinds)
    flash = len(options.head_dims) * len(options.dtypes) if "flash" in kinds else 0
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("compiling with Triton", total=len(work) + flash)
        for one in work:
            found = one()
            bar.update(task, advance=1, description=f"{found.kernel} {found.head_dim or ''} {found.dtype}")
            yield [found]
        if flash:
            bar.update(task, description="FlashAttention-4 (half a minute each)")
            for some in run_flash(options):
                bar.advance(task)
                yield some


def document(facts: list[Facts], note: str) -> str:
    """The table under its command and versions."""
    head = f"`{' '.join(['python tools/kernel_facts.py', *sys.argv[1:]])}`: {versions()}; for sm_90, no speed.\n"
    table = [f"| {' | '.join(HEADER)} |", "|---" * len(HEADER) + "|", *(one.row() for one in merged(facts))]
    return "\n".join([head, *([note, ""] if note else []), *table, ""])


def main() -> None:
    """Compile and write the table."""
    options = arguments()
    kinds, note = check(options)
    if note:
        print(note, file=sys.stderr)
    facts: list[Facts] = []
    for some in compiled(options, kinds):
        facts += some
        # Whoever stops it keeps what there is.
        if options.output:
            options.output.write_text(document(facts, note), encoding="utf-8")
    if options.output:
        print(f"{len(merged(facts))} rows in {options.output}", file=sys.stderr)
    else:
        print(document(facts, note))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(exit_code(error))
