"""The published tokenizer of next block prediction to a folder that stands alone, and back: the same bits."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..errors import UserError
from ..hub.common.fsq_tokenizer import WEIGHTS, FSQShape, filled, shape_of, write_folder
from .pickled import read_states, tensors_under
from .untrusted import read_header, read_object

ENTRIES = ("model_state_dict", "state_dict")
"""Where published files have their tensors: the tokenizer's own, and a transformer's with the tokenizer in it."""
INSIDE, PARALLEL = "first_stage_model.", "module."
"""What stands before every key of a tokenizer: in a transformer's file, and in its own."""
STAGES, REST = 5, 7
"""An encoder has 5 times as many residual units as a stage, and 7 other layers."""


def to_folder(source: Path, output: Path, groups: int, levels: tuple[int, ...]) -> FSQShape:
    """Write the tokenizer of a published file as a folder, and read it back; its shape.

    Args:
        groups, levels: what keys and shapes do not tell.

    Raises:
        UserError: one line: a file that `read_states` refuses, or one that holds no tokenizer of these sizes.
    """
    state = tokenizer_tensors(tensors_under(read_states(source), ENTRIES, source))
    shape = shape_of_tensors(state, groups, levels, source)
    filled_by(shape, state, source)
    write_folder(output, shape, {key: value.contiguous() for key, value in state.items()})
    _check_equal(load_file(output / WEIGHTS), state, output)
    return shape


def to_published(source: Path, output: Path) -> FSQShape:
    """Write the tokenizer of a folder as a published file, and read it back; its shape.  UserError, one line, where the
    folder is none.
    """
    try:
        shape = shape_of(read_object(source / "config.json"), str(source))
    except ValueError as error:
        raise UserError(str(error)) from error
    read_header(source / WEIGHTS)
    state = load_file(source / WEIGHTS)
    keys = filled_by(shape, state, source)
    torch.save({ENTRIES[0]: {PARALLEL + key: state[key] for key in keys}}, output)
    _check_equal(tokenizer_tensors(tensors_under(read_states(output), ENTRIES, output)), state, output)
    return shape


def tokenizer_tensors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tokenizer's tensors by its own keys: of a transformer's file those of the frozen tokenizer in it."""
    for prefix in (INSIDE, PARALLEL):
        if any(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return state


def shape_of_tensors(state: dict[str, Tensor], groups: int, levels: tuple[int, ...], source: Path) -> FSQShape:
    """The shape that keys and sizes tell, with these groups and levels; UserError, one line, where they tell none."""
    first, entry = state.get("encoder_layers.0.conv.weight"), state.get("decoder_layers.0.conv.weight")
    numbers = {key.split(".")[1] for key in state if key.startswith("encoder_layers.")}
    units, left = divmod(len(numbers) - REST, STAGES)
    if first is None or entry is None or not first.ndim == entry.ndim == 5 or left or units < 1:
        known = next(iter(sorted(state)), "nothing")
        raise UserError(
            f"{source}: holds no FSQ tokenizer: expected keys from encoder_layers.0.conv.weight on, found {known!r:.80}"
        )
    if entry.shape[1] != len(levels):
        raise UserError(
            f"{source}: a tokenizer of {entry.shape[1]} channels, and --levels gives {len(levels)} "
            f"({' '.join(map(str, levels))}); expected a number of levels for each channel"
        )
    try:
        return FSQShape(first.shape[0], groups, units, levels)
    except ValueError as error:
        raise UserError(f"{source}: {error}") from error


def filled_by(shape: FSQShape, state: dict[str, Tensor], source: Path) -> list[str]:
    """The keys in the network's own order; UserError where one is missing, unknown or of another shape."""
    try:
        return list(filled(shape, state, str(source)).state_dict())
    except ValueError as error:
        raise UserError(str(error)) from error


def _check_equal(written: dict[str, Tensor], state: dict[str, Tensor], output: Path) -> None:
    """What was written is what was meant, bit for bit."""
    wrong = [key for key in state if key not in written or not _same_bits(written[key], state[key])]
    if wrong or written.keys() != state.keys():
        raise UserError(f"{output}: what was written reads back otherwise ({wrong[:1]}); is the disk sound?")


def _same_bits(one: Tensor, other: Tensor) -> bool:
    same = (one.dtype, one.shape) == (other.dtype, other.shape)
    return same and torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))
