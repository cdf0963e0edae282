"""Pictures as arrays: resizing, the model's range and back, and writing a video."""

from __future__ import annotations

import os
from fractions import Fraction

import av
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...errors import UserError


def resize_frames(frames: np.ndarray, longest_side: int, multiple: int) -> np.ndarray:
    """Bring frames to a longest side, then crop both sides to a multiple (reference README, section 11).

    Halved with a box filter while the shorter side is at least twice the limit, bicubic to the limit on the longer side
    (small pictures grow), then a centred crop.

    Args:
        frames: uint8 [F, H, W, 3].
        longest_side: pixels, a multiple of ``multiple``.
        multiple: both returned sides are multiples of this.

    Returns:
        uint8 [F, h, w, 3] with max(h, w) = longest_side.

    Raises:
        ValueError: the shorter side would be empty.
    """
    height, width = frames.shape[1:3]
    target_w, target_h = resized_shape(width, height, longest_side, multiple)
    scale = longest_side / max(width, height)
    full_w, full_h = max(target_w, round(width * scale)), max(target_h, round(height * scale))
    left, top = (full_w - target_w) // 2, (full_h - target_h) // 2
    out = np.empty((len(frames), target_h, target_w, 3), np.uint8)
    for i, frame in enumerate(frames):
        picture = Image.fromarray(frame)
        while min(picture.size) >= 2 * longest_side:
            picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
        if picture.size != (full_w, full_h):
            picture = picture.resize((full_w, full_h), Image.Resampling.BICUBIC)
        out[i] = np.asarray(picture)[top : top + target_h, left : left + target_w]
    return out


def resized_shape(width: int, height: int, longest_side: int, multiple: int) -> tuple[int, int]:
    """(width, height) that `resize_frames` returns; ValueError when a side would be empty."""
    scale = longest_side / max(width, height)
    target = (round(width * scale) // multiple * multiple, round(height * scale) // multiple * multiple)
    if min(target) == 0:
        raise UserError(
            f"a {width}x{height} picture at longest side {longest_side} has a side below {multiple} pixels: "
            "raise data.longest_side"
        )
    return target


def to_model_range(frames: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """uint8 [F, H, W, 3] -> float32 [F, 3, H, W] in [-1, 1] on a device, which gets bytes and makes them floats."""
    return (
        torch.from_numpy(np.ascontiguousarray(frames)).to(device).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1.0
    )


def to_pixels(video: Tensor) -> np.ndarray:
    """float [F, 3, H, W] in [-1, 1] (clamped) -> uint8 [F, H, W, 3]; inverse of `to_model_range`."""
    return (
        ((video.detach().float().clamp(-1, 1) + 1.0) * 127.5)
        .round()
        .to(torch.uint8)
        .permute(0, 2, 3, 1)
        .contiguous()
        .cpu()
        .numpy()
    )


def write_video(path: str | os.PathLike[str], frames: np.ndarray, fps: float) -> None:
    """Write uint8 [F, H, W, 3] as one mp4, see `VideoWriter`."""
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(
            f"write_video: expected uint8 [F, H, W, 3] with F >= 1, got {frames.dtype} {list(frames.shape)}"
        )
    with VideoWriter(path, fps) as video:
        video.append(frames)


class VideoWriter:
    """A video that grows by whatever is appended: H.264 (yuv420p, mp4), which every player and browser shows.

    Odd sides get one repeated row or column, because yuv420p needs even ones.  The file appears under its name when the
    `with` block ends without an error, and is complete then.
    """

    def __init__(self, path: str | os.PathLike[str], fps: float) -> None:
        self.path, self._partial, self._rate = path, f"{os.fspath(path)}.partial", Fraction(fps).limit_denominator(1001)
        self._stream: av.VideoStream | None = None

    def __enter__(self) -> VideoWriter:
        self._container = av.open(self._partial, "w", format="mp4", options={"movflags": "+faststart"})
        return self

    def append(self, frames: np.ndarray) -> None:
        """uint8 [F, H, W, 3], F may be 0; sides as those of the first frames."""
        if not len(frames):
            return
        frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
        if self._stream is None:
            self._stream = self._container.add_stream(
                "libx264", rate=self._rate, options={"crf": "16", "preset": "medium"}
            )
            self._stream.width, self._stream.height, self._stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        for frame in frames:
            self._container.mux(
                self._stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24"))
            )

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None and self._stream is not None:
                self._container.mux(self._stream.encode())
            self._container.close()
            if kind is None:
                os.replace(self._partial, self.path)
        finally:
            if os.path.exists(self._partial):
                os.remove(self._partial)
