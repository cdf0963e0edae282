"""Where the tensors of a published network come from."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from .pickled import read_states, tensors_under
from .tokenizer import INSIDE

ENTRIES = ("state_dict", "module", "model")
"""Where a published file has its tensors, if it is not the state dict itself."""


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

    entry: of `ENTRIES`, where they are; "" in a file that is the state dict itself.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        content = read_states(path)
        self.entry = next((name for name in ENTRIES if name in content), "")
        state = tensors_under(content, ENTRIES, path)
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
