"""The stand-alone network as its sampler asks it (`sampling_frameprompt.Memory`), with keys and values of finished
frames kept, or with the whole window computed again in every step.
"""

from __future__ import annotations

import torch
from torch import Tensor

try:
    from .layers_frameprompt import Text
    from .modeling_frameprompt import FramePromptModel
    from .sampling_frameprompt import Memory
except ImportError:  # the folder itself is on sys.path
    from layers_frameprompt import Text  # type: ignore[no-redef]
    from modeling_frameprompt import FramePromptModel  # type: ignore[no-redef]
    from sampling_frameprompt import Memory  # type: ignore[no-redef]


def memory_of(
    model: FramePromptModel,
    window: int,
    cached: bool = True,
    text: Tensor | None = None,
    mask: Tensor | None = None,
    guided: bool = False,
) -> Memory:
    """For videos with these texts, see `FramePromptModel.forward`; guided: with a second row a video whose text is
    replaced by "no text", under the same mask.

    Raises:
        ValueError: guidance of a model without text, or a cache of one that is not causal.
    """
    if guided and text is None:
        raise ValueError("guidance: is by a text, and there is none; use a scale of 1")
    if cached and not model.config.is_causal:
        raise ValueError(
            "is_causal=False: without causal attention what is cached would not hold; sample without cache"
        )
    with torch.no_grad():
        told = model.tell(text, mask)
        if guided and text is not None and told is not None:
            untold = model.tell(text, mask, torch.ones(len(text), dtype=torch.bool, device=text.device))
            assert untold is not None
            seen = None if told[1] is None else told[1].repeat(2, 1)
            told = torch.cat([untold[0], told[0]]), seen
    return CachedMemory(model, told, guided, window) if cached else WholeMemory(model, told, guided)


class CachedMemory:
    """Every frame goes through the network once, after its chunk is finished.  With guidance there is a cache a row."""

    cached = True

    def __init__(self, model: FramePromptModel, told: Text | None, guided: bool, window: int) -> None:
        self.model, self.told, self.guided, self.window = model, told, guided, window
        self.begin()

    def begin(self) -> None:
        """See `Memory.begin`."""
        self.cache = self.model.new_cache(self.window)

    def show(self, frames: Tensor, start: int) -> None:
        """See `Memory.show`."""
        if start != self.cache.written:
            raise ValueError(f"frames from {start} on: the cache has {self.cache.written}")
        self.model.write(_rows(frames, self.guided), self.cache, self.told)

    def predict(self, z: Tensor, t: float) -> tuple[Tensor, Tensor | None]:
        """See `Memory.predict`."""
        return _parted(self.model.denoise(_rows(z, self.guided), int(t), self.cache, self.told), self.guided)


class WholeMemory:
    """The window goes through the network again in every step."""

    cached = False

    def __init__(self, model: FramePromptModel, told: Text | None, guided: bool) -> None:
        self.model, self.told, self.guided = model, told, guided
        self.begin()

    def begin(self) -> None:
        """See `Memory.begin`."""
        self.prompt: Tensor | None = None
        self.start = 0

    def show(self, frames: Tensor, start: int) -> None:
        """See `Memory.show`."""
        self.prompt, self.start = frames, start

    def predict(self, z: Tensor, t: float) -> tuple[Tensor, Tensor | None]:
        """See `Memory.predict`."""
        if self.prompt is None:
            raise ValueError("nothing was shown yet: frame as prompt needs a first frame")
        prompt, frames = self.prompt.shape[1], torch.cat([self.prompt, z], 1)
        times = torch.zeros(frames.shape[:2], dtype=torch.int64, device=z.device)
        times[:, prompt:] = int(t)
        rows = _rows(frames, self.guided)
        raw = self.model.whole(rows, _rows(times, self.guided), prompt, self.start, self.told)
        return _parted(raw[:, prompt:], self.guided)


def _rows(values: Tensor, guided: bool) -> Tensor:
    """Without the text, then with it."""
    return torch.cat([values, values]) if guided else values


def _parted(raw: Tensor, guided: bool) -> tuple[Tensor, Tensor | None]:
    if not guided:
        return raw, None
    without, told = raw.chunk(2)
    return told, without
