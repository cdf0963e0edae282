"""Published networks of objectives whose package says which published tensors, one after another, are which parameter
(`objective.released.Released`): a folder with `config.json` and safetensors, or a published file of PyTorch, opened as
what fills a run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..codec.options import CodecConfig
from ..config.schema import Config
from ..errors import UserError
from ..hub.common import text_ids
from ..model.parameters import Parameter
from ..model.tensors import initial
from ..objective.build import parameter_table, released_modules
from ..objective.released import Released, Start
from .folder import Folder
from .mapped_codec import check_channels, codec_in
from .published import Origin, PublishedFile
from .settings import training_config
from .tensor_files import Entry
from .untrusted import read_object

SHOWN = 8
WEIGHTS = (torch.float32, torch.bfloat16, torch.float16)
SEED = 0
"""Of what starts afresh."""
ROUNDING = 5e-3
"""Of sines in bfloat16, which may be float32 by now."""


def released_in(source: Path) -> Released | None:
    """The module of the objective whose network a folder holds, by its `model_type`, where it has none by its keys, as
    a file; None for any other folder.  UserError for a file that holds no known network.
    """
    modules = released_modules().values()
    if source.is_dir():
        if not (source / "config.json").is_file():
            return None
        kind = read_object(source / "config.json").get("model_type")
        if kind is not None:
            return next((module for module in modules if module.MODEL_TYPE == kind), None)
    elif not source.is_file():
        return None
    keys = (Folder(source) if source.is_dir() else PublishedFile(source)).keys()
    found = next((module for module in modules if any(key.startswith(module.START) for key in keys)), None)
    if found is None and source.is_file():
        known = ", ".join(f"{module.START}*" for module in modules)
        raise UserError(f"{source}: holds no network that is known here: expected keys such as {known}")
    return found


@dataclass(frozen=True)
class MappedSource:
    """A published network as what fills a model (`new_run.Filling`).

    settings: its `config.json`, or what stands for it; config: of a run of it; side: keys that travel along; fresh:
    those that start afresh; dropped: those that are left out; start: whose weights these are, if they are those of
    another network; dtype: what tensors are cast to, None keeps each one's own.
    """

    origin: Origin
    released: Released
    settings: dict[str, Any]
    config: Config
    side: tuple[str, ...]
    dtype: torch.dtype | None
    fresh: frozenset[str] = frozenset()
    dropped: tuple[str, ...] = ()
    start: str = ""

    @property
    def channels(self) -> int:
        """Latent channels, of which a network of ids knows nothing."""
        return self.released.channels_of(self.settings)

    @property
    def entries(self) -> tuple[Parameter, ...]:
        """All parameters of the model."""
        return tuple(parameter_table(self.config).entries(self.config.model))

    def keys(self, entry: Parameter) -> list[str]:
        """Of the published tensors that are a parameter."""
        return [key for key, _ in self.released.pieces(entry, self.config.model, self.channels)]

    def kept(self, key: str) -> torch.dtype:
        """The dtype that a published tensor keeps."""
        own = self.origin.dtype(key)
        return self.dtype if self.dtype is not None and own.is_floating_point else own

    def stored(self, key: str) -> torch.dtype:
        """See `new_run.Filling`: one type for all parameters, as each is one of the checkpoint's."""
        return self.checkpoint_dtype

    @property
    def checkpoint_dtype(self) -> torch.dtype:
        """What holds every parameter exactly."""
        kinds = {self.kept(key) for entry in self.entries for key in self.keys(entry) if key not in self.fresh}
        return torch.bfloat16 if kinds == {torch.bfloat16} else torch.float32

    def tensor(self, entry: Parameter) -> Tensor:
        """A parameter in its table's layout, in the checkpoint's dtype, by way of what each of its tensors keeps."""
        keys = self.keys(entry)
        if self.fresh.intersection(keys):
            return initial(entry, self.config.model, self.channels, SEED).to(self.checkpoint_dtype)
        parts = [self.origin.tensor(key).to(self.kept(key)).to(self.checkpoint_dtype) for key in keys]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def side_entries(self) -> list[Entry]:
        """The tensors that travel along."""

        def entry(key: str) -> Entry:
            return Entry(
                key, self.origin.shape(key), self.kept(key), lambda: self.origin.tensor(key).to(self.kept(key))
            )

        return [entry(key) for key in self.side]

    def bytes(self) -> tuple[int, int]:
        """Of the parameters, and of the tensors that travel along."""
        shapes = [entry.shape(self.config.model, self.channels) for entry in self.entries]
        own = sum(math.prod(shape) for shape in shapes) * self.checkpoint_dtype.itemsize
        return own, sum(entry.size for entry in self.side_entries())

    def dtypes(self) -> dict[str, str]:
        """Names of all published tensors' dtypes, for `released.json`."""
        keys = [*(key for entry in self.entries for key in self.keys(entry)), *self.side]
        kinds = {key: self.checkpoint_dtype if key in self.fresh else self.kept(key) for key in keys}
        return {key: str(kind).removeprefix("torch.") for key, kind in kinds.items()}


def open_source(
    source: Path,
    released: Released,
    codec_folder: Path,
    told: dict[str, str],
    dtype: torch.dtype | None,
    allow_extra: bool,
    start: str = "",
    codec_name: str = "",
) -> MappedSource:
    """Everything about a published network that has to be right before work starts; UserError in one line.

    codec_folder: of its codec, which need not be there; codec_name: that of a VAE whose folder is not; told: what a
    published file does not say of itself; start: of `released.STARTS`, where weights of another network are a start.
    """
    if start and start not in released.STARTS:
        known = ", ".join(released.STARTS) or "none"
        raise UserError(f"--start {start}: a model of {released.MODEL_TYPE} starts from no such weights; use {known}")
    codec = codec_in(released, codec_folder, codec_name)
    origin: Origin = Folder(source) if source.is_dir() else PublishedFile(source)
    shapes = {key: origin.shape(key) for key in origin.keys()}
    trained, where, begun = Config(), str(source), released.STARTS.get(start)
    if begun is not None:
        settings = begun.settings(shapes, told, where)
    elif isinstance(origin, Folder):
        if told:
            raise UserError(f"--published: {source} has a config.json, which says it all; leave it out")
        settings, trained, where = origin.config, training_config(origin), f"{source}/config.json"
    else:
        settings = released.guessed(shapes, codec, told, where)
    config = released.config_of(settings, _with_codec(trained, codec), where)
    channels = released.channels_of(settings)
    if channels:
        check_channels(codec, channels, where)
    if config.condition.kind == "text" and source.is_dir() and (source / text_ids.FOLDER / text_ids.FILE).is_file():
        # Of a text model that is not given elsewhere.
        condition = replace(config.condition, encoder_path=str(source / text_ids.FOLDER))
        config = replace(config, condition=condition)
    fresh, side, dropped = _check_keys(origin, released, config, channels, allow_extra, begun)
    _check_computed(origin, released, settings, side)
    return MappedSource(origin, released, settings, config, side, dtype, fresh, dropped, start)


def _with_codec(config: Config, codec: CodecConfig) -> Config:
    return replace(config, codec=replace(codec, batch_size=config.codec.batch_size))


def _check_keys(
    origin: Origin, released: Released, config: Config, channels: int, allow_extra: bool, start: Start | None
) -> tuple[frozenset[str], tuple[str, ...], tuple[str, ...]]:
    """The keys that start afresh, those that travel along, and those that are left out; UserError that lists what is
    missing, has another shape or type or, unless `allow_extra`, is there beside them.
    """
    held, problems, known, fresh = set(origin.keys()), [], set(), set()
    for entry in parameter_table(config).entries(config.model):
        for key, shape in released.pieces(entry, config.model, channels):
            known.add(key)
            if key not in held:
                if start is not None and any(part in key for part in start.fresh):
                    fresh.add(key)
                else:
                    problems.append(f"{key} is missing")
            elif origin.shape(key) != shape:
                problems.append(f"{key} has shape {list(origin.shape(key))} and not {list(shape)}")
            elif origin.dtype(key) not in WEIGHTS:
                problems.append(f"{key} is {origin.dtype(key)} and not float32, bfloat16 or float16")
    left = sorted(held - known)
    dropped = [key for key in left if start is not None and any(part in key for part in start.dropped)]
    side = [key for key in released.BUFFERS if key in left and key not in dropped]
    extra = [key for key in left if key not in (*side, *dropped)]
    if not allow_extra:
        problems += [f"{key} belongs to nothing (--allow-extra carries it along)" for key in extra]
    if problems:
        raise UserError(
            f"{origin.path}: {len(problems)} tensors do not fit the model that it says it is: {_shortened(problems)}"
        )
    return frozenset(fresh), (*side, *extra), tuple(dropped)


def _shortened(problems: list[str]) -> str:
    """What is the same in several layers is told of the first alone."""
    groups: dict[str, list[str]] = {}
    for problem in problems:
        groups.setdefault(re.sub(r"^(\S*\b(?:blocks|layers)\.)\d+\.", r"\1*.", problem), []).append(problem)
    told = [f"{same[0]}{_elsewhere(len(same) - 1)}" for same in groups.values()]
    more = f"; and {len(told) - SHOWN} more" if len(told) > SHOWN else ""
    return "; ".join(told[:SHOWN]) + more


def _elsewhere(layers: int) -> str:
    return f" (and in {layers} more layer{'s' if layers > 1 else ''})" if layers else ""


def _check_computed(origin: Origin, released: Released, settings: Mapping[str, Any], side: tuple[str, ...]) -> None:
    """UserError for a table that travels along and is not the one that the network of its settings has; one of another
    size is of a network that was trained at another size, and says nothing.
    """
    wanted = [key for key in released.COMPUTED if key in side]
    ours = released.buffers(settings) if wanted else {}
    for key in wanted:
        theirs, table = origin.tensor(key), ours[key]
        if theirs.shape != table.shape or not theirs.is_floating_point():
            continue
        difference = float((theirs.float() - table).abs().max())
        if not difference <= ROUNDING:
            raise UserError(
                f"{origin.path}: {key} differs by {difference:.2g} from the table of its sizes and scales; say others "
                "(space_scale, time_scale), or take it out of the file: it is computed anew"
            )
