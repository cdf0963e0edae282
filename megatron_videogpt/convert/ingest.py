"""A Hugging Face folder as a training run: its weights as a megatron-core checkpoint of a chosen layout, everything
else beside them.

Folders in the released layout, and stock Phi-3 ones, whose backbone is taken while the video parts start afresh.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..codec.diffusers_vae import ignored_before
from ..codec.geometry import codec_geometry, diffusers_settings
from ..codec.options import CodecConfig
from ..condition.options import NONE, ConditionConfig
from ..config.schema import ModelConfig
from ..errors import UserError
from ..model.parameters import Parameter
from ..model.tensors import initial
from .conditions import condition_of
from .folder import Folder
from .hints import TOKENIZER_FILES
from .released import backbone, sizes_of
from .table import EMBED_TOKENS, POSITION_TABLE, parameters
from .tensor_files import Entry
from .untrusted import read_object

UNUSED = (EMBED_TOKENS, POSITION_TABLE, "lm_head.weight")
"""Keys that folders have and the model has no parameter for: they travel along."""
STOCK = ("llm.", "model.")
"""Prefix of the backbone's keys in the released layout, and in a stock Phi-3 folder, which has nothing else of the
model.
"""
STOCK_HINT_IDS = (32011, 32012, 32013)
"""Rows of stock Phi-3-mini's text table that its tokenizer leaves free (reference README section 11)."""
STOCK_CHANNELS, STOCK_PATCH, STOCK_TABLE = 4, 2, 192
"""Sizes of the released model's video parts."""
SEED = 0
"""Of what a stock folder does not have."""
SHOWN = 20


def is_stock(folder: Folder) -> bool:
    """Whether a folder holds a stock Phi-3 model, by its keys."""
    keys = folder.keys()
    return not any(key.startswith((STOCK[0], "x_embedder.")) for key in keys) and any(
        key.startswith(f"{STOCK[1]}layers.") for key in keys
    )


def folder_key(key: str, stock: bool) -> str | None:
    """The key of a released tensor in a folder; None where a stock one has none of the kind."""
    if not stock or key in UNUSED[1:]:
        return key
    return STOCK[1] + key.removeprefix(STOCK[0]) if key.startswith(STOCK[0]) else None


def check_keys(
    folder: Folder, model: ModelConfig, channels: int, allow_extra: bool, condition: ConditionConfig = NONE
) -> list[str]:
    """Hold a folder's tensors against a model with this condition; returns the released keys of those that have no
    parameter, the text table among them.

    ValueError that lists what is missing, what has another shape or type, and, unless `allow_extra`, what is there
    beside it (the first 20 of all).
    """
    stock, held = is_stock(folder), set(folder.keys())
    problems, known = [], set()
    for entry in parameters(model, condition):
        key = folder_key(entry.hf, stock)
        if key is None:
            continue
        known.add(key)
        if key not in held:
            problems.append(f"{key} is missing")
            continue
        shape, wanted = folder.shape(key), entry.shape(model, channels)
        if entry.hf == EMBED_TOKENS:
            wanted = (shape[0] if shape else 1, model.hidden_size)
        if shape != wanted:
            problems.append(f"{key} has shape {list(shape)} and not {list(wanted)}")
        elif folder.dtype(key) not in (torch.float32, torch.bfloat16, torch.float16):
            problems.append(f"{key} is {folder.dtype(key)} and not float32, bfloat16 or float16")
    if POSITION_TABLE in held and folder.shape(POSITION_TABLE) != (1, model.position_table_size**2, model.hidden_size):
        problems.append(
            f"{POSITION_TABLE} has shape {list(folder.shape(POSITION_TABLE))} and not "
            f"{[1, model.position_table_size**2, model.hidden_size]}"
        )
    unused = [key for key in UNUSED if folder_key(key, stock) in held]
    extra = sorted(held - known - {folder_key(key, stock) for key in UNUSED})
    if not allow_extra:
        problems += [f"{key} belongs to nothing (--allow-extra carries it along)" for key in extra]
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise UserError(
            f"{folder.path}: {len(problems)} tensors do not fit the model of its config.json: "
            f"{'; '.join(problems[:SHOWN])}{more}"
        )
    return unused + extra


@dataclass(frozen=True)
class Source:
    """A folder as what fills a model.

    places: the folder's key of every tensor that is taken, by its released key; side: those without a parameter; stock:
    a Phi-3 folder; dtype: what tensors are cast to, None keeps each one's own; condition: what the model was trained
    with.
    """

    folder: Folder
    model: ModelConfig
    channels: int
    hint_ids: tuple[int, int, int]
    places: dict[str, str]
    side: tuple[str, ...]
    stock: bool
    dtype: torch.dtype | None
    condition: ConditionConfig = NONE

    @property
    def entries(self) -> tuple[Parameter, ...]:
        """All parameters of the model."""
        return tuple(parameters(self.model, self.condition))

    def stored(self, key: str) -> torch.dtype:
        """The dtype a released tensor keeps: the folder's, or the one asked for; what starts afresh has the
        checkpoint's.
        """
        if key not in self.places:
            return self.checkpoint_dtype
        own = self.folder.dtype(self.places[key])
        # The position table is a constant, no parameter.
        return self.dtype if self.dtype is not None and own.is_floating_point and key != POSITION_TABLE else own

    @property
    def checkpoint_dtype(self) -> torch.dtype:
        """What holds every parameter of the folder exactly."""
        kinds = {self.stored(entry.hf) for entry in self.entries if entry.hf in self.places}
        return torch.bfloat16 if kinds == {torch.bfloat16} else torch.float32

    def tensor(self, entry: Parameter) -> Tensor:
        """A parameter in released layout and kept dtype; of the text table the three hint rows.  A stock folder's video
        parts start afresh.
        """
        if entry.hf not in self.places or (self.stock and entry.hf == EMBED_TOKENS):
            return initial(entry, self.model, self.channels, SEED).to(self.stored(entry.hf))
        value = self.folder.tensor(self.places[entry.hf])
        return (value[list(self.hint_ids)] if entry.hf == EMBED_TOKENS else value).to(self.stored(entry.hf))

    def side_entries(self) -> list[Entry]:
        """The tensors that travel along, under their released keys."""

        def entry(key: str) -> Entry:
            place = self.places[key]
            return Entry(
                key, self.folder.shape(place), self.stored(key), lambda: self.folder.tensor(place).to(self.stored(key))
            )

        return [entry(key) for key in self.side]

    def bytes(self) -> tuple[int, int]:
        """Of the parameters, and of the tensors that travel along."""
        shapes = ((entry.hf, entry.shape(self.model, self.channels)) for entry in self.entries)
        return sum(math.prod(shape) * self.stored(key).itemsize for key, shape in shapes), sum(
            entry.size for entry in self.side_entries()
        )

    def dtypes(self) -> dict[str, str]:
        """Names of all released tensors' dtypes, for `released.json`."""
        keys = [*(entry.hf for entry in self.entries), *self.side]
        return {key: str(self.stored(key)).removeprefix("torch.") for key in keys}


def open_source(
    folder: Folder, codec: CodecConfig, hint_ids: tuple[int, ...] | None, dtype: torch.dtype | None, allow_extra: bool
) -> Source:
    """Everything about a folder that has to be right before work starts; ValueError in one line."""
    stock = is_stock(folder)
    known = codec.name == "tiny" or bool(codec.path)
    if stock:
        channels = codec_geometry(codec).channels if known else STOCK_CHANNELS
        model = backbone(folder.config, f"{folder.path}/config.json", STOCK_PATCH, STOCK_TABLE)
    else:
        model, channels = sizes_of(folder)
        theirs = codec_geometry(codec).channels if known else channels
        if theirs != channels:
            raise UserError(
                f"{folder.path}: a model of {channels} latent channels, but its codec {codec.name} has "
                f"{theirs}; give the right one with --vae"
            )
    _check_scaling(folder, codec)
    condition = NONE if stock else condition_of(folder.config, f"{folder.path}/config.json")
    side = check_keys(folder, model, channels, allow_extra, condition)
    table = folder_key(EMBED_TOKENS, stock)
    assert table is not None
    ids = find_hints(folder, hint_ids, stock, folder.shape(table)[0])
    taken = {entry.hf: folder_key(entry.hf, stock) for entry in parameters(model, condition)} | {
        key: folder_key(key, stock) if key in UNUSED else key for key in side
    }
    places = {key: place for key, place in taken.items() if place is not None}
    return Source(folder, model, channels, ids, places, tuple(side), stock, dtype, condition)


def _check_scaling(folder: Folder, codec: CodecConfig) -> None:
    """ValueError for a folder that an earlier release exported with a VAE whose scaling it ignored: its model knows
    other latents than this release would give it.
    """
    code = [(folder.path / name).is_file() for name in ("frames_videogpt.py", "vae_videogpt.py")]
    if code == [True, False] and codec.path and ignored_before(diffusers_settings(codec)):
        raise UserError(
            f"{folder.path}: written by an earlier release, which ignored latents_mean and latents_std in "
            f"{codec.path}/config.json, so its model knows other latents; convert it with that release"
        )


def find_hints(folder: Folder, asked: tuple[int, ...] | None, stock: bool, vocabulary: int) -> tuple[int, int, int]:
    """Rows of the hint tokens: those asked for, those the folder names, or free ones of a stock tokenizer."""
    if asked is not None:
        if len(set(asked)) != 3 or not all(0 <= number < vocabulary for number in asked):
            raise UserError(
                f"--hint-ids {','.join(map(str, asked))}: expected three different rows of the text table, 0 "
                f"to {vocabulary - 1}"
            )
        return asked[0], asked[1], asked[2]
    found = folder.hint_ids()
    if found is None and stock:
        taken = _tokens(folder)
        if taken and max(STOCK_HINT_IDS) < vocabulary and not taken & set(STOCK_HINT_IDS):
            return STOCK_HINT_IDS
    if found is None:
        free = (
            f" and rows {', '.join(map(str, STOCK_HINT_IDS))} of the text table are not known to be free"
            if stock
            else ""
        )
        raise UserError(
            f"{folder.path}: neither its tokenizer nor its config.json names <|diffusion|>, <img> and "
            f"</img>{free}; give their ids: --hint-ids a,b,c"
        )
    return found


def _tokens(folder: Folder) -> set[int]:
    """Ids that a folder's tokenizer uses; empty where it has no tokenizer.json, which alone lists all of them."""
    present = [
        path
        for path in folder.carried()
        if path.name in TOKENIZER_FILES and path.parent in (Path("."), Path("tokenizer"))
    ]
    taken: set[int] = set()
    if not any(path.name == "tokenizer.json" for path in present):
        return taken
    for path in present:
        content = read_object(folder.path / path)
        inner = content.get("model")
        vocabulary = inner.get("vocab") if isinstance(inner, dict) else None
        for numbers in (content, vocabulary if isinstance(vocabulary, dict) else {}):
            taken |= {number for number in numbers.values() if type(number) is int}
        added = content.get("added_tokens")
        taken |= {
            token["id"]
            for token in (added if isinstance(added, list) else [])
            if isinstance(token, dict) and type(token.get("id")) is int
        }
        decoder = content.get("added_tokens_decoder")
        taken |= {
            int(number)
            for number in (decoder if isinstance(decoder, dict) else {})
            if re.fullmatch("[0-9]{1,9}", number)
        }
    return taken
