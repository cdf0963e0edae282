"""How near a prediction is to what really happened, frame by frame: PSNR, SSIM, and LPIPS where its weights are on this
machine.
"""

from __future__ import annotations

import importlib.util
import math
import pickle
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError

Measure = Callable[[Tensor, Tensor], Tensor]
"""Two videos, float32 ``[F, 3, H, W]`` in [0, 1] -> a number for each frame, ``[F]``."""

SSIM_SIDE = 6  # pixels: its window reaches 5 over the edge, where it sees the picture mirrored
LPIPS_SIDE = 31  # pixels: in smaller pictures nothing is left after AlexNet's last pooling
CHUNK = 16  # frames at a time, so that long videos fit into memory

BACKBONE = "alexnet-owt-7be5be79.pth"  # as torchvision names it in torch.hub's folder
# Stride and padding of AlexNet's convolutions, their place among its `features`, and whether 3x3 pooling with stride 2
# comes before.
CONVOLUTIONS = ((0, 4, 2, False), (3, 1, 2, True), (6, 1, 1, True), (8, 1, 1, False), (10, 1, 1, False))
SHAPES = ((64, 3, 11, 11), (192, 64, 5, 5), (384, 192, 3, 3), (256, 384, 3, 3), (256, 256, 3, 3))
# LPIPS was fitted to pictures in [-1, 1] that are shifted and scaled so, per colour (ImageNet's statistics).
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)

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
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    def ssim(one: Tensor, other: Tensor) -> Tensor:
        value = structural_similarity_index_measure(one, other, data_range=1.0, reduction="none")
        assert isinstance(value, Tensor)
        return value

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

    The linear heads come with torchmetrics; AlexNet's convolutions are looked for where torchvision would keep them, in
    torch.hub's folder (``TORCH_HOME``).  Both are read as plain tensors: no code in them is run.

    Returns:
        The function, and "" or why there is none, in one line.
    """
    spec = importlib.util.find_spec("torchmetrics")
    if spec is None or spec.origin is None:
        return None, "no LPIPS: torchmetrics is not installed"
    backbone, heads = (
        Path(torch.hub.get_dir(), "checkpoints", BACKBONE),
        Path(spec.origin).parent / "functional" / "image" / "lpips_models" / "alex.pth",
    )
    missing = [path for path in (backbone, heads) if not path.is_file()]
    if missing:
        return None, f"no LPIPS: its weights are not on this machine ({missing[0]})"
    try:
        features, fitted = _tensors(backbone), _tensors(heads)
        weights = [features(f"features.{place}.weight", shape) for (place, *_), shape in zip(CONVOLUTIONS, SHAPES)]
        biases = [features(f"features.{place}.bias", shape[:1]) for (place, *_), shape in zip(CONVOLUTIONS, SHAPES)]
        linear = [fitted(f"lin{number}.model.1.weight", (1, shape[0], 1, 1)) for number, shape in enumerate(SHAPES)]
    except UserError as error:
        return None, f"no LPIPS: {error}"
    return partial(_lpips, list(zip(weights, biases)), linear), ""


def _tensors(path: Path) -> Callable[[str, tuple[int, ...]], Tensor]:
    """A function from key and shape to a float32 tensor of a PyTorch file; ValueError when the file is damaged, holds
    more than tensors, or lacks it.
    """
    try:
        # These files exist as pickles only; weights_only refuses whatever in them is not a tensor.
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, LookupError, ValueError) as error:
        raise UserError(f"{path}: not a file of tensors ({' '.join(str(error).split())[:80]})") from error

    def tensor(key: str, shape: tuple[int, ...]) -> Tensor:
        value = state.get(key) if isinstance(state, dict) else None
        if not isinstance(value, Tensor) or value.shape != shape:
            found = list(value.shape) if isinstance(value, Tensor) else "nothing of the kind"
            raise UserError(f"{path}: expected {key} of shape {list(shape)}, found {found}")
        return value.float()

    return tensor


@torch.no_grad()
def _lpips(convolutions: list[tuple[Tensor, Tensor]], heads: list[Tensor], first: Tensor, second: Tensor) -> Tensor:
    """Distance of AlexNet's features, normalised over channels, weighted by the heads, averaged over places and summed
    over its five layers.
    """
    total = torch.zeros(len(first))
    pair = _standard(torch.cat([first, second]))
    for (_, stride, padding, pool), (weight, bias), head in zip(CONVOLUTIONS, convolutions, heads):
        if pool:
            pair = F.max_pool2d(pair, 3, 2)
        pair = F.relu(F.conv2d(pair, weight, bias, stride, padding))
        directions = pair / (pair.square().sum(1, keepdim=True) + 1e-8).sqrt()
        one, other = directions.chunk(2)
        total += F.conv2d((one - other).square(), head).mean((1, 2, 3))
    return total


def _standard(video: Tensor) -> Tensor:
    """From [0, 1] to what AlexNet expects, float32."""
    shift, scale = (torch.tensor(values).view(1, 3, 1, 1) for values in (SHIFT, SCALE))
    return (2 * video.float() - 1 - shift) / scale


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
