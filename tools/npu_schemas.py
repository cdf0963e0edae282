#!/usr/bin/env python3
"""Operator registrations of torch_npu: reads them out of its wheels and writes tests/ascend/schemas.json."""

from __future__ import annotations

import argparse
import email
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from megatron_videogpt.config import paths
from megatron_videogpt.errors import UserError, exit_code, unusable

VERSIONS = ("2.7.1", "2.7.1.post4", "2.14.0")
"""The first wheel for torch 2.7.1, the one that belongs to MindSpeed core_r0.16.0 (CANN 9.0.0), and the newest."""
OPERATORS = (
    *("npu_fusion_attention", "npu_fusion_attention_grad"),
    *("npu_rms_norm", "npu_rms_norm_backward"),
    *("npu_swiglu", "npu_swiglu_backward"),
    *("npu_rotary_mul", "npu_rotary_mul_backward"),
)
"""What a training step may call."""
LIBRARY = "torch_npu/lib/libtorch_npu.so"
"""The file of a wheel in which operators are registered."""
OUTPUT = Path(__file__).resolve().parent.parent / "tests" / "ascend" / "schemas.json"

EPILOG = """
torch_npu registers its operators from texts in libtorch_npu.so.  The wheels are downloaded with pip (20 to 50 MB each,
without what they depend on) and read, never installed: this runs on any machine, without CANN or an NPU.
Exit status: 0 when the file is written, 2 when a wheel cannot be had or lacks an operator.

examples:
  python tools/npu_schemas.py                                      write tests/ascend/schemas.json anew
  python tools/npu_schemas.py 2.13.0 --output - --wheels /tmp/w    show those of another version, keep its wheel
  python tools/npu_schemas.py --architecture aarch64 --output -    the wheels of Arm servers
"""


def download(version: str, architecture: str, folder: Path) -> Path:
    """The wheel for CPython 3.11 in `folder`, downloaded unless it is there.

    Raises:
        UserError: pip cannot get it; the message has pip's reason.
    """
    name = f"torch_npu-{version}-cp311-cp311-manylinux_2_28_{architecture}.whl"
    if (folder / name).is_file():
        return folder / name
    wanted = ["--no-deps", "--only-binary=:all:", "--python-version", "3.11", "--implementation", "cp"]
    wanted += ["--platform", f"manylinux_2_28_{architecture}", "--dest", str(folder), f"torch_npu=={version}"]
    # Its bar goes to stdout, which is for the result.
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", *wanted], stdout=sys.stderr, stderr=subprocess.PIPE, encoding="utf-8"
    )
    if done.returncode or not (folder / name).is_file():
        reasons = [line for line in done.stderr.splitlines() if line.startswith("ERROR") or "No module named" in line]
        raise UserError(
            f"torch_npu {version}: pip cannot download {name} ({reasons[0] if reasons else 'it gives no reason'}); "
            f"get it elsewhere, put it in a folder and pass --wheels FOLDER"
        )
    return folder / name


def registered(library: bytes, names: Sequence[str]) -> dict[str, str]:
    """Operator -> the text it is registered by, of the strings in a compiled library.

    Raises:
        UserError: an operator has no text there, or two.
    """
    found = {}
    for name in names:
        texts = set(re.findall(rb"(?<=\0)" + name.encode() + rb"\([^\0]*\) -> [^\0]+(?=\0)", library))
        if len(texts) != 1:
            raise UserError(
                f"{LIBRARY} has {len(texts)} registrations of {name} instead of one: this release of torch_npu "
                "registers operators in another way, which tools/npu_schemas.py must learn"
            )
        found[name] = texts.pop().decode()
    return found


def read(wheel: Path) -> dict[str, Any]:
    """What is recorded of a wheel: its name and hash, the torch that it requires, the operators."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
            requires = email.message_from_bytes(archive.read(metadata)).get_all("Requires-Dist", [])
            schemas = registered(archive.read(LIBRARY), OPERATORS)
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{wheel}: not a wheel of torch_npu ({error}); delete it and run again") from None
    except OSError as error:
        raise unusable(wheel, error) from None
    return {
        "file": wheel.name,
        "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
        "torch": next((line.removeprefix("torch") for line in requires if re.match(r"torch\W", line)), ""),
        "schemas": schemas,
    }


def collect(versions: Sequence[str], architecture: str, folder: Path) -> dict[str, Any]:
    """The content of schemas.json: `{"wheels": {version: what `read` returns}}`."""
    wheels = {}
    for number, version in enumerate(versions, 1):
        print(f"[{number}/{len(versions)}] torch_npu {version}", file=sys.stderr, flush=True)
        wheels[version] = read(download(version, architecture, folder))
    return {"about": "written by tools/npu_schemas.py from torch_npu's wheels on PyPI", "wheels": wheels}


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "versions", nargs="*", default=VERSIONS, help=f"versions of torch_npu on PyPI (default: {' '.join(VERSIONS)})"
    )
    parser.add_argument(
        "--output", type=paths.path, default=OUTPUT, help="file to write, - for stdout (default: the tests')"
    )
    parser.add_argument("--architecture", choices=("x86_64", "aarch64"), default="x86_64", help="default: x86_64")
    parser.add_argument("--wheels", type=paths.path, help="folder for the wheels (default: a temporary one)")
    args = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as temporary:
            folder = args.wheels or Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps(collect(args.versions, args.architecture, folder), indent=1) + "\n"
        if str(args.output) == "-":
            sys.stdout.write(text)
        else:
            args.output.write_text(text, encoding="utf-8")
            print(args.output)
    except (UserError, OSError) as error:
        return exit_code(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
