"""Records of a run: what stands in the files, and what a resume drops."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megatron_videogpt.config.schema import Config, LoggingConfig
from megatron_videogpt.data.decode import probe
from megatron_videogpt.objective.next_clip.objective import NextClipDiffusion
from megatron_videogpt.train.curves import plot_loss, read_metrics, series, smooth
from megatron_videogpt.train.metrics import MetricsWriter, peak_tflops
from megatron_videogpt.train.progress import Progress

METRICS = NextClipDiffusion(2, 16).metrics
PLAIN = Config(logging=LoggingConfig(tensorboard=False))


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_each_line_is_on_disk_at_once_with_plain_numbers(tmp_path):
    writer = MetricsWriter(tmp_path / "run", PLAIN, True)
    writer.log(1, {"loss": np.float32(0.5), "tokens": 3})
    writer.log(2, {"loss": math.nan, "grad_norm": math.inf})
    assert lines(tmp_path / "run") == [
        {"step": 1, "loss": 0.5, "tokens": 3.0},
        {"step": 2, "loss": None, "grad_norm": None},
    ]
    assert "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text()
    writer.close()


def test_other_ranks_write_nothing(tmp_path):
    writer = MetricsWriter(tmp_path / "run", PLAIN, False)
    writer.log(1, {"loss": 1.0})
    writer.video(1, "prediction", np.zeros((1, 8, 8, 3), np.uint8))
    writer.close()
    assert not (tmp_path / "run").exists()


def record(folder, steps, resume_step=0):
    writer = MetricsWriter(folder, PLAIN, True, resume_step)
    for step in steps:
        writer.log(step, {"loss": float(step)})
        if step % 2 == 0:
            writer.log(step, {"validation_loss": float(step)})
    writer.close()


def test_a_resume_drops_what_came_after_its_checkpoint_and_a_line_cut_short(tmp_path):
    record(tmp_path, range(1, 6))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    record(tmp_path, range(3, 8), resume_step=2)
    record(tmp_path / "uninterrupted", range(1, 8))
    assert lines(tmp_path) == lines(tmp_path / "uninterrupted")


def test_measuring_the_resumed_step_again_replaces_the_earlier_line(tmp_path):
    record(tmp_path, range(1, 5))
    writer = MetricsWriter(tmp_path, PLAIN, True, resume_step=4)
    writer.log(4, {"validation_loss": 9.0})
    writer.close()
    last = [line for line in lines(tmp_path) if line["step"] == 4]
    assert last == [{"step": 4, "loss": 4.0}, {"step": 4, "validation_loss": 9.0}]


def test_a_fresh_start_begins_the_file_anew(tmp_path):
    record(tmp_path, range(0, 4))
    record(tmp_path, range(0, 2))
    assert lines(tmp_path) == [{"step": 0, "loss": 0.0}, {"step": 0, "validation_loss": 0.0}, {"step": 1, "loss": 1.0}]


def test_tensorboard_has_each_step_once_after_a_resume_and_a_moving_picture(tmp_path):
    frames = np.arange(3 * 16 * 24 * 3, dtype=np.uint32).astype(np.uint8).reshape(3, 16, 24, 3)
    for start, resume_step, scale in ((1, 0, 1.0), (3, 2, 10.0)):
        writer = MetricsWriter(tmp_path, Config(), True, resume_step, METRICS)
        for step in range(start, start + 3):
            writer.log(step, {"loss": scale * step, "loss_t0.0-0.2": 1.0})
        writer.video(start, "prediction", frames)
        writer.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [
        (1, 1.0),
        (2, 2.0),
        (3, 30.0),
        (4, 40.0),
        (5, 50.0),
    ]
    assert "loss_by_noise_level/loss_t0.0-0.2" in events.Tags()["scalars"]
    picture = events.Images("prediction")[-1]
    with Image.open(io.BytesIO(picture.encoded_image_string)) as image:
        assert (image.n_frames, image.size) == (3, (24, 16))
    info = probe(tmp_path / "videos" / "prediction_00000003.mp4")
    assert (info.frames, info.width, info.height) == (3, 24, 16)


def test_wandb_that_is_not_installed_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(ValueError, match="pip install wandb"):
        MetricsWriter(tmp_path, Config(logging=LoggingConfig(tensorboard=False, wandb=True)), True)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989.0),
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA H20", 148.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA A1000", None),
        ("Ascend910B3", None),
        ("cpu", None),
    ],
)
def test_peak_tflops(name, peak):
    assert peak_tflops(name) == peak


def test_what_validation_alone_counts_is_drawn_and_grouped_where_it_is(tmp_path):
    metrics, config = NextClipDiffusion(2, 16, frames=4).metrics, Config()
    widths = []
    for name, measured in (("without", {}), ("with", {"frame_loss_0": 0.4, "frame_loss_3": 0.6})):
        folder = tmp_path / name
        writer = MetricsWriter(folder, config, True, 0, metrics)
        for step in (1, 2):
            errors = {f"se_{name}": 0.1 for name in measured}
            values = {f"validation_{name}": step * value for name, value in (measured | errors).items()}
            writer.log(step, {"loss": 1.0, "loss_t0.0-0.2": 1.0})
            writer.log(step, {"validation_loss": 1.0, "validation_se_loss": 0.2, **values})
        writer.curve("mean squared error", metrics)
        writer.close()
        with Image.open(folder / "loss.png") as picture:
            widths.append(picture.size[0])
    assert widths == [2 * 660, 3 * 660], "the loss, by noise level, and by place: nothing was measured by history"
    tags = EventAccumulator(str(tmp_path / "with" / "tensorboard")).Reload().Tags()["scalars"]
    wanted = {"loss_by_frame/validation_frame_loss_3", "standard_error/validation_se_frame_loss_3"}
    assert wanted | {"standard_error/validation_se_loss", "validation/validation_loss"} <= set(tags)


def test_smoothing_keeps_straight_lines_and_averages_noise():
    line = np.linspace(3, 7, 200)
    assert np.allclose(smooth(line)[:-5], line[:-5])
    assert smooth(line)[-1] == pytest.approx(line[-6:].mean()), "200 points: five neighbours, at the end those before"
    flicker = np.tile([0.0, 1.0], 200)
    assert np.abs(smooth(flicker)[20:] - 0.5).max() < 0.05
    assert np.array_equal(smooth(np.array([5.0])), [5.0])


def test_series_skips_lines_without_the_metric():
    points = series(
        [{"step": 2, "loss": 1.0}, {"step": 1, "loss": 3.0}, {"step": 3, "loss": None}, {"step": 4}], "loss"
    )
    assert points[0].tolist() == [1, 2] and points[1].tolist() == [3, 1]


def test_the_loss_curve_is_a_picture_with_every_curve(tmp_path):
    writer = MetricsWriter(tmp_path, PLAIN, True)
    for step in range(1, 60):
        bins = {f"loss_t{i / 5:.1f}-{(i + 1) / 5:.1f}": (1 + i) / step for i in range(5)}
        writer.log(step, {"loss": 2 / step, **bins})
    writer.close()
    plot_loss(tmp_path / "metrics.jsonl", tmp_path / "plain.png", METRICS, "mean squared error")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 30, "validation_loss": 0.5}\n{"step": 59, "validation_loss": 0.4}\n')
    plot_loss(tmp_path / "metrics.jsonl", tmp_path / "validated.png", METRICS, "mean squared error")
    pictures = [np.asarray(Image.open(tmp_path / name).convert("RGB")) for name in ("plain.png", "validated.png")]
    orange = [
        int(((p[..., 0] > 240) & (abs(p[..., 1].astype(int) - 127) < 15) & (p[..., 2] < 40)).sum()) for p in pictures
    ]
    assert orange[0] == 0 and orange[1] > 50, "the validation loss is drawn in orange"
    (tmp_path / "empty.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(ValueError, match="no line with a loss"):
        plot_loss(tmp_path / "empty.jsonl", tmp_path / "never.png")
    assert read_metrics(tmp_path / "empty.jsonl") == [{"step": 1}]


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_is_lines_where_there_is_no_terminal(terminal):
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=200)
    with Progress(20, 5, True, console) as progress:
        progress.update(10, {"loss": 0.123456, "learning_rate": 1e-4, "tokens_per_second": 12345.6, "step_time": 6.0})
    shown = text.getvalue()
    assert "loss 0.1235" in shown and "12,346 tokens/s" in shown and "lr 1.0e-04" in shown
    assert ("10/20" in shown) and ("\x1b[" in shown) == terminal
    if not terminal:
        assert shown == "step 10/20  loss 0.1235  lr 1.0e-04  12,346 tokens/s  0:01:00 left\n"


def test_progress_of_other_ranks_is_silent():
    text = io.StringIO()
    with Progress(20, 0, False, Console(file=text)) as progress:
        progress.update(1, {"loss": 1.0})
    assert text.getvalue() == ""
