"""Small text encoders with random weights, as folders of transformers and of diffusers' pipelines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from megatron_videogpt.condition.options import ConditionConfig

VOCABULARY = ("<pad>", "<s>", "</s>", "<unk>", *"a red blue green ball box falls bounces left right and the".split())
CAPTIONS = (
    "a red ball falls",
    "the blue box bounces left and the green ball bounces right and falls and falls",
    "a box",
    "green",
    "a red ball falls and unheard of words",
)


LONGEST = 12
"""Tokens to which the second caption is cut."""


def options_of(encoder: str, path: Path | str = "", **more: Any) -> ConditionConfig:
    """Texts by an encoder."""
    return ConditionConfig(kind="text", encoder=encoder, encoder_path=str(path), **{"max_tokens": LONGEST, **more})


def text_clip(folder: Path, width: int = 32, positions: int = 16, seed: int = 0) -> Path:
    """A CLIPTextModel; begin and end of a text are marked."""
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=positions,
        bos_token_id=1,
        eos_token_id=2,
    )
    return _saved(CLIPTextModel(config), folder, "<s> $A </s>")


def text_t5(folder: Path, width: int = 24, seed: int = 0) -> Path:
    """A T5EncoderModel; the end of a text is marked."""
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(seed)
    config = T5Config(vocab_size=len(VOCABULARY), d_model=width, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    return _saved(T5EncoderModel(config), folder, "$A </s>")


def _saved(model: torch.nn.Module, folder: Path, marked: str) -> Path:
    from transformers.utils import logging

    # Embeddings of the defaults are so small that all tokens look alike.
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3) if parameter.ndim > 1 else None
    logging.disable_progress_bar()
    model.save_pretrained(folder)  # type: ignore[operator]
    save_tokenizer(folder, marked)
    return folder


def save_tokenizer(folder: Path, marked: str, vocabulary: Sequence[str] = VOCABULARY) -> None:
    """tokenizer.json of whole words; `marked` places the marks around a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    ids = {word: number for number, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = [(mark, ids[mark]) for mark in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single=marked, special_tokens=marks)
    # As published ones do: neither is to be obeyed.
    tokenizer.enable_padding(length=77, pad_token="<pad>")
    tokenizer.enable_truncation(5)
    tokenizer.save(str(folder / "tokenizer.json"))


PIECES = {
    **{"<unk>": 0, "<s>": 1, "</s>": 2, "▁apply": 3394, "▁eye": 10977, "▁make": 1207, "up": 786, "▁band": 3719},
    **{"▁march": 8575, "ing": 292, "▁box": 3800, "▁p": 282, "unch": 3322, "▁bag": 19548, "▁speed": 6210},
    **{"▁basketball": 20305, "▁d": 270, "unk": 2960, "▁last": 31999},
}
"""Some of Llama-2's pieces, as the recorded ids of class folders have them, and its last id."""
PIECED = ("ApplyEyeMakeup", "BandMarching", "Basketball", "BasketballDunk", "BoxingPunchingBag", "BoxingSpeedBag")
"""Class folders whose texts are made of these."""


def text_ids(folder: Path, pieces: dict[str, int] | None = None) -> Path:
    """tokenizer.json that takes the longest pieces, after "▁" for every space, and marks the start as Llama's does."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    pieces = PIECES if pieces is None else pieces
    model = models.WordPiece(pieces, unk_token="<unk>", continuing_subword_prefix="")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    # Neither is to be obeyed.
    tokenizer.enable_padding(length=20)
    tokenizer.enable_truncation(3)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def as_pipeline(model: Path, folder: Path, number: str = "") -> Path:
    """The same as a pipeline of diffusers has it."""
    for name, wanted in (("text_encoder", ("config.json", "model.safetensors")), ("tokenizer", ("tokenizer.json",))):
        place = folder / f"{name}{number}"
        place.mkdir(parents=True, exist_ok=True)
        for file in wanted:
            (place / file).write_bytes((model / file).read_bytes())
    return folder


def change_settings(folder: Path, **changes: object) -> None:
    """Entries of config.json; None takes one out."""
    path = folder / "config.json"
    settings = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in settings.items() if value is not None}))
