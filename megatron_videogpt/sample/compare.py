"""How near a prediction is to what really happened, frame by frame: PSNR, SSIM, and LPIPS where its weights are on this
machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..codec.likeness import ALEXNET, LPIPS, SSIM_SIDE, heads_path, ssim
from ..errors import UserError

Measure = Callable[[Tensor, Tensor], Tensor]
"""Two videos, float32 ``[F, 3, H, W]`` in [0, 1] -> a number for each frame, ``[F]``."""

LPIPS_SIDE = 31  # pixels: in smaller pictures nothing is left after AlexNet's last pooling
CHUNK = 16  # frames at a time, so that long videos fit into memory

METRICS = {"psnr": "PSNR (dB), higher is nearer", "ssim": "SSIM, higher is nearer", "lpips": "LPIPS, lower is nearer"}


def compare(predicted: np.ndarray, truth: np.ndarray, lpips: Measure | None) -> dict[str, Any]:
    """Errors of a prediction, ready for JSON.

    Args:
        predicted, truth: uint8 ``[F, H, W, 3]``; where one ends early, only the frames that both have count (at least
            one).
        lpips: from `find_lpips`.

    Returns:
        ``{"frames": compared, "psnr": [...], "ssim": [...], "lpips": [...], "mean": {"psnr": ..., "ssim": ..., "lpips":
        ...}}``, one number per frame. PSNR (dB) is None for a frame without error, and its mean is over the others.
        SSIM (Wang et al. 2004, Gaussian window of sigma 1.5, mirrored edges) is None below 6 pixels a side; LPIPS
        (Zhang et al. 2018, AlexNet) without weights, and below 31 pixels.

    Raises:
        ValueError: sizes differ, or no frame to compare.
    """
    frames = min(len(predicted), len(truth))
    if not frames or predicted.shape[1:] != truth.shape[1:]:
        raise ValueError(
            f"compare: frames of shape {predicted.shape} against {truth.shape}: expected at least one frame "
            "each, all of one size"
        )
    # Late, because it takes seconds, which only comparisons need.
    from torchmetrics.functional.image import peak_signal_noise_ratio

    side = min(predicted.shape[1:3])
    measures: dict[str, Measure | None] = {
        "psnr": partial(peak_signal_noise_ratio, data_range=1.0, reduction="none", dim=(1, 2, 3)),
        "ssim": ssim if side >= SSIM_SIDE else None,
        "lpips": lpips if side >= LPIPS_SIDE else None,
    }
    result: dict[str, Any] = {"frames": frames}
    for name, measure in measures.items():
        result[name] = None if measure is None else _per_frame(measure, predicted[:frames], truth[:frames])
    result["mean"] = {name: _mean(result[name]) for name in measures}
    return result


def _per_frame(measure: Measure, predicted: np.ndarray, truth: np.ndarray) -> list[float | None]:
    """The measure of every frame; None where it is infinite."""
    values: list[float] = []
    for start in range(0, len(predicted), CHUNK):
        pair = (
            torch.from_numpy(part[start : start + CHUNK]).permute(0, 3, 1, 2).float() / 255
            for part in (predicted, truth)
        )
        values += measure(*pair).reshape(-1).tolist()
    return [value if math.isfinite(value) else None for value in values]


def _mean(values: Sequence[float | None] | None) -> float | None:
    finite = [value for value in values or () if value is not None]
    return sum(finite) / len(finite) if finite else None


def find_lpips() -> tuple[Measure | None, str]:
    """LPIPS with AlexNet, from files that are on this machine already: nothing is downloaded.

    AlexNet's convolutions are looked for where torchvision would keep them, in torch.hub's folder (``TORCH_HOME``).

    Returns:
        The function, and "" or why there is none, in one line.
    """
    folder = Path(torch.hub.get_dir(), "checkpoints")
    try:
        for file in (folder / ALEXNET.files[0], heads_path(ALEXNET)):
            if not file.is_file():
                return None, f"no LPIPS: its weights are not on this machine ({file})"
        network = LPIPS(ALEXNET)
        network.load(folder)
    except UserError as error:
        return None, f"no LPIPS: {error}"
    return torch.no_grad()(network.requires_grad_(False)), ""


def plot(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Write a PNG of the error over the frame number: a panel per measure that some prompt has, a line per prompt.

    results: what `compare` returned, by the prompt's name (at least one).  A frame without error leaves a gap in the
    curve of PSNR.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    names = [name for name in METRICS if any(result[name] is not None for result in results.values())]
    figure = Figure(figsize=(2.4 + 4.2 * len(names), max(3.6, 0.8 + 0.17 * len(results))), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for axes, name in zip(panels, names):
        for place, result in enumerate(results.values()):
            values = np.array([np.nan if value is None else value for value in result[name] or ()], float)
            axes.plot(
                range(1, len(values) + 1),
                values,
                color=_colour(place, len(results)),
                marker="o",
                markersize=3,
                linewidth=1.4,
            )
        axes.set(xlabel="predicted frame", title=METRICS[name])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    # A dollar would start a formula, and labels with an underscore first are left out.
    labels = [f"\u200b{prompt[:40]}".replace("$", r"\$") for prompt in results]
    figure.legend(panels[0].lines, labels, loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=120, format="png")


def _colour(place: int, number: int) -> Any:
    """Distinct ones for a few lines, a scale for many."""
    from matplotlib import colormaps

    return colormaps["tab10"](place) if number <= 10 else colormaps["viridis"](0.95 * place / (number - 1))
