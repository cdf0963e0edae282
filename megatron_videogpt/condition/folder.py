"""Folders of text encoders, from their small files: what is in one, how wide its features are, and what identifies it.

No PyTorch here: rules ask for widths, and importing PyTorch would take most of their time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from .digests import digest_of
from .options import CAPTION, IDS, ConditionConfig
from .tokenizer_file import FAST, ID_BYTES, ids_in, tokenizer_path

WORDS_WIDTH = 64
"""Width of the features of `words`."""
CLASSES = {"clip": "CLIPTextModel", "t5": "T5EncoderModel"}
"""Encoders with a folder, and what transformers calls the class."""
MODEL_TYPES = {"clip": ("clip_text_model", "clip"), "t5": ("t5",)}
WIDTHS = {"clip": "hidden_size", "t5": "d_model"}
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
SLOW = {"clip": ("vocab.json", "merges.txt"), "t5": ("spiece.model",)}
"""What a tokenizer is made from where tokenizer.json is not."""
BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
NUMBERED = ("", "_2", "_3")  # diffusers' pipelines with several encoders
UNUSED = {"architectures", "dtype", "torch_dtype", "transformers_version"}
"""Settings that features do not follow from."""


@dataclass(frozen=True)
class TextFolder:
    """A text encoder on a disk.

    model, tokenizer: folders; settings: of its config.json, of the text part only; weights: safetensors files, in
    order; vocabulary: the tokenizer's files.
    """

    model: Path
    tokenizer: Path
    settings: Mapping[str, Any]
    weights: tuple[Path, ...]
    vocabulary: tuple[Path, ...]


def text_width(options: ConditionConfig) -> int:
    """Width of the text features of a run, of `ids` how many there are; UserError, one line, where nothing tells it."""
    if options.width:
        return options.width
    if options.encoder == "words":
        return WORDS_WIDTH
    return folder_width(options)


def feature_width(options: ConditionConfig) -> int:
    """Numbers of a text's token as it is stored; UserError as `text_width`."""
    return ID_BYTES if options.encoder == IDS else text_width(options)


def folder_width(options: ConditionConfig) -> int:
    """Width that the folder of clip or t5 gives, or of ids how many; UserError, one line, where it is not usable."""
    if options.encoder == IDS:
        return ids_in(options)
    settings = _find(options)[1]
    return _number(options, settings, WIDTHS[options.encoder])


def longest_text(options: ConditionConfig) -> int:
    """Tokens that clip's folder allows at most; 0 where there is no limit (t5)."""
    return _number(options, _find(options)[1], "max_position_embeddings") if options.encoder == "clip" else 0


def open_folder(options: ConditionConfig) -> TextFolder:
    """The folder of clip or t5, its files found and its settings checked; no weight is read.

    Raises:
        UserError: one line: no such folder, one of another model, weights or tokenizer missing or pickled only, more
            `max_tokens` than it takes.
    """
    (model, tokenizer), settings = _find(options)
    _number(options, settings, WIDTHS[options.encoder])
    most = longest_text(options)
    if most and options.max_tokens > most:
        raise UserError(
            f"condition.max_tokens={options.max_tokens}: the encoder in {options.encoder_path} takes at most {most}; "
            f"use {most} or less"
        )
    return TextFolder(model, tokenizer, settings, _weights(options, model), _vocabulary(options, tokenizer))


def fingerprint_of(options: ConditionConfig, folder: TextFolder | None = None) -> str:
    """sha256, hexadecimal, of all that features follow from: encoder, tokens, which texts, settings, weights and
    tokenizer; not of where they lie.  UserError as `open_folder`.

    folder: of clip and t5, where it is open already.
    """
    description: dict[str, Any] = {"encoder": options.encoder, "max_tokens": options.text_tokens}
    if options.text_from != CAPTION:
        description["text_from"] = options.text_from
    if options.encoder == IDS:
        description["vocabulary"] = digest_of(tokenizer_path(options))
    elif options.encoder != "words":
        folder = folder or open_folder(options)
        description["settings"] = {
            name: value for name, value in folder.settings.items() if name[0] != "_" and name not in UNUSED
        }
        for part in ("weights", "vocabulary"):
            description[part] = [[path.name, digest_of(path)] for path in getattr(folder, part)]
    return digest_of(json.dumps(description, sort_keys=True).encode())


def _find(options: ConditionConfig) -> tuple[tuple[Path, Path], dict[str, Any]]:
    """((folder of the model, of the tokenizer), settings of the text part)."""
    wanted, root, name = CLASSES[options.encoder], Path(options.encoder_path), f"condition.encoder={options.encoder}"
    if not options.encoder_path:
        raise UserError(
            f"condition.encoder_path is empty: {name} needs a local folder with config.json, safetensors and tokenizer "
            f"of a {wanted}, or text features computed in advance (megatron-videogpt data encode-text) "
            "and condition.width"
        )
    if not root.is_dir():
        raise UserError(
            f"condition.encoder_path={options.encoder_path}: no such folder; give the one that holds a {wanted} and "
            "its tokenizer (nothing is downloaded)"
        )
    places = [(root, root)] if (root / "config.json").is_file() else _of_pipeline(root)
    if not places:
        raise UserError(
            f"condition.encoder_path={options.encoder_path}: no config.json in it, nor a text_encoder/ of a diffusers "
            f"pipeline; {name} needs the folder of a {wanted}"
        )
    found = [(place, _settings(options, place[0])) for place in places]
    for place, settings in found:
        if settings.get("model_type") in MODEL_TYPES[options.encoder]:
            return place, _text_part(settings)
    kinds = " and ".join(dict.fromkeys(_kind(settings) for _, settings in found))
    raise UserError(f"condition.encoder_path={options.encoder_path}: holds {kinds}, but {name} needs a {wanted}")


def _of_pipeline(root: Path) -> list[tuple[Path, Path]]:
    pairs = [(root / f"text_encoder{number}", root / f"tokenizer{number}") for number in NUMBERED]
    return [pair for pair in pairs if (pair[0] / "config.json").is_file()]


def _settings(options: ConditionConfig, folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"condition.encoder_path={options.encoder_path}: {folder / 'config.json'} cannot be read ({reason})"
        ) from error
    return found if isinstance(found, dict) else {}


def _text_part(settings: dict[str, Any]) -> dict[str, Any]:
    """Of a whole CLIP, what its text model reads; hidden_size has a default that its files may leave out."""
    if settings["model_type"] != "clip":
        return settings
    part = settings.get("text_config")
    return {"hidden_size": 512, "max_position_embeddings": 77, **(part if isinstance(part, dict) else {})}


def _kind(settings: dict[str, Any]) -> str:
    """What a config.json says that it is of, for people."""
    names = settings.get("architectures")
    name = names[0] if isinstance(names, list) and names else settings.get("_class_name") or "no architecture"
    return f"a {settings.get('model_type', 'model of no model_type')} ({name})"[:100]


def _number(options: ConditionConfig, settings: dict[str, Any], name: str) -> int:
    value = settings.get(name)
    if type(value) is not int or value < 1:
        raise UserError(
            f"condition.encoder_path={options.encoder_path}: config.json gives {name}={value!r:.40}; "
            f"{CLASSES[options.encoder]} needs a number of at least 1"
        )
    return value


def _weights(options: ConditionConfig, folder: Path) -> tuple[Path, ...]:
    where = f"condition.encoder_path={options.encoder_path}"
    if (folder / WEIGHTS).is_file():
        return (folder / WEIGHTS,)
    if (folder / WEIGHTS_INDEX).is_file():
        return _parts(where, folder)
    if any(folder.glob("pytorch_model*.bin")):
        raise UserError(
            f"{where}: only pickled weights (pytorch_model.bin) in {folder}, which are never loaded; convert them "
            f"once, where you trust them: {CLASSES[options.encoder]}.from_pretrained(OLD).save_pretrained(NEW)"
        )
    raise UserError(f"{where}: no {WEIGHTS} in {folder}, nor {WEIGHTS_INDEX} with its parts")


def _parts(where: str, folder: Path) -> tuple[Path, ...]:
    try:
        listed = json.loads((folder / WEIGHTS_INDEX).read_text(encoding="utf-8"))["weight_map"].values()
        names = sorted(set(listed))
        sound = all(Path(name).name == name and name.endswith(".safetensors") for name in names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{where}: {WEIGHTS_INDEX} cannot be read; it must have weight_map") from error
    if not names or not sound:
        raise UserError(f"{where}: {WEIGHTS_INDEX} must name .safetensors files of its folder, and nothing else")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{where}: {len(missing)} of {len(names)} weight files are missing, {missing[0]} for one")
    return tuple(folder / name for name in names)


def _vocabulary(options: ConditionConfig, folder: Path) -> tuple[Path, ...]:
    if (folder / FAST).is_file():
        return (folder / FAST,)
    slow = SLOW[options.encoder]
    if all((folder / name).is_file() for name in slow):
        return tuple(folder / name for name in (*slow, *BESIDE) if (folder / name).is_file())
    raise UserError(
        f"condition.encoder_path={options.encoder_path}: no tokenizer in {folder}: it needs {FAST}, or "
        f"{' and '.join(slow)}; give the folder that has model and tokenizer, or the pipeline's that has text_encoder/ "
        "and tokenizer/"
    )
