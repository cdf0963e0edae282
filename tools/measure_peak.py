"""The matrix-product speed that this device reaches, beside its data sheet, and the override that makes MFU count from
it.

    python tools/measure_peak.py                  the NPU or GPU of this machine, or its CPU
    python tools/measure_peak.py --device cpu --threads 2

Data sheets promise what no program reaches (clocks fall under load), and MFU against the data sheet is the usual
convention: where `train/metrics.py` knows a device, leave `logging.peak_tflops` at 0.  For others, set the line that is
printed last.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from megatron_videogpt.errors import UserError, exit_code  # noqa: E402
from megatron_videogpt.platforms import PLATFORMS, activate  # noqa: E402
from megatron_videogpt.train.metrics import peak_tflops  # noqa: E402
from tools.measuring.clock import seconds  # noqa: E402
from tools.measuring.report import machine  # noqa: E402

# Rows, columns, inner: square ones that tile evenly, and the layers of the 3.8B model on one row of stage 4.
LARGE = (
    (4096, 4096, 4096),
    (8192, 8192, 8192),
    (16384, 8192, 8192),
    (38528, 9216, 3072),
    (38528, 16384, 3072),
    (38528, 3072, 8192),
)
SHAPES = {
    "cuda": LARGE,
    "npu": LARGE,
    "cpu": ((512, 512, 512), (1024, 1024, 1024), (2048, 2048, 2048), (1536, 3072, 1024)),
}


def tflops(rows: int, columns: int, inner: int, dtype: torch.dtype, device: str, repeat: int) -> float:
    """Best TFLOP/s of `repeat` measurements of a product ``[rows, inner] x [inner, columns]`` of normally distributed
    numbers.
    """
    # Zeros would let a GPU run cooler and faster than real work.
    left, right = (
        torch.randn(shape, device=device, dtype=torch.float32).to(dtype) for shape in ((rows, inner), (inner, columns))
    )
    out = torch.empty(rows, columns, device=device, dtype=dtype)
    call = lambda: torch.mm(left, right, out=out)  # noqa: E731
    once = min(seconds(call, device) for _ in range(3))
    # Long enough that a device settles at the clock it can hold.
    count = max(1, int((0.05 if device == "cpu" else 0.2) / once))
    return 2 * rows * columns * inner / min(seconds(call, device, count) for _ in range(repeat)) / 1e12


def measure(device: str, repeat: int) -> Iterator[tuple[str, tuple[int, int, int], float]]:
    """(number type, shape, TFLOP/s) of everything that is worth measuring here."""
    types = (torch.float32, torch.bfloat16) if device == "cpu" else (torch.bfloat16, torch.float16, torch.float32)
    for dtype in types:
        for shape in SHAPES[device]:
            yield str(dtype).removeprefix("torch."), shape, tflops(*shape, dtype, device, repeat)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("auto", *PLATFORMS), default="auto")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves them to torch")
    parser.add_argument("--repeat", type=int, default=5, help="measurements of each, the best of which counts")
    options = parser.parse_args()
    platform = activate(options.device)
    device = platform.name
    if options.threads:
        torch.set_num_threads(options.threads)
    name = machine("cpu", torch.get_num_threads()) if device == "cpu" else platform.device_name
    sheet = peak_tflops(name)
    print(f"`python tools/measure_peak.py {' '.join(sys.argv[1:])}`\n\n{machine(device, torch.get_num_threads())}\n")
    print("| numbers | rows x columns x inner | TFLOP/s | of the data sheet |\n|---|---|---|---|")
    best: dict[str, float] = {}
    for dtype, shape, speed in measure(device, options.repeat):
        best[dtype] = max(best.get(dtype, 0.0), speed)
        share = f"{speed / sheet:.0%}" if sheet and dtype != "float32" else ""
        print(f"| {dtype} | {' x '.join(map(str, shape))} | {speed:.3g} | {share} |", flush=True)
    reached = ", ".join(f"{dtype} {speed:.3g}" for dtype, speed in best.items())
    print(
        f"\nBest: {reached} TFLOP/s."
        + (f"  The data sheet says {sheet:g} for dense bfloat16, and that is what MFU counts from." if sheet else "")
    )
    if not sheet:
        print(
            "This device is not in the table of train/metrics.py; for MFU: "
            f"logging.peak_tflops={best['bfloat16']:.3g} (float32: {best['float32']:.3g})"
        )


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(exit_code(error))
