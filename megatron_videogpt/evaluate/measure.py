"""Scores of guesses at what follows in scenes: pixel error, and the share of bodies found, by kind and by frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..config.schema import SampleConfig
from ..platforms import activate
from ..sample.generate import Model, Watch, generate
from .meter import share_found
from .scenes import Scene, extrapolated, repeated, round_trip

ROWS = {
    "model": "model",
    "repeat": "repeat the last frame",
    "linear": "linear extrapolation",
    "round_trip": "codec round trip of the truth",
}
"""The guesses, as they are called in the metrics and for readers."""


@dataclass(frozen=True)
class Score:
    """What a guess is worth.

    mse: mean over scenes and frames, pixels in [0, 1]; ratio: to that of repeating the last frame; found: by kind, mean
    over its frames and scenes; mean: over kinds; worst: the least of the kinds', worst_kind: which; mse_by_frame,
    found_by_frame: mean over scenes, and over kinds of the mean over scenes; errors: of every scene, by frame.
    """

    mse: float
    ratio: float
    found: dict[str, float]
    mean: float
    worst: float
    worst_kind: str
    mse_by_frame: list[float]
    found_by_frame: list[float]
    errors: list[list[float]]


def has_average(source: Path, step: int | None) -> bool:
    """Whether a run's checkpoint (its newest, or that of `step`) holds a moving average of the weights; False for a
    Hugging Face folder.  RunError, one line, where there is no checkpoint.
    """
    # Before anything imports megatron-core, which looks for its device as it is imported.
    activate("auto")
    from ..checkpoint.saved import find_checkpoint
    from ..sample.load import is_released

    return not is_released(source) and bool(find_checkpoint(source, step).state["ema"])


def all_guesses(
    model: Model, scenes: Sequence[Scene], settings: SampleConfig, seed: int, batch: int, watch: Watch | None = None
) -> dict[str, list[np.ndarray]]:
    """What the model and the simple guesses show after the given frames of every scene: by the names of `ROWS`, uint8
    ``[., H, W, 3]`` a scene.

    Arguments as of `generate`; the clips of the settings are as long as the truth.
    """
    continued = generate(model, [scene.prompt for scene in scenes], settings, seed, watch, batch)
    return {
        "model": [one.frames for one in continued],
        "repeat": [repeated(scene) for scene in scenes],
        "linear": [extrapolated(scene) for scene in scenes],
        "round_trip": [round_trip(scene, model.codec) for scene in scenes],
    }


def score_all(scenes: Sequence[Scene], guesses: Mapping[str, Sequence[np.ndarray]]) -> dict[str, Score]:
    """Scores of guesses, "repeat" among them, each with frames uint8 ``[F, H, W, 3]`` for every scene, whose truth is F
    frames too.
    """
    errors = {name: np.array([_errors(*pair) for pair in zip(scenes, videos)]) for name, videos in guesses.items()}
    found = {name: np.array([_found(*pair) for pair in zip(scenes, videos)]) for name, videos in guesses.items()}
    kinds = [scene.kind for scene in scenes]
    base = float(errors["repeat"].mean())
    return {name: _score(kinds, errors[name], found[name], base) for name in guesses}


def _errors(scene: Scene, frames: np.ndarray) -> np.ndarray:
    """Mean squared error of each frame, float64 ``[F]``, pixels in [0, 1]."""
    if frames.shape != scene.truth.shape:
        raise ValueError(f"a guess of {frames.shape} for a truth of {scene.truth.shape}")
    return np.square((frames.astype(np.float64) - scene.truth) / 255).mean((1, 2, 3))


def _found(scene: Scene, frames: np.ndarray) -> list[float]:
    """Share of the bodies of each frame that is found."""
    pairs = zip(frames, scene.masks[scene.given :])
    return [share_found(frame, masks, scene.colours, scene.discs) for frame, masks in pairs]


def _score(kinds: Sequence[str], errors: np.ndarray, found: np.ndarray, base: float) -> Score:
    """errors, found: ``[scenes, F]``; base: what the ratio is to."""
    names, places = list(dict.fromkeys(kinds)), np.array(kinds)
    by_kind = {name: float(np.nanmean(found[places == name])) for name in names}
    worst = min(names, key=by_kind.__getitem__)
    by_frame = np.mean([np.nanmean(found[places == name], axis=0) for name in names], axis=0)
    return Score(
        mse=float(errors.mean()),
        ratio=float(errors.mean()) / base,
        found=by_kind,
        mean=float(np.mean(list(by_kind.values()))),
        worst=by_kind[worst],
        worst_kind=worst,
        mse_by_frame=errors.mean(0).tolist(),
        found_by_frame=by_frame.tolist(),
        errors=errors.tolist(),
    )
