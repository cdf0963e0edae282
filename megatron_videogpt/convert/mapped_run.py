"""A published network as a run: what lies beside its weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..codec.build import build_codec
from ..codec.geometry import WITHOUT_FOLDER
from ..config.check import find_problems
from ..config.load import ConfigError
from ..config.schema import Config, ParallelConfig
from ..hub.common import text_ids
from .folder import Folder
from .mapped import MappedSource
from .mapped_codec import place_of
from .new_run import Progress, check_written, license_of, write_state
from .published import PublishedFile
from .side import NAME, write_side

ASKED = ("model.", "parallel.", "objective.")
"""Options that a conversion answers for; data and batches are questions for who trains."""


def run_config(source: MappedSource, output: Path, tensor: int, pipeline: int) -> Config:
    """The configuration of the run while it is written, its codec where that lies then; ConfigError where layout or
    blocks do not fit.
    """
    precision = "bf16" if source.checkpoint_dtype.itemsize == 2 else "fp32"
    train = replace(source.config.train, output=str(output), precision=precision, init_from="")
    config = replace(source.config, parallel=ParallelConfig(tensor=tensor, pipeline=pipeline), train=train)
    problems = [line for line in find_problems(config, None) if line.startswith(ASKED)]
    if problems:
        raise ConfigError(problems)
    return config


def finish(source: MappedSource, config: Config, partial: Path, progress: Progress) -> None:
    """Write everything beside the weights of a run's folder, and read all of it back; UserError where what lies on the
    disk is not what was published.
    """
    folder = source.origin if isinstance(source.origin, Folder) else None
    held = folder.carried() if folder is not None else []
    names = [name for name in held if len(name.parts) == 1 or name.parts[0] == text_ids.FOLDER]
    facts = {
        "config": source.settings,
        "dtypes": source.dtypes(),
        "format": source.start or source.released.MODEL_TYPE,
        "license": license_of(source.origin.path) if folder is not None else "unknown",
    }
    if isinstance(source.origin, PublishedFile):
        facts["entry"] = source.origin.entry
    files = [(source.origin.path / name, name) for name in names]
    write_side(partial, facts, source.side_entries(), files, progress)
    fingerprint, final = "", config
    if config.codec.path or config.codec.name in WITHOUT_FOLDER:
        fingerprint = build_codec(config.codec).fingerprint
    if config.codec.path:
        place = place_of(Path(config.train.output).resolve(), source.released)
        final = replace(config, codec=replace(config.codec, path=str(place)))
    if Path(text_ids.FOLDER, text_ids.FILE) in names:
        place = Path(config.train.output).resolve() / NAME / "files" / text_ids.FOLDER
        final = replace(final, condition=replace(final.condition, encoder_path=str(place)))
    write_state(final, partial, fingerprint)
    check_written(source, config, partial, progress)
