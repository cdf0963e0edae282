"""Rules on where data comes from, its frames and its rows; `check` calls them with all others."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

from .derived import dp_size
from .paths import file_obstacle, obstacle
from .problems import Report
from .schema import Config
from .toml import show, to_toml


def missing_paths(config: Config) -> list[str]:
    """Folders that a run of this configuration reads and that are not there, one line each; remote ones are not looked
    for.
    """
    wanted = [
        ("train.init_from", config.train.init_from, "a checkpoint folder, for example an earlier stage's train.output")
    ]
    if config.data.source != "physics":
        what = (
            "a folder with video files"
            if config.data.source == "videos"
            else "a folder with shards (megatron-videogpt data prepare makes them)"
        )
        wanted.append(("data.path", config.data.path, what))
        wanted += [("data.mixture", path, what) for path in config.data.mixture]
    if config.codec.name not in ("tiny", "tiny_fsq", "pixels"):
        wanted.append(
            (
                "codec.path",
                getattr(config.codec, "path", ""),
                'a folder with the codec (config.json and safetensors), or set codec.name="tiny"',
            )
        )
    if _needs_encoder(config):
        ids = config.condition.encoder == "ids"
        what = "a folder with a transformers text encoder and its tokenizer" if not ids else "that of a tokenizer.json"
        wanted.append(("condition.encoder_path", config.condition.encoder_path, what))
    local = [entry for entry in wanted if entry[1] and "://" not in entry[1] and "{" not in entry[1]]
    gone = [
        entry
        for entry in local
        if not (Path(entry[1]).is_dir() or (entry[1].endswith(".tar") and Path(entry[1]).is_file()))
    ]
    return [f"{name} = {show(path)}: there is no such folder; give {expected}" for name, path, expected in gone]


def unusable_output(config: Config) -> list[str]:
    """Why a run of this configuration could not write what it must, one line; the folder need not be there."""
    output = Path(config.train.output)
    for place in (output, output / "logs", output / "checkpoints"):
        if why := obstacle(place):
            return [f"train.output = {to_toml(str(output))}: {why}"]
    for file in (output / "metrics.jsonl", output / "config.toml"):
        if why := file_obstacle(file):
            return [f"train.output = {to_toml(str(output))}: {why}"]
    return []


def _needs_encoder(config: Config) -> bool:
    """Whether a run reads the text encoder's folder in any case; features of shards may have been computed in advance,
    and then their width can be given.
    """
    condition = config.condition
    texts = condition.kind == "text" and condition.encoder != "words"
    return texts and (not condition.width or config.data.source != "shards")


def check_data(report: Report, world_size: int | None) -> None:
    """Samples, their source, their frames and their rows."""
    data = report.config.data
    held_out = report.config.eval
    if report.sound("data.frames") and data.frames == 1:
        if held_out.every or held_out.predict_every or held_out.final_scenes:
            must = "be at least 2 with validation, which predicts the later frames of a sample from the first ones"
            off = "eval.every=0 eval.predict_every=0 eval.final_scenes=0"
            report.add("data.frames", must, f"use 2 or more, or leave validation out ({off})")
            report.broken.add("data.frames")
    for name, (low, high) in (("data.frame_interval", data.frame_interval), ("data.clips", data.clips)):
        if report.sound(name) and low > high:
            report.add(name, "have its smaller entry first", f"use [{high}, {low}]")
    if report.sound("data.frames", "data.clips") and data.clips[1] > data.frames:
        report.add(
            "data.clips",
            f"fit data.frames = {data.frames}",
            f"use at most {data.frames} clips (every clip has at least one frame)",
        )
    if report.sound("data.frames", "data.min_frames") and data.min_frames > data.frames:
        report.add(
            "data.min_frames", f"not exceed data.frames = {data.frames}", "use 0 for samples of data.frames frames only"
        )
    if report.sound("data.source"):
        _check_source(report)
    _check_rows(report, world_size)


def _check_source(report: Report) -> None:
    data = report.config.data
    if data.source == "physics":
        if data.mixture:
            report.add("data.mixture", "be {} when data.source is physics", "use data.source=videos or shards")
        return
    if report.sound("data.path", "data.mixture"):
        _check_paths(report)
    least = math.ceil(data.size_multiple * data.max_aspect)
    if report.sound("data.longest_side", "data.size_multiple", "data.max_aspect") and data.longest_side < least:
        must = (
            f"be at least data.size_multiple * data.max_aspect = {least} (so that the shorter side is not cropped away)"
        )
        report.add("data.longest_side", must, f"use {least} or more, or a smaller data.max_aspect")
    elif report.sound("data.longest_side", "data.size_multiple") and data.longest_side % data.size_multiple:
        near = data.longest_side + -data.longest_side % data.size_multiple
        report.add("data.longest_side", f"be a multiple of data.size_multiple = {data.size_multiple}", f"use {near}")
    if data.decoder != "pyav" and importlib.util.find_spec("torchcodec") is None:
        report.add(
            "data.decoder",
            "be pyav where torchcodec is not installed",
            "pip install torchcodec (it needs FFmpeg's shared libraries), or use pyav",
        )


def _check_paths(report: Report) -> None:
    data = report.config.data
    if not data.path and not data.mixture:
        what = "the folder with your videos" if data.source == "videos" else "the folder or URL of your shards"
        report.add(
            "data.path", f"name a folder when data.source is {data.source}", f"give {what}, or use data.source=physics"
        )
    if data.path and data.mixture:
        report.add("data.path", 'be "" with data.mixture', "name every data set in one of the two")
    for path, weight in data.mixture.items():
        if not isinstance(weight, (int, float)) or isinstance(weight, bool) or not 0 < weight < math.inf:
            report.add("data.mixture", "give every path a weight above 0", f"{path!r} has {weight!r}")


def _check_rows(report: Report, world_size: int | None) -> None:
    """What goes into a row, and the batch against the data parallel ranks (rows of a fixed number of samples are a rule
    of the layout: `check`).
    """
    config, data = report.config, report.config.data
    if report.sound("data.cost") and data.cost[1] and not data.cost[0]:
        report.add("data.cost", "have a first number above 0, or be [0, 0]", "use what megatron-videogpt cost prints")
    if (
        not report.sound("data.pack_tokens", "train.micro_batch_size", "train.global_batch_size")
        or not data.pack_tokens
    ):
        return
    if config.train.micro_batch_size != 1:
        report.add(
            "train.micro_batch_size",
            "be 1 with data.pack_tokens, which fills rows by tokens",
            "use 1, or data.pack_tokens=0",
        )
    if world_size is not None and report.sound("parallel.tensor", "parallel.context", "parallel.pipeline"):
        replicas = max(1, dp_size(config, world_size))
        if config.train.global_batch_size < replicas:
            report.add(
                "train.global_batch_size", f"be at least the {replicas} data parallel ranks", f"use {replicas} or more"
            )
