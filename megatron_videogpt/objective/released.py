"""What a module `released` has (`build.released_modules`): how published files of a network look."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from ..codec.options import CodecConfig
from ..config.schema import Config, ModelConfig
from ..model.parameters import Parameter

Shapes = Mapping[str, tuple[int, ...]]
"""Of published tensors, by key."""
TOKENIZER, VAE = "tokenizer", "vae"
"""The folder of a network's codec in its own: an FSQ tokenizer, or what diffusers and this project call a VAE."""


@dataclass(frozen=True)
class Start:
    """Weights of another network that training starts from.

    settings: (shapes, what the user says, what messages begin with) -> `config.json` of the network that starts; fresh:
    parts of the keys that are not there and start afresh; dropped: of those that the network may have no place for.
    """

    settings: Callable[[Shapes, Mapping[str, str], str], dict[str, Any]]
    fresh: tuple[str, ...]
    dropped: tuple[str, ...]


class Released(Protocol):
    """A network that is exchanged by a table of its own."""

    MODEL_TYPE: str
    """Of `config.json`."""
    AUTO: dict[str, Any]
    """What `config.json` says to transformers."""
    HUB: str
    """The folder of `hub/` with the stand-alone model."""
    CODEC: str
    """`TOKENIZER` or `VAE`."""
    START: str
    """What some keys of a published file begin with, and those of no other network."""
    ENTRY: str
    """Where a new published file has its tensors; "" for a file that is the state dict itself."""
    BUFFERS: tuple[str, ...]
    """Published keys that travel along where the model has no parameter of theirs."""
    COMPUTED: tuple[str, ...]
    """Those of them that follow from `config.json`."""
    STARTS: Mapping[str, Start]
    """By name."""

    def channels_of(self, settings: Mapping[str, Any]) -> int:
        """Latent channels of a `config.json`, 0 of a network that takes none."""

    def pieces(self, entry: Parameter, model: ModelConfig, channels: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """(key, shape) of the published tensors whose rows, one after another, are a parameter."""

    def settings_of(self, config: Config, channels: int) -> dict[str, Any]:
        """Fields of `config.json` of a run."""

    def config_of(self, settings: Mapping[str, Any], config: Config, where: str) -> Config:
        """A configuration with the network of a `config.json`, everything else as it is, its codec among it.

        Raises:
            UserError: one line that begins with `where`: values that no network has.
        """

    def guessed(self, shapes: Shapes, codec: CodecConfig, told: Mapping[str, str], where: str) -> dict[str, Any]:
        """`config.json` of a published file, which has none; told: what the user says.  UserError, one line, where that
        is not enough, or contradicts the shapes.
        """

    def buffers(self, settings: Mapping[str, Any]) -> dict[str, Tensor]:
        """Of `BUFFERS`, those that a folder or file has whose run brings none along."""

    def card(self, config: Config) -> str:
        """Markdown of a folder's model card, from the title to the end of the section on use."""
