"""Measures between videos: against NumPy's and SciPy's own, and where the answer is known.  Against the original:
tests/parity/test_fsq_parity.py.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from megatron_videogpt.errors import UserError
from megatron_videogpt.evaluate.metrics import frechet_distance, psnr, resize_crop


def bilinear(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """Weights of the two nearest pixel centres in each direction."""

    def matrix(new: int, old: int) -> np.ndarray:
        place = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, None)
        low = np.minimum(place.astype(int), old - 1)
        weights = np.zeros((new, old))
        np.add.at(weights, (np.arange(new), low), 1 - (place - low))
        np.add.at(weights, (np.arange(new), np.minimum(low + 1, old - 1)), place - low)
        return weights

    return matrix(height, frame.shape[0]) @ frame @ matrix(width, frame.shape[1]).T


@pytest.mark.parametrize("height, width, size", [(9, 14, (7, 11)), (14, 9, (11, 7)), (8, 8, (7, 7)), (5, 6, (7, 9))])
def test_frames_are_resized_and_cut(height: int, width: int, size: tuple[int, int]) -> None:
    video = torch.rand(3, 2, height, width, generator=torch.Generator().manual_seed(0))
    out = resize_crop(video, 7)
    top, left = (size[0] - 7) // 2, (size[1] - 7) // 2
    whole = np.stack([bilinear(frame, *size) for frame in video.flatten(0, 1).numpy()]).reshape(3, 2, *size)
    np.testing.assert_allclose(out, whole[..., top : top + 7, left : left + 7], atol=1e-6)
    torch.testing.assert_close(resize_crop(video, 7, normalize=True), out * 2 - 1)


def test_distance_of_two_sets() -> None:
    random = np.random.default_rng(0)
    fake, real = random.normal(size=(40, 5)) @ random.normal(size=(5, 5)), random.normal(1, 2, size=(30, 5))
    covariances = np.cov(fake.T), np.cov(real.T)
    expected = np.square(fake.mean(0) - real.mean(0)).sum() + sum(map(np.trace, covariances))
    expected -= 2 * np.trace(sqrtm(covariances[0] @ covariances[1]).real)
    assert frechet_distance(torch.from_numpy(fake), torch.from_numpy(real)) == pytest.approx(expected, rel=1e-10)
    # Of numbers: the difference of the means, and of the deviations.
    one, other = torch.tensor([[0.0], [2.0], [4.0]]), torch.tensor([[1.0], [2.0]])
    assert frechet_distance(one, other) == pytest.approx(0.5**2 + (2 - math.sqrt(0.5)) ** 2, rel=1e-12)


def test_fewer_videos_than_features() -> None:
    """Singular covariances."""
    rows = torch.randn(6, 400, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(rows, rows) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(rows, rows + 3) == pytest.approx(9 * 400, rel=1e-6)


def test_peak_signal_to_noise() -> None:
    video = torch.rand(3, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    other = video.clone()
    other[1] += 1 / 255  # one step of 255
    other[2, 0] += 2 / 255  # half of the video: mean squared error 2
    found = psnr(video, other)
    assert found[0] == math.inf
    assert found[1:].tolist() == pytest.approx([20 * math.log10(255), 20 * math.log10(255 / math.sqrt(2))], rel=1e-5)


def test_inputs_that_do_not_fit_are_one_line() -> None:
    rows = torch.zeros(4, 3)
    for fake, real, said in (
        (rows[:1], rows, "fake features of shape \\[1, 3\\]"),
        (rows, rows[:, :2], "real features of shape \\[4, 2\\]"),
        (rows, rows + math.nan, "real features hold numbers that are not finite"),
    ):
        with pytest.raises(UserError, match=said):
            frechet_distance(fake, real)
    with pytest.raises(UserError, match="expected the same"):
        psnr(rows, rows[:2])
