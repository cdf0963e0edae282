#!/usr/bin/env python3
"""Cut recorded numbers of Ca2-VDM down to tests/golden/vidgpt: a checkpoint, part of another, and cases that together
go through every rule.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from megatron_videogpt.config import paths
from megatron_videogpt.hub.frame_prompt.modeling_frameprompt import COMPUTED, UNREAD

CASES = {
    "masks_positions": None,
    "components": (
        *("schedule_8", "schedule_100", "respacing", "spatial_64_4x4_1.0", "spatial_48_3x4_0.5", "temporal_48_10_1.5"),
        *("tiny_pe.attn_temp", "tiny_pe.attn_cf_cached", "tiny_text.text", "rope", "progressive_noise", "vb"),
        *("step_0", "step_99"),
    ),
    "forward": ("p2_short_prefix", "first_frame_enhance", "partial_causal"),
    "loss": ("l_perturb0",),
    "sampler": ("cached_7_3_perturb",),
}
"""What is kept of each file; None for all.  Of a case with several samples the first, of a chain of chunks the first
CHUNKS, without the states between the steps and the gradients themselves.
"""
CHUNKS = 4
LEFT_OUT = ("z", "full_grads", "pair", "pair_max_abs_difference", "pair_max_abs_value")
ONLY = {"tiny_text": ("y_embedder.", "blocks.1.cross_attn.")}
"""Checkpoints of which a few tensors are kept."""
SINGLE = ("forward", "sampler")
"""Files whose samples do not depend on each other."""


def cut(source: Path, target: Path) -> int:
    """Write the folder; its size in bytes."""
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / "released_model.json", target / "released_model.json")
    for name, kept in CASES.items():
        content = json.loads((source / f"{name}.json").read_text(encoding="utf-8"))
        cases = [shortened(case, name) for case in content["cases"] if kept is None or case["name"] in kept]
        tensors = load_file(source / f"{name}.safetensors")
        wanted = set(named(cases))
        written = json.dumps(content | {"cases": cases}, separators=(",", ":"))
        (target / f"{name}.json").write_text(written.replace('{"name"', '\n{"name"') + "\n", encoding="utf-8")
        save_file({key: value for key, value in tensors.items() if key in wanted}, target / f"{name}.safetensors")
    for checkpoint in ("tiny_pe", "tiny_text"):
        (target / checkpoint).mkdir(exist_ok=True)
        only = ONLY.get(checkpoint, ("",))
        state = load_file(source / checkpoint / "model.safetensors")
        state = {key: value for key, value in state.items() if key.startswith(only)}
        state = {key: value for key, value in state.items() if key not in (*COMPUTED, UNREAD)}
        save_file(state, target / checkpoint / "model.safetensors")
        settings = json.loads((source / checkpoint / "config.json").read_text(encoding="utf-8"))
        settings |= {"only": only} if checkpoint in ONLY else {}
        (target / checkpoint / "config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    return sum(path.stat().st_size for path in target.rglob("*") if path.is_file())


def shortened(case: dict[str, Any], file: str) -> dict[str, Any]:
    """A case without what is left out."""
    case = {key: value for key, value in case.items() if key not in LEFT_OUT}
    if case["name"] == "respacing":
        case["timesteps"] = {count: steps for count, steps in case["timesteps"].items() if int(count) <= 100}
    if file in SINGLE:
        case |= {"samples": [_without(sample) for sample in case["samples"][:1]], "batch": 1}
    if "chunks" in case:
        case["chunks"] = [
            chunk | {"samples": [_without(sample) for sample in chunk["samples"][:1]]}
            for chunk in case["chunks"][:CHUNKS]
        ]
        # The whole video is the chunks that are there already.
        case["samples"] = [
            {"tensors": {key: value for key, value in sample["tensors"].items() if key != "video"}}
            for sample in case["samples"]
        ]
        case["ar_steps"] = CHUNKS
    return case


def _without(sample: dict[str, Any]) -> dict[str, Any]:
    return sample | {"tensors": {key: value for key, value in sample["tensors"].items() if key not in LEFT_OUT}}


def named(held: Any) -> Iterator[str]:
    """Keys of all tensors in cases."""
    if isinstance(held, dict):
        if isinstance(held.get("key"), str):
            yield held["key"]
        for value in held.values():
            yield from named(value)
    elif isinstance(held, list):
        for value in held:
            yield from named(value)


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=paths.path, help="folder with all recorded cases")
    parser.add_argument("target", type=paths.path, help="folder to write")
    args = parser.parse_args()
    print(f"{args.target}: {cut(args.source, args.target)} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
