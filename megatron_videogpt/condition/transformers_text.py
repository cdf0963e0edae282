"""transformers' CLIP and T5 text models as text encoders: from local folders only and from safetensors only; nothing is
downloaded, no pickle is read and no code of a folder is run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import UserError, shortened
from .folder import CLASSES, WIDTHS, fingerprint_of, open_folder
from .options import ConditionConfig
from .tokenizer_file import FAST

TOKENIZERS = {"clip": "CLIPTokenizerFast", "t5": "T5TokenizerFast"}
LOADING = (OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError, SafetensorError)
"""What libraries raise over damaged files."""


class TransformersText:
    """The last hidden states of a CLIPTextModel or T5EncoderModel, of all tokens that its tokenizer gives: those that
    it adds (begin and end of a text) count, padding does not.  See `TextEncoder`.

    Pickled without its weights, which the process that gets it reads from the folder at its first use.
    """

    def __init__(self, options: ConditionConfig) -> None:
        self._options, self._folder = options, open_folder(options)
        self.name, self.max_tokens = options.encoder, options.max_tokens
        self.width: int = self._folder.settings[WIDTHS[options.encoder]]
        self.device, self._dtype = torch.device("cpu"), torch.float32
        _import(options)
        self._check_headers()
        least = self._tokenizer.num_special_tokens_to_add(False) + 1
        if self.max_tokens < least:
            raise UserError(
                f"condition.max_tokens={self.max_tokens}: must be at least {least}, the tokens that the tokenizer of "
                f"{options.encoder_path} adds to each text and one of the text"
            )

    @cached_property
    def fingerprint(self) -> str:
        """See `TextEncoder`; all weights are read for it."""
        return fingerprint_of(self._options, self._folder)

    def count(self, texts: Sequence[str]) -> list[int]:
        """See `TextEncoder.count`."""
        return [len(ids) for ids in self._ids(texts)]

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        """See `TextEncoder.encode`."""
        ids = self._ids(texts)
        if not ids:
            return []
        longest = max(map(len, ids))
        # What stands in place of padding does not matter: no real token attends to it.
        tokens = torch.tensor([row + [0] * (longest - len(row)) for row in ids], device=self.device)
        lengths = torch.tensor([len(row) for row in ids], device=self.device)
        real = torch.arange(longest, device=self.device) < lengths[:, None]
        features = self._model(input_ids=tokens, attention_mask=real.long()).last_hidden_state.float()
        return [row[: len(found)].contiguous() for row, found in zip(features, ids)]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> TransformersText:
        """See `TextEncoder.to`; loads the weights, UserError when they do not fit."""
        self.device, self._dtype = torch.device(device), dtype or self._dtype
        self._model.to(self.device, self._dtype)
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_model", "_tokenizer")}

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        if not all(text.strip() for text in texts):
            raise UserError("an empty caption")
        return [found.ids for found in self._tokenizer.encode_batch(list(texts))]

    @cached_property
    def _tokenizer(self) -> Any:
        """A tokenizers.Tokenizer that cuts and does not pad; of tokenizer.json where that is there, which needs nothing
        else, and of which no release of transformers makes anything of its own.
        """
        from tokenizers import Tokenizer

        options, folder = self._options, self._folder.tokenizer
        try:
            if self._folder.vocabulary[0].name == FAST:
                tokenizer = Tokenizer.from_file(str(folder / FAST))
            else:
                kind = getattr(_import(options), TOKENIZERS[options.encoder])
                tokenizer = kind.from_pretrained(
                    folder, local_files_only=True, trust_remote_code=False
                ).backend_tokenizer
            tokenizer.no_padding()
            tokenizer.enable_truncation(self.max_tokens)
        except Exception as error:  # noqa: BLE001  (tokenizers raises bare Exceptions)
            sentences = self._folder.vocabulary[0].suffix == ".model"
            missing = "; spiece.model needs pip install sentencepiece, tokenizer.json nothing" if sentences else ""
            raise UserError(
                f"condition.encoder_path={options.encoder_path}: the tokenizer in {folder} cannot be read "
                f"({shortened(error)}){missing}"
            ) from error
        return tokenizer

    @cached_property
    def _model(self) -> Any:
        options, wanted = self._options, CLASSES[self._options.encoder]
        transformers = _import(options)
        try:
            with _quiet(transformers):
                # transformers fills missing weights with random numbers and only warns, hence the loading report.
                model, report = getattr(transformers, wanted).from_pretrained(
                    self._folder.model,
                    local_files_only=True,
                    use_safetensors=True,
                    trust_remote_code=False,
                    output_loading_info=True,
                    dtype=torch.float32,
                )
        except LOADING as error:
            raise UserError(
                f"condition.encoder_path={options.encoder_path}: weights do not load into a {wanted} "
                f"({shortened(error)})"
            ) from error
        if report["missing_keys"]:
            raise UserError(
                f"condition.encoder_path={options.encoder_path}: {len(report['missing_keys'])} weights are missing, "
                f"{sorted(report['missing_keys'])[0]} for one"
            )
        return model.eval().requires_grad_(False).to(self.device, self._dtype)

    def _check_headers(self) -> None:
        for path in self._folder.weights:
            try:
                with safe_open(path, "pt"):
                    pass
            except (OSError, SafetensorError) as error:
                raise UserError(
                    f"condition.encoder_path={self._options.encoder_path}: {path.name} is damaged, or no safetensors "
                    f"file ({shortened(error)}); copy it again"
                ) from error


def _import(options: ConditionConfig) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            f"condition.encoder={options.encoder} needs the transformers package: pip install transformers (or use "
            "text features computed in advance, megatron-videogpt data encode-text)"
        ) from error
    return transformers


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without a bar, and without a table of the weights that a text model has no use for."""
    logging = transformers.utils.logging
    before, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bar:
            logging.enable_progress_bar()
