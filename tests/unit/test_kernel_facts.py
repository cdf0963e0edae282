"""What tools/kernel_facts.py says of kernels: NVIDIA's rules of occupancy, what compilers print, the table, and what is
missing.  One small kernel is compiled.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

import pytest

from tools import kernel_facts
from tools.kernel_facts import Facts, check, flash_facts, merged, spent
from tools.kernel_reading import (
    Usage,
    for_a_tile,
    later_of_ptx,
    occupancy,
    program,
    program_of,
    shared_of_ir,
    threads_of_ptx,
    usage,
)

FACTS = Facts("FA4 forward", 96, "bfloat16", (192, 128), 128, (32, 160), 184, 240, 288, 185_344, 512, {}, {})


@pytest.mark.parametrize(
    ("threads", "registers", "memory", "blocks", "warps", "limit"),
    [
        # NVIDIA's Best Practices Guide, "Calculating Occupancy": 75 % and 63 % of 64 warps.
        (128, 37, 0, 12, 48, "registers"),
        (320, 37, 0, 4, 40, "registers"),
        # 32 registers are the most with which all 2,048 threads fit.
        (256, 32, 0, 8, 64, "registers, threads"),
        (256, 33, 0, 6, 48, "registers"),
        (32, 16, 0, 32, 32, "blocks"),
        # 48 warps of 40 registers in blocks of 6.  255 registers: 8 warps at most.
        (192, 40, 0, 8, 48, "registers"),
        (288, 255, 0, 0, 0, "registers"),
        # 252 registers: 8,192 for a warp, 2 warps in each quarter.  168 KiB and 1 KiB of 228.
        (256, 252, 172_032, 1, 8, "registers, shared memory"),
        # 512 threads of 128 registers are all registers there are.
        (512, 128, 185_344, 1, 16, "registers, shared memory"),
        # 172 registers: 5,632 for a warp, 2 in a quarter: one block of 8 warps, though 120 KiB would stand alone too.
        (256, 172, 122_880, 1, 8, "registers, shared memory"),
        # 113 KiB and the system's 1 KiB fit twice, a byte more does not; more than 227 KiB fits no block.
        (128, 32, 113 * 1024, 2, 8, "shared memory"),
        (128, 32, 113 * 1024 + 1, 1, 4, "shared memory"),
        (128, 32, 227 * 1024, 1, 4, "shared memory"),
        (128, 32, 227 * 1024 + 1, 0, 0, "shared memory"),
    ],
)
def test_occupancy(threads: int, registers: int, memory: int, blocks: int, warps: int, limit: str) -> None:
    assert occupancy(threads, registers, memory) == (blocks, warps, limit)


USAGE = """
Resource usage:
 Common:
  GLOBAL:0
 Function forward_kernel:
  REG:252 STACK:96 SHARED:1024 LOCAL:0 CONSTANT[0]:664 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
SASS = """
        /*1230*/                   STL.64 [R1+0x58], R4 ;                        /* 0x0000580401007387 */
        /*1240*/                   STL [R1+0x54], R7 ;                           /* 0x0000540701007387 */
        /*1250*/                   LDL.LU R9, [R1+0x54] ;                        /* 0x0000540001097983 */
        /*1260*/              @!P0 LDL.LU.128 R12, [R1+0x60] ;                   /* 0x00006000010c7983 */
        /*1270*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], !UPT ;
        /*1280*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR12], R24 ;
        /*1290*/                   HGMMA.64x96x16.F32 R120, R4, gdesc[UR4].tnspB, R120, gsb0 ;
        /*12a0*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
"""
IR = """
!memref_smem_i8 = !cute.memref<i8, smem, align<1024>, "185344:1">
!memref_smem_bf16 = !cute.memref<bf16, smem, align<1024>, S<2,4,3>, "((8,24),(32,3)):((32,256),(1,6144))">
      %smem = cute.memref.alloca() {smem.partition_id = 1 : i32, smem.struct_fields = ["a:16:0"]} : !memref_smem_i8
      %rmem = cute.memref.alloca() : !memref_rmem_f32
"""


def test_what_compilers_print() -> None:
    assert usage(USAGE) == Usage(252, 96)
    with pytest.raises(ValueError, match="names 2 kernels"):
        usage(USAGE + USAGE)
    found = program(SASS)
    assert (found.stored, found.loaded) == (8 + 4, 4 + 16)
    assert found.products == {(64, 128, 16): 2, (64, 96, 16): 1, (16, 8, 16): 1}
    ptx = ".reqntid 384, 1, 1\nsetmaxnreg.inc.sync.aligned.u32 \t224;\nsetmaxnreg.dec.sync.aligned.u32 24;"
    assert threads_of_ptx(ptx) == 384 and later_of_ptx(ptx) == [24, 224]
    with pytest.raises(ValueError, match="0 numbers of threads"):
        threads_of_ptx("")
    assert shared_of_ir(IR) == 185_344 and shared_of_ir("") == 0
    with pytest.raises(ValueError, match="unknown size: !memref_smem_i8"):
        shared_of_ir(IR.replace("i8, smem", "i8, other"))


def test_instructions_of_a_tile() -> None:
    # 128 x 128 scores from 96 columns: 2 x 6 of 64x128x16; 96 columns from 128 keys as 64 + 32: 2 x 8 of each.  The
    # loop stands twice, and two groups of warps run it.
    text = {(64, 128, 16): 12, (64, 64, 16): 16, (64, 32, 16): 16}
    assert for_a_tile(text, 2, 128 * 128 * 96) == {(64, 128, 16): 12, (64, 64, 16): 16, (64, 32, 16): 16}
    # The scores stand there five times, the rest four times: 3 groups of warps, 6 and 8 instructions each.
    uneven = for_a_tile({(64, 128, 16): 30, (64, 96, 16): 32}, 2, 192 * 128 * 96)
    assert uneven == {(64, 128, 16): 18, (64, 96, 16): 24} and spent(uneven) == "42"
    # 32 rows are too few for four warps together: each of 8 warps takes 32 of 16x8x16.
    mixed = for_a_tile({(64, 128, 16): 8, (64, 32, 16): 32, (16, 8, 16): 64}, 5, 32 * 128 * 128)
    assert mixed == {(64, 128, 16): 8, (64, 32, 16): 32, (16, 8, 16): 256} and spent(mixed) == "40 + 256 mma"
    assert for_a_tile({}, 2, 64) == {} and spent({}) == "0"
    unknown = for_a_tile({(64, 128, 16): 7, (64, 96, 16): 8, (64, 64, 16): 9}, 2, 192 * 128 * 96)
    assert unknown is None and spent(unknown) == "?"


def test_rows() -> None:
    assert FACTS.row() == (
        "| FA4 forward | 96 | bfloat16 | 192 x 128 | 128 (32, 160) | 184 | 240, 288 | 185,344 | 512 | 1 | 16 | "
        "registers, shared memory | 0 | none |"
    )
    half = Facts(**{**vars(FACTS), "dtype": "float16"})
    other = Facts(**{**vars(half), "stack": 0})
    assert [one.dtype for one in merged([FACTS, half])] == ["bfloat16, float16"]
    assert [one.dtype for one in merged([FACTS, other])] == ["bfloat16", "float16"]
    numbers = {"registers": 128, "stack": 184, "stored": 240, "loaded": 288, "shared_bytes": 185_344, "threads": 512}
    line = {"case": "96:4:4:bfloat16", "kernels": 4, "forward": {**numbers, "later": [32, 160], "products": []}}
    assert flash_facts(line) == [FACTS]


def options(*only: str, output: Path | None = None) -> argparse.Namespace:
    return argparse.Namespace(only=only, output=output)


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    missing = "the package flash-attn-4 is not installed"
    monkeypatch.setattr("megatron_videogpt.attention.flash.obstacle", lambda *_: missing)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert check(options("triton", "flash")) == (["triton"], f"FlashAttention-4's rows are left out: {missing}")
    with pytest.raises(ValueError, match=f"--only flash: {missing}"):
        check(options("flash"))
    with pytest.raises(ValueError, match="/none does not exist"):
        check(options("triton", output=Path("/none/facts.md")))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="package triton is not installed"):
        check(options("triton"))


def test_one_kernel_compiles_without_spills() -> None:
    from tests.triton_tools import triton_or_skip

    triton_or_skip()
    found = kernel_facts.fused_facts("swiglu", "bfloat16")
    assert (found.stack, found.stored, found.loaded, found.products) == (0, 0, 0, {})
    assert found.threads == 128 and occupancy(found.threads, found.registers, found.shared_bytes).warps >= 32


def test_matrix_instructions_are_found_in_machine_code() -> None:
    from tests.triton_tools import triton_or_skip

    triton_or_skip()
    from tools.kernel_triton import attention

    # Compiled by test_triton_compile.py too.
    found = program_of(attention("forward", 128).cubin)
    assert {shape[0] for shape in found.products} == {64} and spent(
        for_a_tile(found.products, 2, 128 * 64 * 128)
    ) == "24"
