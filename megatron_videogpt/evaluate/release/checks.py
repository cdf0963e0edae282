"""The single checks of `convert verify`: what this package assumes about released weights, held against a folder."""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import UserError
from ...launch import package_environment

if TYPE_CHECKING:
    from ...config.schema import ModelConfig
    from ...convert.folder import Folder

RELEASED_PARAMETERS = 3_762_072_592
"""At the sizes that are the defaults of [model] with a text table of 32064 rows; the position table is not counted
(reference README section 7).
"""
RELEASED_VOCABULARY = 32064
SCENES = ("bounce", "collide", "pendulum")
GB = 1e9


class Failure(UserError):
    """A check that failed: one line."""


@dataclass(frozen=True)
class Task:
    """The command line, and a temporary folder in which the round trip leaves its run."""

    args: argparse.Namespace
    work: Path


def opened(task: Task) -> Folder:
    """The folder, anew."""
    from ...convert.folder import Folder

    return Folder(task.args.folder)


def check_folder(task: Task) -> list[str]:
    """Headers, index, links."""
    folder = opened(task)
    size = sum(math.prod(folder.shape(key)) * folder.dtype(key).itemsize for key in folder.keys())
    kinds = sorted({str(folder.dtype(key)).removeprefix("torch.") for key in folder.keys()})
    carried = folder.carried()
    return [
        f"{len(folder.keys())} tensors, {size / GB:.3f} GB ({', '.join(kinds)})",
        f"travels along: {', '.join(map(str, carried)) or 'nothing'}",
    ]


def check_tensors(task: Task) -> list[str]:
    """Keys, shapes, count."""
    from ...config.schema import ModelConfig
    from ...convert.ingest import check_keys
    from ...convert.released import sizes_of
    from ...convert.table import EMBED_TOKENS, POSITION_TABLE

    folder = opened(task)
    model, channels = sizes_of(folder)
    beside = check_keys(folder, model, channels, allow_extra=True)
    unknown = [key for key in beside if key not in (EMBED_TOKENS, POSITION_TABLE)]
    count = sum(math.prod(folder.shape(key)) for key in folder.keys() if key != POSITION_TABLE)
    rows = folder.shape(EMBED_TOKENS)[0]
    released = not differences(model, ModelConfig(), sizes_only=True)
    released = released and (rows, channels) == (RELEASED_VOCABULARY, 4)
    if released and count != RELEASED_PARAMETERS:
        raise Failure(
            f"{count:,} parameters where the released model has {RELEASED_PARAMETERS:,}; beside the format's "
            f"own: {', '.join(unknown) or 'nothing'}"
        )
    extra = [f"tensors that the format does not name: {', '.join(unknown)}"] if unknown else []
    kind = "the released model's number" if released else "another size than the released model"
    return [f"{count:,} parameters, {kind}; every key and shape fits", *extra]


def check_hints(task: Task) -> list[str]:
    """Ids, and that their rows hold something."""
    from ...convert.hints import TOKENIZER_FILES, TOKENS
    from ...convert.table import EMBED_TOKENS

    folder = opened(task)
    ids = folder.hint_ids()
    if ids is None:
        raise Failure(
            f"no ids of {', '.join(TOKENS)} in its tokenizer files or config.json; is the tokenizer in the "
            f"folder? (looked for {', '.join(TOKENIZER_FILES)})"
        )
    rows = folder.tensor(EMBED_TOKENS)[list(ids)].double()
    if not rows.isfinite().all() or not rows.any(dim=1).all():
        raise Failure(
            f"rows {', '.join(map(str, ids))} of {EMBED_TOKENS} are zero or not finite; these are not the "
            "tokens that the model was trained with"
        )
    norms = ", ".join(f"{value:.3g}" for value in rows.norm(dim=1).tolist())
    return [f"{', '.join(f'{token} = {number}' for token, number in zip(TOKENS, ids))}; norms of their rows {norms}"]


def differences(model: ModelConfig, expected: ModelConfig, sizes_only: bool = False) -> list[str]:
    """Fields of two models that differ, as text; the older name of long RoPE's type counts as the same."""
    names = [
        "num_layers",
        "hidden_size",
        "ffn_hidden_size",
        "num_attention_heads",
        "kv_heads",
        "patch_size",
        "position_table_size",
    ]
    if not sizes_only:
        names += ["norm_epsilon", "rope_theta", "max_position_embeddings", "original_max_position_embeddings"]
    found = [
        f"{name} is {getattr(model, name)}, not {getattr(expected, name)}"
        for name in names
        if getattr(model, name) != getattr(expected, name)
    ]
    for key in () if sizes_only else ("long_factor", "short_factor"):
        ours, theirs = (list(config.rope_scaling.get(key, ())) for config in (model, expected))
        if len(ours) != len(theirs):
            found.append(f"rope_scaling.{key} has {len(ours)} factors, not {len(theirs)}")
        else:
            # Printed factors are rounded to float32, or were computed in float64.
            wrong = [place for place, (a, b) in enumerate(zip(ours, theirs)) if not math.isclose(a, b, rel_tol=1e-6)]
            found += [
                f"rope_scaling.{key}[{place}] is {ours[place]}, not {theirs[place]} ({len(wrong)} factors differ)"
                for place in wrong[:1]
            ]
    return found


def stage_files(task: Task) -> list[Path]:
    """stage*.toml in order; Failure without any."""
    found = sorted(task.args.stages.glob("stage*.toml"))
    if not found:
        raise Failure(f"--stages {task.args.stages}: no stage*.toml in it")
    return found


def check_stages(task: Task) -> list[str]:
    """config.json against the stages' models."""
    from ...config.load import load_config
    from ...convert.released import sizes_of

    model, _ = sizes_of(opened(task))
    problems, lines = [], []
    for path in stage_files(task):
        config = load_config(path)
        problems += [f"{path.name}: {line}" for line in differences(model, config.model)]
        sample = config.sample
        lines.append(
            f"{path.stem}: {config.data.frames} frames at interval {config.data.frame_interval[0]} to "
            f"{config.data.frame_interval[1]}; sampled with "
            f"history {sample.history}, clips {list(sample.clips)}, window {sample.window}, {sample.steps} "
            f"steps, guidance {sample.guidance:g}"
        )
    if problems:
        raise Failure(f"{'; '.join(problems)}. Where config.json is right, take its values for your training files")
    rope = f"long RoPE of {len(model.rope_scaling['long_factor'])} factors" if model.rope_scaling else "plain RoPE"
    table = f"position table {model.position_table_size} x {model.position_table_size}"
    return [
        f"{rope}, {model.max_position_embeddings} positions (originally "
        f"{model.original_max_position_embeddings}), {table}: as in {len(lines)} stages",
        *lines,
    ]


def convert(*arguments: str | Path) -> None:
    """`convert` in a process of its own, with its progress; Failure when it fails."""
    command = [sys.executable, "-m", "megatron_videogpt", "convert", *map(str, arguments)]
    done = subprocess.run(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE if not sys.stderr.isatty() else None,
        encoding="utf-8",
        env=package_environment(),
        check=False,
    )
    if done.returncode:
        said = [line for line in (done.stderr or "").splitlines() if line.startswith("error:")]
        raise Failure(f"convert {arguments[0]}: {said[-1] if said else f'exit code {done.returncode}'}")


def check_round_trip(task: Task) -> list[str]:
    """Tensors, fields and files after HF -> Megatron -> HF."""
    from ...convert.compare import different

    folder, args = opened(task), task.args
    size = sum(math.prod(folder.shape(key)) * folder.dtype(key).itemsize for key in folder.keys())
    carried = folder.carried()
    needed = 2.1 * (size + sum((folder.path / path).stat().st_size for path in carried))
    free = shutil.disk_usage(task.work).free
    if free < needed:
        raise Failure(
            f"{free / GB:.1f} GB free in {task.work.parent}, {needed / GB:.1f} GB needed; give a place with "
            "more: --output FOLDER"
        )
    print(f"round trip: {needed / GB:.1f} GB of disk needed, {free / GB:.0f} GB free", file=sys.stderr, flush=True)
    run, back = task.work / "run", task.work / "back"
    convert("from-hf", folder.path, "--output", run, "--allow-extra", *(["--vae", args.vae] if args.vae else []))
    convert("to-hf", run, "--output", back)
    wrong = different(folder.path, back)
    if wrong:
        raise Failure(f"{len(wrong)} tensors came back different: {', '.join(wrong[:8])}")
    now = json.loads((back / "config.json").read_text(encoding="utf-8"))
    # Ours names the code that lies beside it.
    changed = [key for key, value in folder.config.items() if key != "auto_map" and now.get(key, ...) != value]
    if changed:
        raise Failure(f"fields of config.json that came back different: {', '.join(changed)}")
    kept = [path for path in carried if not (args.vae and path.parts[0] == "vae")]
    lost = [
        str(path)
        for path in kept
        if not (back / path).is_file() or (back / path).read_bytes() != (folder.path / path).read_bytes()
    ]
    if lost:
        raise Failure(f"files that came back different or not at all: {', '.join(lost)}")
    return [
        f"{len(folder.keys())} tensors bit-equal, {len(folder.config)} fields of config.json and {len(kept)} "
        "files unchanged"
    ]
