"""The tokenizer of next block prediction: a causal convolutional network in time and space around finite scalar
quantization (`fsq_codes.py`).  1 + 4n frames of H x W pixels become [1 + n, H/8, W/8] ids, and back.

The two files need torch and safetensors alone; in a folder of weights (`write_folder`):

    from fsq_tokenizer import FSQTokenizer
    tokenizer = FSQTokenizer.from_pretrained("FOLDER")
    ids = tokenizer.encode(video)                   # float [B, 3, 1 + 4n, H, W] in [0, 1] -> int64 [B, 1 + n, H/8, W/8]
    video = tokenizer.decode(ids)
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

try:
    from .fsq_codes import codes_of, ids_of, quantized
except ImportError:  # the folder itself is on sys.path
    from fsq_codes import codes_of, ids_of, quantized  # type: ignore[no-redef]

SPATIAL_STRIDE, TEMPORAL_STRIDE = 8, 4
WEIGHTS = "model.safetensors"
CODE = ("fsq_tokenizer.py", "fsq_codes.py")
FIELDS = ("width", "groups", "units", "levels")
FRAMES = 16  # of a piece of a long video
Past = dict[nn.Module, Tensor]  # what a layer keeps of the frames before, so that a video can go through in pieces


@dataclass(frozen=True)
class FSQShape:
    """Sizes of a tokenizer: channels at full resolution, groups of a norm, residual units of a stage, levels of each
    latent channel.  ValueError for sizes that cannot be.
    """

    width: int = 128
    groups: int = 32
    units: int = 4
    levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", tuple(self.levels))
        for name in ("width", "groups", "units"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= 65536:
                raise ValueError(f"{name}={value!r:.40}: expected a whole number from 1 on")
        if self.width % self.groups:
            raise ValueError(f"width={self.width}: expected a multiple of groups={self.groups}")
        if not self.levels or any(type(level) is not int or level < 2 for level in self.levels):
            raise ValueError(f"levels={list(self.levels)!r:.60}: expected whole numbers from 2 on, one a channel")

    @property
    def codebook_size(self) -> int:
        """Number of ids."""
        return math.prod(self.levels)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"levels": list(self.levels)}


def convolved(conv: nn.Conv3d, x: Tensor) -> Tensor:
    """``conv(x)``: by oneDNN, 5 times as fast, where torch does not choose it: one video, one CPU thread."""
    one = len(x) == 1 and x.device.type == "cpu" and x.dtype == torch.float32
    if torch.is_grad_enabled() or not one or not torch.backends.mkldnn.is_available():
        return conv(x)
    return torch.mkldnn_convolution(x, conv.weight, conv.bias, conv.padding, conv.stride, conv.dilation, conv.groups)


class CausalConv(nn.Module):
    """A convolution that sees no later frame.  Edges are repeated: two frames before the first, a pixel on each side;
    a kernel of 1 needs none.
    """

    def __init__(self, inside: int, outside: int, kernel: int = 3, stride: tuple[int, int, int] = (1, 1, 1)) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inside, outside, kernel, stride)
        self.kept = kernel - stride[0]  # frames that the next output needs of those before

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        if self.conv.kernel_size[0] == 1:
            return convolved(self.conv, x)
        before = None if past is None else past.get(self)
        x = torch.cat([x[:, :, :1].expand(-1, -1, 2, -1, -1) if before is None else before, x], 2)
        if past is not None:
            # A copy, or the whole piece would stay in memory.
            past[self] = x[:, :, x.shape[2] - self.kept :].clone()
        return convolved(self.conv, functional.pad(x, (1, 1, 1, 1, 0, 0), mode="replicate"))


class FrameNorm(nn.GroupNorm):
    """GroupNorm of each frame alone."""

    def forward(self, x: Tensor) -> Tensor:
        frames = x.transpose(1, 2)
        return super().forward(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]).transpose(1, 2)


class Swish(nn.Module):
    """x * sigmoid(beta * x), one learned beta per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.ones(1, channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.beta * x)


class ResidualUnit(nn.Module):
    """Norm, swish, convolution, twice; a 1x1x1 convolution beside them where the channels change."""

    def __init__(self, inside: int, outside: int, groups: int) -> None:
        super().__init__()
        first = [FrameNorm(groups, inside), Swish(inside), CausalConv(inside, outside)]
        second = [FrameNorm(groups, outside), Swish(outside), CausalConv(outside, outside)]
        self.fn = nn.ModuleList([*first, *second])
        # Named as in published files, where a unit that keeps its channels has no such key.
        self.residual_fn = nn.ModuleList([CausalConv(inside, outside, kernel=1)] if inside != outside else [])

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        return through(self.fn, x, past) + through(self.residual_fn, x, past)


class DepthToSpace(nn.Module):
    """Channels [(frame, row, column) of a block, channel] to blocks of pixels; the first frame of all gives one."""

    def __init__(self, block: tuple[int, int, int]) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        blocks = x.unflatten(1, (*self.block, -1))
        x = blocks.permute(0, 4, 5, 1, 6, 2, 7, 3).flatten(6, 7).flatten(4, 5).flatten(2, 3)
        if past is not None and self in past:
            return x
        if past is not None:
            past[self] = x[:, :, :0]
        return x[:, :, self.block[0] - 1 :]


def through(layers: Iterable[nn.Module], x: Tensor, past: Past | None = None) -> Tensor:
    """One layer after the other; `past` goes to those that keep something in it."""
    for layer in layers:
        x = layer(x, past) if isinstance(layer, (CausalConv, ResidualUnit, DepthToSpace)) else layer(x)
    return x


class FSQTokenizer(nn.Module):
    """Videos [B, 3, 1 + 4n, H, W] in [0, 1] to ids [B, 1 + n, H/8, W/8] and back; the keys of its state are those of
    published files.
    """

    def __init__(self, shape: FSQShape) -> None:
        super().__init__()
        self.shape = shape
        w, u, d = shape.width, shape.units, len(shape.levels)

        def units(inside: int, outside: int, count: int) -> list[nn.Module]:
            widths = [inside] + [outside] * count
            return [ResidualUnit(a, b, shape.groups) for a, b in zip(widths, widths[1:])]

        def last(channels: int) -> list[nn.Module]:
            return [FrameNorm(shape.groups, channels), Swish(channels)]

        encoder = [CausalConv(3, w), *units(w, w, u), CausalConv(w, w, stride=(1, 2, 2))]
        encoder += [*units(w, 2 * w, u), CausalConv(2 * w, 2 * w, stride=(2, 2, 2))]
        encoder += [*units(2 * w, 2 * w, u), CausalConv(2 * w, 2 * w, stride=(2, 2, 2))]
        encoder += [*units(2 * w, 4 * w, 2 * u), *last(4 * w), nn.Conv3d(4 * w, d, 1)]
        decoder = [CausalConv(d, 4 * w), *units(4 * w, 4 * w, 2 * u), CausalConv(4 * w, 32 * w)]
        decoder += [DepthToSpace((2, 2, 2)), *units(4 * w, 2 * w, u), CausalConv(2 * w, 16 * w)]
        decoder += [DepthToSpace((2, 2, 2)), *units(2 * w, 2 * w, u), CausalConv(2 * w, 8 * w)]
        decoder += [DepthToSpace((1, 2, 2)), *units(2 * w, w, u), *last(w), CausalConv(w, 3)]
        self.encoder_layers, self.decoder_layers = nn.ModuleList(encoder), nn.ModuleList(decoder)

    def features(self, video: Tensor, past: Past | None = None) -> Tensor:
        """Encoder output [B, d, 1 + n, H/8, W/8] before quantization."""
        return through(self.encoder_layers, video, past)

    def pixels(self, codes: Tensor, past: Past | None = None) -> Tensor:
        """Video of codes [B, d, 1 + n, h, w]; not clamped, so that training sees the error outside [0, 1] too."""
        return through(self.decoder_layers, codes, past)

    @torch.no_grad()
    def to_codes(self, video: Tensor, frames: int = FRAMES) -> Tensor:
        """Codes [B, d, 1 + n, H/8, W/8], float32; at most 1 + ``frames`` frames (a multiple of 4, at least 4) are in
        the network at once, and what they become does not depend on it, rounding aside.  ValueError for a video that
        the network does not divide.
        """
        check_video(video)
        past: Past = {}
        parts = _pieces(video, max(1, frames // TEMPORAL_STRIDE) * TEMPORAL_STRIDE)
        return torch.cat([quantized(self.features(part, past), self.shape.levels) for part in parts], 2)

    @torch.no_grad()
    def to_video(self, codes: Tensor, frames: int = FRAMES) -> Tensor:
        """float32 [B, 3, 1 + 4n, 8h, 8w], clamped to [0, 1]; ``frames`` as for `to_codes`."""
        past: Past = {}
        parts = _pieces(codes.to(self.encoder_layers[0].conv.weight.dtype), max(1, frames // TEMPORAL_STRIDE))
        return torch.cat([self.pixels(part, past).float().clamp(0, 1) for part in parts], 2)

    def encode(self, video: Tensor) -> Tensor:
        """int64 [B, 1 + n, H/8, W/8] of a video [B, 3, 1 + 4n, H, W] in [0, 1]; ValueError as for `to_codes`."""
        return ids_of(self.to_codes(video), self.shape.levels)

    def decode(self, ids: Tensor) -> Tensor:
        """float32 [B, 3, 1 + 4n, 8h, 8w] in [0, 1] of ids [B, 1 + n, h, w]; ValueError for ids that do not exist."""
        if ids.ndim != 4 or ids.numel() == 0:
            raise ValueError(f"ids of shape {list(ids.shape)}: expected [B, frames, height, width]")
        return self.to_video(codes_of(ids, self.shape.levels))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> FSQTokenizer:
        """The tokenizer of a folder with config.json and model.safetensors, float32; ValueError, one line, where that
        cannot be.
        """
        folder = Path(folder)
        try:
            settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            state = load_file(folder / WEIGHTS)
        except (OSError, ValueError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:150]
            raise ValueError(f"{folder}: no readable config.json and {WEIGHTS} of a tokenizer ({reason})") from error
        return filled(shape_of(settings, str(folder)), state, str(folder))

    def save_pretrained(self, folder: str | Path) -> None:
        """Settings, weights and code, as `from_pretrained` reads them."""
        state = {key: value.detach().cpu().contiguous() for key, value in self.state_dict().items()}
        write_folder(Path(folder), self.shape, state)


def check_video(video: Tensor) -> None:
    """ValueError unless it is [B, 3, 1 + 4n, 8h, 8w]."""
    if video.ndim != 5 or video.shape[1] != 3 or video.numel() == 0:
        raise ValueError(f"video of shape {list(video.shape)}: expected [B, 3, frames, height, width]")
    frames, height, width = video.shape[2:]
    if (frames - 1) % TEMPORAL_STRIDE:
        raise ValueError(f"{frames} frames: expected 1 + {TEMPORAL_STRIDE}n; cut or extend the video")
    if height % SPATIAL_STRIDE or width % SPATIAL_STRIDE:
        raise ValueError(f"frames of {height}x{width} pixels: expected multiples of {SPATIAL_STRIDE}; resize or crop")


def _pieces(x: Tensor, count: int) -> list[Tensor]:
    """[B, C, T, ...] cut in time: 1 + count, then count each."""
    rest = x[:, :, 1 + count :]
    return [x[:, :, : 1 + count], *(rest.split(count, 2) if rest.shape[2] else ())]


def shape_of(settings: Any, where: str) -> FSQShape:
    """The sizes that config.json says; ValueError that begins with ``where``."""
    if not isinstance(settings, dict) or any(name not in settings for name in FIELDS):
        raise ValueError(f"{where}: config.json is not of an FSQ tokenizer: expected {', '.join(FIELDS)}")
    if not isinstance(settings["levels"], list):
        raise ValueError(f"{where}: config.json has levels {settings['levels']!r:.40}; expected a list")
    try:
        return FSQShape(**{name: settings[name] for name in FIELDS})
    except ValueError as error:
        raise ValueError(f"{where}: config.json has {error}") from error


def filled(shape: FSQShape, state: dict[str, Tensor], where: str) -> FSQTokenizer:
    """A tokenizer with these weights, in evaluation mode, float32; ValueError that begins with ``where`` and names the
    first key that is missing, unknown or of another shape.
    """
    with torch.device("meta"):
        model = FSQTokenizer(shape)
    wanted = {key: list(value.shape) for key, value in model.state_dict().items()}
    for key, size in wanted.items():
        found = list(state[key].shape) if key in state else "nothing"
        if found != size or not state[key].is_floating_point():
            raise ValueError(f"{where}: weights have {found} for {key}; expected floating-point numbers {size}")
    unknown = sorted(state.keys() - wanted.keys())
    if unknown:
        raise ValueError(f"{where}: weights have {unknown[0]!r:.80}, which this tokenizer does not; expected {FIELDS}")
    model.load_state_dict({key: state[key].float() for key in wanted}, assign=True)
    return model.eval().requires_grad_(False)


def write_folder(folder: Path, shape: FSQShape, state: dict[str, Tensor]) -> None:
    """A folder that stands alone: settings, weights as they are, and the code."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"_class_name": "FSQTokenizer", **shape.to_dict(), "codebook_size": shape.codebook_size}
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    save_file(state, folder / WEIGHTS)
    for name in CODE:
        code = Path(__file__).with_name(name)
        if not (folder / name).exists() or not code.samefile(folder / name):
            shutil.copyfile(code, folder / name)
