"""What a continuation becomes on the disk: a video, a GIF, a contact sheet, latents, and a report of how
it was made.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from ..data.video.pictures import VideoWriter, to_model_range
from ..errors import unusable
from .evaluate import psnr, squared_errors
from .generate import Clip
from .options import FORMATS
from .prompts import Prompt
from .render import contact_sheet, prediction_video

REPORT = ".json"
SHEET_FRAMES = 240  # a contact sheet of a longer video shows every second, third, ... frame


def output_path(base: Path, ending: str) -> Path:
    """The file of an output whose others begin alike (a dot in the name is no suffix)."""
    return base.with_name(base.name + ending)


class Output:
    """The files of one prompt, fed with its clips as they are finished.

    The mp4 grows with every clip, and nothing is kept for it; a GIF keeps its frames with 256 colours each, a contact
    sheet at most `SHEET_FRAMES` frames, a comparison all new frames, latents all latents.

    Attributes:
        count: new frames so far.
    """

    def __init__(
        self, base: Path, formats: Sequence[str], prompt: Prompt, given: Tensor, total: int, keep: bool = False
    ) -> None:
        """base: path of the files without their endings; given: latents ``[H, C, h, w]``; total: new frames to come;
        keep: for `kept`.
        """
        self.prompt, self.formats, self.keep, self.count = prompt, formats, keep, 0
        self.paths = {name: output_path(base, FORMATS[name]) for name in formats}
        self.report_path = output_path(base, REPORT)
        self._latents, self._frames, self._pictures = [given.cpu()], list[np.ndarray](), list[Image.Image]()
        self._every = -(-(len(prompt.condition) + total) // SHEET_FRAMES)
        self._tiles = prompt.condition[:: self._every], list[np.ndarray]()
        self._squares, self._compared = np.zeros(2), 0
        try:
            base.parent.mkdir(parents=True, exist_ok=True)
            self._video = VideoWriter(self.paths["mp4"], prompt.fps) if "mp4" in formats else None
        except OSError as error:
            raise unusable(error.filename or base, error) from error

    def __enter__(self) -> Output:
        if self._video is not None:
            self._video.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._video is not None:
            self._video.__exit__(*error)

    def append(self, clip: Clip) -> None:
        """The next clip; its frames may be empty, see `Clip`."""
        if "latents" in self.formats:
            self._latents.append(clip.latents)
        if not len(clip.frames):
            return
        if not self.count:
            self._show(self.prompt.condition, self.prompt.condition[:0], self._truth(0, 0))
        start, self.count = self.count, self.count + len(clip.frames)
        truth = self._truth(start, self.count)
        self._show(self.prompt.condition[:0], clip.frames, truth)
        if self.keep:
            self._frames.append(clip.frames)
        if "png" in self.formats:
            # The sheet's frames are every so many-th of the whole video.
            first = -(len(self.prompt.condition) + start) % self._every
            self._tiles[1].append(clip.frames[first :: self._every])
        if truth is not None and len(truth):
            pixels = np.concatenate([self.prompt.condition[-1:], truth])
            self._squares += len(truth) * np.array(squared_errors(to_model_range(clip.frames), pixels, 1))
            self._compared += len(truth)

    def _truth(self, start: int, end: int) -> np.ndarray | None:
        return None if self.prompt.truth is None else self.prompt.truth[start:end]

    def _show(self, condition: np.ndarray, predicted: np.ndarray, truth: np.ndarray | None) -> None:
        if (self._video is None and "gif" not in self.formats) or not len(condition) + len(predicted):
            return
        frames = prediction_video(condition, predicted, truth)
        if self._video is not None:
            self._video.append(frames)
        if "gif" in self.formats:
            self._pictures += [Image.fromarray(frame).quantize(256, dither=Image.Dither.NONE) for frame in frames]

    @property
    def kept(self) -> np.ndarray:
        """All new frames, uint8 ``[F, H, W, 3]``."""
        return np.concatenate(self._frames)

    @property
    def errors(self) -> dict[str, float | None]:
        """Of the prediction and of repeating the last given frame, over the true frames; empty without any.  Null where
        a number would be infinite.
        """
        if not self._compared:
            return {}
        model, repeat = (float(value) / self._compared for value in self._squares)
        named = {"mse_model": model, "psnr_model": psnr(model), "mse_repeat": repeat, "psnr_repeat": psnr(repeat)}
        named["ratio"] = model / repeat if repeat else math.inf
        return {name: value if math.isfinite(value) else None for name, value in named.items()}

    def finish(self, report: dict[str, Any]) -> list[Path]:
        """Write what is written at the end, the report last; returns all files but the video, which is complete when
        the `with` block ends.
        """
        if "gif" in self.formats:
            # Browsers take shorter times than 20 ms for 100 ms.
            _save_gif(self._pictures, max(20, round(1000 / self.prompt.fps)), self.paths["gif"])
        if "png" in self.formats:
            tiles = np.concatenate(self._tiles[1])
            truth = (
                None
                if self.prompt.truth is None
                else self.prompt.truth[-len(self.prompt.condition) % self._every :: self._every]
            )
            contact_sheet(self._tiles[0], tiles, truth, self.paths["png"], self._every)
        if "latents" in self.formats:
            tensors = {"given": self._latents[0].contiguous(), "generated": torch.cat(self._latents[1:])}
            facts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in report.items()}
            save_file(tensors, self.paths["latents"], facts)
        self.report_path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        return [*self.paths.values(), self.report_path]

    def describe(self) -> str:
        """How good the prediction is, in one line."""
        errors = self.errors
        if not errors:
            given = "the input ends with the given frames" if len(self.prompt.condition) else "no frame was given"
            return f"no ground truth: {given}"
        known = {name: math.nan if value is None else value for name, value in errors.items()}
        ours = f"prediction {known['psnr_model']:.2f} dB PSNR (MSE {known['mse_model']:.5f})"
        repeat = f"repeating the last given frame {known['psnr_repeat']:.2f} dB ({known['mse_repeat']:.5f})"
        return f"against the {self._compared} true frames: {ours}, {repeat}, ratio {known['ratio']:.3f}"


def _save_gif(pictures: list[Image.Image], milliseconds: int, path: Path) -> None:
    pictures[0].save(
        path,
        format="GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=milliseconds,
        loop=0,
        optimize=False,
        disposal=1,
    )
