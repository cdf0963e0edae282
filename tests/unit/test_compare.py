"""PSNR, SSIM and LPIPS of predictions, against formulas written out here and, for LPIPS, against torchmetrics' own
network; the plot.
"""

from __future__ import annotations

import json
import math
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import nn

from megatron_videogpt.codec.likeness import ALEXNET
from megatron_videogpt.sample.compare import compare, find_lpips, plot


def plain(value, frames=2, side=24):
    return np.full((frames, side, side + 8, 3), value, np.uint8)


def random_video(seed, frames=3, side=40):
    return np.random.default_rng(seed).integers(0, 256, (frames, side, side + 6, 3), dtype=np.uint8)


def ssim(one, other):
    """Wang et al. 2004 with scipy: 11x11 Gaussian windows around every pixel, mirrored at the edges; uint8
    [H, W, 3].
    """

    def local(values):
        return gaussian_filter(values, (1.5, 1.5, 0), truncate=3.5, mode="mirror")

    x, y = one / 255.0, other / 255.0
    mx, my = local(x), local(y)
    vx, vy, cov = local(x * x) - mx * mx, local(y * y) - my * my, local(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    return float(((2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))).mean())


def test_errors_of_plain_pictures_have_closed_forms():
    truth = np.concatenate([plain(0, 1), plain(51, 1), plain(102, 1)])
    result = compare(plain(51, 5), truth, None)
    assert result["frames"] == 3 and result["lpips"] is None and result["mean"]["lpips"] is None
    expected = 20 * math.log10(255 / 51)  # both neighbours are 51 levels away
    assert result["psnr"] == [pytest.approx(expected, abs=1e-4), None, pytest.approx(expected, abs=1e-4)], (
        "no error has no PSNR"
    )
    assert result["mean"]["psnr"] == pytest.approx(expected, abs=1e-4)
    c1 = 0.01**2
    luminance = [c1 / (0.2**2 + c1), 1.0, (2 * 0.2 * 0.4 + c1) / (0.2**2 + 0.4**2 + c1)]
    assert result["ssim"] == pytest.approx(luminance, abs=1e-3) and result["mean"]["ssim"] == pytest.approx(
        sum(luminance) / 3, abs=1e-3
    )
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_errors_of_pictures_with_structure_agree_with_their_formulas_in_every_chunk():
    truth = random_video(0, frames=18)
    predicted = (0.7 * truth + 0.3 * random_video(1, frames=18)).astype(np.uint8)
    result = compare(predicted, truth, None)
    squared = np.square((predicted.astype(float) - truth) / 255).mean((1, 2, 3))
    assert result["psnr"] == pytest.approx(-10 * np.log10(squared), abs=1e-3)
    assert result["ssim"] == pytest.approx([ssim(a, b) for a, b in zip(predicted, truth)], abs=2e-4)


def test_what_cannot_be_compared_is_one_line_and_small_pictures_leave_measures_out():
    for predicted, truth in [(plain(1, 0), plain(1)), (plain(1), plain(1, side=32))]:
        with pytest.raises(ValueError, match="expected at least one frame each, all of one size"):
            compare(predicted, truth, None)
    small = compare(plain(1, side=5), plain(2, side=5), lambda one, other: 1 / 0)
    assert small["ssim"] is None and small["lpips"] is None and len(small["psnr"]) == 2


@pytest.fixture
def backbone(tmp_path, monkeypatch):
    """AlexNet's convolutions with random weights, in the file that torch.hub's folder would have;
    returns the network.
    """
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    torch.manual_seed(3)
    features = nn.Sequential(
        *(nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2)),
    )
    path = tmp_path / "hub" / "checkpoints" / ALEXNET.files[0]
    path.parent.mkdir(parents=True)
    torch.save({f"features.{name}": value for name, value in features.state_dict().items()}, path)
    return features, path


def test_lpips_is_that_of_torchmetrics_and_grows_with_the_difference(backbone, monkeypatch):
    import torchmetrics.functional.image.lpips as theirs

    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda net, pretrained=False: backbone[0])
    network = theirs._LPIPS(pretrained=True, net="alex", pnet_rand=True)
    lpips, why = find_lpips()
    assert lpips is not None and why == ""
    truth, noise = random_video(5), random_video(6)
    mixed = [((1 - share) * truth + share * noise).astype(np.uint8) for share in (0.0, 0.1, 0.5)]
    values = [compare(one, truth, lpips)["lpips"] for one in mixed]
    assert values[0] == [0.0] * 3 and all(a < b < c for a, b, c in zip(*values))
    pair = [torch.from_numpy(video).permute(0, 3, 1, 2).float() / 255 for video in (mixed[2], truth)]
    assert values[2] == pytest.approx(network(*pair, normalize=True).flatten().tolist(), rel=1e-4)


def test_lpips_is_left_out_with_a_reason_and_nothing_in_a_file_is_run(backbone, tmp_path):
    path, trap = backbone[1], tmp_path / "trap"

    class Hostile:
        def __reduce__(self):
            return open, (str(trap), "w")

    whole = path.read_bytes()
    for content, reason in [
        (pickle.dumps(Hostile(), protocol=2), "not a file of tensors"),
        (whole[: len(whole) // 2], "not a file of tensors"),
        (b"", "not a file of tensors"),
        (None, "expected features.0.weight of shape [64, 3, 11, 11], found nothing of the kind"),
    ]:
        if content is None:
            torch.save({"features.0.bias": torch.zeros(64)}, path)
        else:
            path.write_bytes(content)
        lpips, why = find_lpips()
        assert lpips is None and why.startswith(f"no LPIPS: {path}: ") and reason in why and "\n" not in why
    assert not trap.exists()
    path.unlink()
    assert find_lpips() == (None, f"no LPIPS: its weights are not on this machine ({path})")


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


@pytest.mark.filterwarnings("error::UserWarning")  # matplotlib warns of glyphs and labels it leaves out
def test_plot_draws_a_panel_per_measure_and_breaks_the_line_at_frames_without_error(tmp_path):
    def size_and_blue(values, names, lpips=None):
        result = {"frames": 4, "psnr": values, "ssim": [0.5] * 4, "lpips": lpips, "mean": {}}
        plot({name: result for name in names}, tmp_path / "plot.png")
        picture = pixels(tmp_path / "plot.png")
        return *picture.shape[:2], int((abs(picture - (31, 119, 180)).max(2) < 8).any(0).sum())

    names = ["_from an underscore", r"costs $\x$"]
    height, width, _ = size_and_blue([30.0, 25.0, 20.0, 10.0], names)
    assert size_and_blue([30.0, 25.0, 20.0, 10.0], names, [0.1] * 4)[:2] == (
        height,
        pytest.approx(width + 4.2 * 120, abs=2),
    )
    assert size_and_blue([30.0, 25.0, 20.0, 10.0], [f"video {number}" for number in range(30)])[0] > height
    whole, gap = (size_and_blue([30.0, value, 20.0, 10.0], ["one"])[2] for value in (25.0, None))
    assert gap < whole - 20
