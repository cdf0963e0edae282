"""Fields of a `config.json` of the published networks: what each may be, and as what the command line says it.  No
PyTorch here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ....errors import UserError

MOST = 2**24
"""Largest plausible number; what lies beyond is damage."""
CHUNK, TEXT_CHUNK = 8, 16
"""Frames of a chunk in the released networks without and with text, which their files do not say."""


@dataclass(frozen=True)
class Field:
    """sound: whether a value may be one; expected: for people; read: of a word of the command line, ValueError where it
    is none; default: where a file may leave it out.
    """

    sound: Callable[[Any], bool]
    expected: str
    read: Callable[[str], Any]
    default: Any = None
    optional: bool = False


def _whole(least: int, most: int = MOST, **more: Any) -> Field:
    def sound(value: Any) -> bool:
        return type(value) is int and least <= value <= most

    return Field(sound, f"a whole number from {least} to {most}", int, **more)


def _positive(**more: Any) -> Field:
    def sound(value: Any) -> bool:
        return type(value) in (int, float) and math.isfinite(value) and 0 < value <= MOST

    return Field(sound, "a number above 0", float, **more)


def _word(text: str) -> Any:
    return {"null": None, "none": None, "true": True, "false": False}.get(text, text)


def _one_of(*choices: Any) -> Field:
    def sound(value: Any) -> bool:
        return any(value is choice or type(value) is type(choice) and value == choice for choice in choices)

    return Field(sound, " or ".join(_shown(choice) for choice in choices), _word)


def _shown(choice: Any) -> str:
    return {None: "null", True: "true", False: "false"}.get(choice, str(choice))


def _size(text: str) -> list[int]:
    return [int(side) for side in text.split("x")]


def _sizes(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(type(n) is int and 0 < n <= MOST for n in value)


def _patch(value: Any) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) == 3
        and all(type(n) is int for n in value)
        and value[0] == 1
        and 0 < value[1] == value[2] <= MOST
    )


def _enhance(value: Any) -> bool:
    return value is None or isinstance(value, str)


FIELDS = {
    "hidden_size": _whole(4),
    "depth": _whole(1),
    "num_heads": _whole(1),
    "in_channels": _whole(1),
    "mlp_ratio": _positive(),
    "patch_size": Field(_patch, "[1, p, p]", _word),
    "input_size": Field(_sizes, "rows and columns of a latent frame, such as 32x32", _size),
    "max_tpe_len": _whole(1),
    "temp_extra_in_channels": _whole(0, 1),
    "spatial_attn_enhance": Field(_enhance, "null, prev_frames_N or first_frame", _word),
    "relative_tpe_mode": _one_of("cyclic", None),
    "is_causal": _one_of(True, False, "partial"),
    "caption_channels": _whole(0),
    "model_max_length": _whole(0),
    "space_scale": _positive(default=1.0, optional=True),
    "time_scale": _positive(default=1.0, optional=True),
    "class_dropout_prob": Field(
        lambda value: type(value) in (int, float) and 0 <= value <= 1, "a share", float, 0.1, True
    ),
    "pred_sigma": Field(lambda value: value is True, "true: the head predicts noise and variance", _word, True, True),
    "chunk": _whole(1, optional=True),
}


def checked(settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """All fields, those that may be left out among them; others are as they were.

    Raises:
        UserError: one line that begins with `where`: a field that is missing, or has a value that no network has.
    """
    found = dict(settings)
    for name, field in FIELDS.items():
        if name not in found and field.optional:
            found[name] = field.default
            if name == "chunk":
                found[name] = TEXT_CHUNK if found["caption_channels"] else CHUNK
        if name not in found:
            raise UserError(f"{where}: {name} is missing; expected {field.expected}")
        if not field.sound(found[name]):
            raise UserError(f"{where}: {name} is {found[name]!r:.40}; expected {field.expected}")
    _check_together(found, where)
    return found


def _check_together(settings: Mapping[str, Any], where: str) -> None:
    patch, size = settings["patch_size"][-1], settings["input_size"]
    if any(side % patch for side in size):
        raise UserError(f"{where}: input_size is {list(size)}; expected multiples of the patch's side, {patch}")
    if not int(settings["hidden_size"] * settings["mlp_ratio"]):
        raise UserError(f"{where}: mlp_ratio is {settings['mlp_ratio']}; expected an inner width of 1 or more")
    if bool(settings["caption_channels"]) != bool(settings["model_max_length"]):
        raise UserError(
            f"{where}: caption_channels is {settings['caption_channels']} and model_max_length "
            f"{settings['model_max_length']}; expected both, or 0 and 0 for a network without text"
        )


def said(told: Mapping[str, str], names: tuple[str, ...]) -> dict[str, Any]:
    """Values of the command line; UserError, one line, for a field that it cannot say, or a value that is none."""
    found: dict[str, Any] = {}
    for name, text in told.items():
        if name not in names:
            raise UserError(f"--published {name}: unknown, or told by the file; expected one of {', '.join(names)}")
        field = FIELDS[name]
        try:
            value = field.read(text)
        except ValueError:
            value = text
        if not field.sound(value):
            raise UserError(f"--published {name}={text:.40}: expected {field.expected}")
        found[name] = value
    return found
