"""Parameters and work of an FSQ tokenizer from its sizes, layer by layer as `hub/common/fsq_tokenizer.py` has them.  No
PyTorch here: `check` asks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

Grid = tuple[int, int, int]


class Layer(NamedTuple):
    """A convolution `inside` -> `outside` whose result has `cells` cells for each channel; kernel: its side; extra:
    parameters of the norm and swish before it.
    """

    inside: int
    outside: int
    kernel: int
    cells: int
    extra: int = 0

    @property
    def parameters(self) -> int:
        """Weights, biases, and those of the layers before it."""
        return self.outside * (self.inside * self.kernel**3 + 1) + self.extra

    @property
    def multiplications(self) -> int:
        """Of a forward pass over one clip."""
        return self.cells * self.outside * self.inside * self.kernel**3


def _units(inside: int, outside: int, count: int, cells: int) -> Iterator[Layer]:
    """Residual units; a norm has two parameters a channel, a swish one."""
    for before in [inside, *[outside] * (count - 1)]:
        yield Layer(before, outside, 3, cells, 3 * before)
        yield Layer(outside, outside, 3, cells, 3 * outside)
        if before != outside:
            yield Layer(before, outside, 1, cells)


def _cells(clip: Grid) -> list[int]:
    """Of each grid, from pixels to codes."""
    frames, height, width = clip
    times = [frames, frames, (frames - 1) // 2 + 1, (frames - 1) // 4 + 1]
    return [time * (height >> n) * (width >> n) for n, time in enumerate(times)]


def encoder(width: int, units: int, channels: int, clip: Grid) -> tuple[Layer, ...]:
    """Pixels to codes.  channels: of a code; clip: frames, height and width in pixels, 1 + 4n and multiples of 8."""
    w, u, cells = width, units, _cells(clip)
    found = [Layer(3, w, 3, cells[0]), *_units(w, w, u, cells[0]), Layer(w, w, 3, cells[1])]
    found += [*_units(w, 2 * w, u, cells[1]), Layer(2 * w, 2 * w, 3, cells[2])]
    found += [*_units(2 * w, 2 * w, u, cells[2]), Layer(2 * w, 2 * w, 3, cells[3])]
    return (*found, *_units(2 * w, 4 * w, 2 * u, cells[3]), Layer(4 * w, channels, 1, cells[3], 12 * w))


def decoder(width: int, units: int, channels: int, clip: Grid) -> tuple[Layer, ...]:
    """Codes to pixels; as `encoder`."""
    w, u, cells = width, units, _cells(clip)
    found = [Layer(channels, 4 * w, 3, cells[3]), *_units(4 * w, 4 * w, 2 * u, cells[3])]
    found += [Layer(4 * w, 32 * w, 3, cells[3]), *_units(4 * w, 2 * w, u, cells[2])]
    found += [Layer(2 * w, 16 * w, 3, cells[2]), *_units(2 * w, 2 * w, u, cells[1])]
    found += [Layer(2 * w, 8 * w, 3, cells[1]), *_units(2 * w, w, u, cells[0])]
    return (*found, Layer(w, 3, 3, cells[0], 3 * w))
