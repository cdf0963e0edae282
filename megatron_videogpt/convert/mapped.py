"""Published networks of objectives whose package says which published tensors, one after another, are which parameter
(`released` in it): a folder with `config.json` and safetensors, or a published file of PyTorch, opened as what fills a
run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor

from ..codec.geometry import FSQ, expected_levels
from ..codec.options import CodecConfig
from ..config.schema import Config
from ..errors import UserError
from ..hub.common import fsq_tokenizer, text_ids
from ..model.parameters import Parameter
from ..objective.build import parameter_table, released_modules
from .folder import Folder
from .pickled import read_states, tensors_under
from .settings import training_config
from .tensor_files import Entry
from .tokenizer import INSIDE, filled_by, shape_of_tensors
from .untrusted import read_object

ENTRIES = ("state_dict",)
"""Where a published file has its tensors."""
TOKENIZER = "tokenizer"
"""The folder of the tokenizer in a folder of the model."""
SHOWN = 20
WEIGHTS = (torch.float32, torch.bfloat16, torch.float16)


class Origin(Protocol):
    """Tensors by key: a `folder.Folder`, or a `PublishedFile`."""

    path: Path

    def keys(self) -> list[str]: ...
    def shape(self, key: str) -> tuple[int, ...]: ...
    def dtype(self, key: str) -> torch.dtype: ...
    def tensor(self, key: str) -> Tensor: ...


class PublishedFile:
    """A published file of PyTorch: the network's tensors, those of the frozen tokenizer in it apart.  Raises UserError
    as `read_states` does.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        state = tensors_under(read_states(path), ENTRIES, path)
        self.tokenizer = {key.removeprefix(INSIDE): value for key, value in state.items() if key.startswith(INSIDE)}
        self._tensors = {key: value for key, value in state.items() if not key.startswith(INSIDE)}

    def keys(self) -> list[str]:
        """The network's."""
        return list(self._tensors)

    def shape(self, key: str) -> tuple[int, ...]:
        """Of a tensor."""
        return tuple(self._tensors[key].shape)

    def dtype(self, key: str) -> torch.dtype:
        """Of a tensor."""
        return self._tensors[key].dtype

    def tensor(self, key: str) -> Tensor:
        """One tensor, in memory of its own."""
        return self._tensors[key].clone(memory_format=torch.contiguous_format)


def released_of(config: Config) -> ModuleType | None:
    """The module `released` of a run's objective; None where its folders are in the layout of Video-GPT, or none."""
    return released_modules().get(config.objective.name)


def released_in(source: Path) -> ModuleType | None:
    """The module of the objective whose network a folder holds, by its `model_type`, or a file, by its keys; None for
    any other folder.  UserError for a file that holds no known network.
    """
    modules = released_modules().values()
    if source.is_dir():
        kind = read_object(source / "config.json").get("model_type") if (source / "config.json").is_file() else None
        return next((module for module in modules if module.MODEL_TYPE == kind), None)
    if not source.is_file():
        return None
    keys = PublishedFile(source).keys()
    found = next((module for module in modules if any(key.startswith(module.START) for key in keys)), None)
    if found is None:
        known = ", ".join(f"{module.START}*" for module in modules)
        raise UserError(f"{source}: holds no network that is known here: expected keys such as {known}")
    return found


def bring_tokenizer(source: Path, given: Path | None, target: Path, levels: tuple[int, ...], groups: int) -> None:
    """Write the tokenizer that belongs to a network as the folder `target`: that of the folder `given`, else the one
    beside the network or in its file; nothing where there is none.

    levels, groups: of a published file's tokenizer, whose keys and shapes do not tell.
    """
    beside = source / TOKENIZER
    folder = given if given is not None else beside if (beside / "config.json").is_file() else None
    if folder is not None:
        copy_tokenizer(folder, target)
    elif source.is_file():
        state = PublishedFile(source).tokenizer
        if state:
            shape = shape_of_tensors(state, groups, levels, source)
            filled_by(shape, state, source)
            fsq_tokenizer.write_folder(target, shape, {key: value.contiguous() for key, value in state.items()})


def copy_tokenizer(folder: Path, target: Path) -> None:
    """Settings and weights of a tokenizer's folder, as they are, after a look at both; UserError, one line, where they
    are of none.
    """
    held = Folder(folder)
    try:
        shape = fsq_tokenizer.shape_of(held.config, str(folder))
    except ValueError as error:
        raise UserError(str(error)) from error
    state = {key: held.tensor(key) for key in held.keys()}
    filled_by(shape, state, folder)
    fsq_tokenizer.write_folder(target, shape, state)


@dataclass(frozen=True)
class MappedSource:
    """A published network as what fills a model (`new_run.Filling`).

    settings: its `config.json`, or what stands for it; config: of a run of it; side: keys that travel along; dtype:
    what tensors are cast to, None keeps each one's own.
    """

    origin: Origin
    released: ModuleType
    settings: dict[str, Any]
    config: Config
    side: tuple[str, ...]
    dtype: torch.dtype | None

    @property
    def channels(self) -> int:
        """Latent channels, of which a network of ids knows nothing."""
        return 0

    @property
    def entries(self) -> tuple[Parameter, ...]:
        """All parameters of the model."""
        return tuple(parameter_table(self.config).entries(self.config.model))

    def keys(self, entry: Parameter) -> list[str]:
        """Of the published tensors that are a parameter."""
        return [key for key, _ in self.released.pieces(entry, self.config.model)]

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
        kinds = {self.kept(key) for entry in self.entries for key in self.keys(entry)}
        return torch.bfloat16 if kinds == {torch.bfloat16} else torch.float32

    def tensor(self, entry: Parameter) -> Tensor:
        """A parameter in its table's layout, in the checkpoint's dtype, by way of what each of its tensors keeps."""
        parts = [self.origin.tensor(key).to(self.kept(key)).to(self.checkpoint_dtype) for key in self.keys(entry)]
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
        shapes = [entry.shape(self.config.model, 0) for entry in self.entries]
        own = sum(math.prod(shape) for shape in shapes) * self.checkpoint_dtype.itemsize
        return own, sum(entry.size for entry in self.side_entries())

    def dtypes(self) -> dict[str, str]:
        """Names of all published tensors' dtypes, for `released.json`."""
        keys = [*(key for entry in self.entries for key in self.keys(entry)), *self.side]
        return {key: str(self.kept(key)).removeprefix("torch.") for key in keys}


def open_source(
    source: Path,
    released: ModuleType,
    tokenizer: Path,
    told: dict[str, str],
    dtype: torch.dtype | None,
    allow_extra: bool,
) -> MappedSource:
    """Everything about a published network that has to be right before work starts; UserError in one line.

    tokenizer: the folder of its tokenizer, which need not be there; told: what a published file does not say of itself.
    """
    codec = CodecConfig(name=FSQ, path=str(tokenizer) if tokenizer.is_dir() else "")
    origin: Origin
    if source.is_dir():
        if told:
            raise UserError(f"--published: {source} has a config.json, which says it all; leave it out")
        origin = folder = Folder(source)
        settings, trained, where = folder.config, training_config(folder), f"{source}/config.json"
    else:
        origin, where, trained = PublishedFile(source), str(source), Config()
        shapes = {key: origin.shape(key) for key in origin.keys()}
        settings = released.guessed(shapes, math.prod(expected_levels(codec)), told, where)
    config = released.config_of(settings, _with_codec(trained, codec), where)
    if config.condition.kind == "text" and source.is_dir() and (source / text_ids.FOLDER / text_ids.FILE).is_file():
        # Of a text model that is not given elsewhere.
        condition = replace(config.condition, encoder_path=str(source / text_ids.FOLDER))
        config = replace(config, condition=condition)
    return MappedSource(
        origin, released, settings, config, tuple(_check_keys(origin, released, config, allow_extra)), dtype
    )


def _with_codec(config: Config, codec: CodecConfig) -> Config:
    return replace(config, codec=replace(codec, batch_size=config.codec.batch_size))


def _check_keys(origin: Origin, released: ModuleType, config: Config, allow_extra: bool) -> list[str]:
    """The keys that have no parameter; UserError that lists what is missing, has another shape or type or, unless
    `allow_extra`, is there beside them.
    """
    held, problems, known = set(origin.keys()), [], set()
    for entry in parameter_table(config).entries(config.model):
        for key, shape in released.pieces(entry, config.model):
            known.add(key)
            if key not in held:
                problems.append(f"{key} is missing")
            elif origin.shape(key) != shape:
                problems.append(f"{key} has shape {list(origin.shape(key))} and not {list(shape)}")
            elif origin.dtype(key) not in WEIGHTS:
                problems.append(f"{key} is {origin.dtype(key)} and not float32, bfloat16 or float16")
    side = [key for key in released.BUFFERS if key in held - known]
    extra = sorted(held - known - set(side))
    if not allow_extra:
        problems += [f"{key} belongs to nothing (--allow-extra carries it along)" for key in extra]
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise UserError(
            f"{origin.path}: {len(problems)} tensors do not fit the model that it says it is: "
            f"{'; '.join(problems[:SHOWN])}{more}"
        )
    return side + extra
