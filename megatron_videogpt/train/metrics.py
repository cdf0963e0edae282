"""What a run records: metrics.jsonl, TensorBoard, Weights & Biases, the loss curve, and a progress bar.  Nothing here
is needed to train.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from ..config.schema import Config
from ..data.video.pictures import write_video
from ..errors import UserError
from ..objective.base import Metric
from .curves import plot_loss, read_metrics

__all__ = ["MetricsWriter", "Progress", "peak_tflops", "plot_loss", "read_metrics"]

VIDEO_FPS = 6

# Dense bf16 tensor-core TFLOP/s from the vendors' data sheets (half of what they print with sparsity); the first name
# that fits counts. Ascend NPUs are absent: published figures for the 910B differ, so set logging.peak_tflops there.
PEAK_TFLOPS = (
    ("H100 PCIe", 756.0),
    ("H100 NVL", 835.0),
    ("H100", 989.0),
    ("H200", 989.0),
    ("H800", 989.0),
    ("GH200", 989.0),
    ("H20", 148.0),
    ("B200", 2250.0),
    ("A100", 312.0),
    ("A800", 312.0),
    ("A40", 149.7),
    ("A30", 165.0),
    ("L40S", 362.0),
    ("L4", 121.0),
    ("RTX 4090", 165.2),
    ("RTX 3090", 71.0),
)


def peak_tflops(device_name: str) -> float | None:
    """Peak dense bf16 TFLOP/s of a device by the name its driver gives, or None where it is not known."""
    words = device_name.replace("-", " ").upper().split()
    for name, peak in PEAK_TFLOPS:
        if set(name.upper().split()) <= set(words):
            return peak
    return None


class MetricsWriter:
    """Numbers and videos of one run; on other ranks than 0 every method does nothing.

    `metrics.jsonl` has one JSON object per `log` call: ``{"step": 10, "loss": 0.5, ...}``; numbers that are not finite
    become null.  After a resume, what an interrupted run recorded past `resume_step` is dropped, so that no step is
    there twice.

    Args:
        output: the run's folder.
        config: `logging` is used; all of it goes to Weights & Biases.
        rank0: whether this process records.
        resume_step: the step that training continues from; 0 starts the records anew.
        metrics: the objective's, for their families.
    """

    def __init__(
        self, output: Path, config: Config, rank0: bool, resume_step: int = 0, metrics: Sequence[Metric] = ()
    ) -> None:
        self.families = {metric.name: metric.family for metric in metrics}
        self.output, self.resume_step, self.enabled = Path(output), resume_step, rank0
        self.board: Any = None
        self.wandb: Any = None
        if not rank0:
            return
        self.output.mkdir(parents=True, exist_ok=True)
        self.path = self.output / "metrics.jsonl"
        _keep(self.path, lambda line: resume_step > 0 and line["step"] <= resume_step)
        self.file = self.path.open("a", encoding="utf-8")
        if config.logging.tensorboard:
            self.board = _open_board(self.output / "tensorboard", resume_step)
        if config.logging.wandb:
            self.wandb = _start_wandb(self.output, config, resume_step)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Record numbers of one step; they are on disk when this returns."""
        if not self.enabled:
            return
        numbers = {name: float(value) for name, value in values.items()}
        if step == self.resume_step:
            self._replace(step, numbers.keys())
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        self.file.write(json.dumps({"step": step, **finite}, allow_nan=False) + "\n")
        self.file.flush()
        if self.board is not None:
            for name, value in numbers.items():
                self.board.add_scalar(self._tag(name), value, step)
            self.board.flush()
        if self.wandb is not None:
            self.wandb.log({self._tag(name): value for name, value in numbers.items()}, step=step)

    def _tag(self, name: str) -> str:
        """TensorBoard and Weights & Biases group by what stands before the slash."""
        if "/" in name:
            return name
        group = "validation" if name.startswith("validation") else "train"
        return f"{self.families.get(name.removeprefix('validation_'), group)}/{name}"

    def _replace(self, step: int, names: Any) -> None:
        """Forget an earlier line of the same step and names: a run that ended after its last checkpoint measures that
        step again.
        """
        self.file.close()
        _keep(self.path, lambda line: line["step"] != step or set(line) != {"step", *names})
        self.file = self.path.open("a", encoding="utf-8")

    def video(self, step: int, name: str, frames: np.ndarray, fps: float = VIDEO_FPS) -> None:
        """Record uint8 ``[F, H, W, 3]`` as ``videos/NAME_STEP.mp4``, and as a moving picture in TensorBoard and Weights
        & Biases.
        """
        if not self.enabled:
            return
        path = self.output / "videos" / f"{name}_{step:08d}.mp4"
        path.parent.mkdir(exist_ok=True)
        write_video(path, frames, fps)
        if self.board is not None:
            self.board.file_writer.add_summary(_moving_picture(name, frames, fps), step)
            self.board.flush()
        if self.wandb is not None:
            import wandb

            self.wandb.log({name: wandb.Video(str(path), format="mp4")}, step=step)

    def close(self) -> None:
        """Finish all records."""
        if not self.enabled:
            return
        self.file.close()
        if self.board is not None:
            self.board.close()
        if self.wandb is not None:
            self.wandb.finish()


def _keep(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Rewrite a metrics.jsonl with the wanted lines only, in one move."""
    if not path.is_file():
        return
    partial = path.with_suffix(".partial")
    partial.write_text(
        "".join(json.dumps(line) + "\n" for line in read_metrics(path) if wanted(line)), encoding="utf-8"
    )
    os.replace(partial, path)


def _open_board(folder: Path, resume_step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    # purge_step hides what an interrupted run wrote past the checkpoint.
    return SummaryWriter(str(folder), purge_step=resume_step + 1 if resume_step else 0)


def _moving_picture(name: str, frames: np.ndarray, fps: float) -> Any:
    """A TensorBoard image that moves; its own `add_video` needs the moviepy package."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    pictures = [Image.fromarray(frame) for frame in frames]
    buffer = io.BytesIO()
    pictures[0].save(
        buffer, format="GIF", save_all=True, append_images=pictures[1:], duration=round(1000 / fps), loop=0
    )
    image = Summary.Image(
        height=frames.shape[1], width=frames.shape[2], colorspace=3, encoded_image_string=buffer.getvalue()
    )
    return Summary(value=[Summary.Value(tag=name, image=image)])


def _start_wandb(output: Path, config: Config, resume_step: int) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            "logging.wandb = true, but Weights & Biases is not installed: pip install wandb, or use logging.wandb=false"
        ) from error
    remembered = output / "wandb_id.txt"
    run = wandb.init(
        project=config.logging.wandb_project,
        id=remembered.read_text(encoding="utf-8").strip() if resume_step and remembered.is_file() else None,
        resume="allow",
        dir=str(output),
        name=output.name,
        config=dataclasses.asdict(config),
    )
    remembered.write_text(run.id, encoding="utf-8")
    return run


class Progress:
    """A progress bar in a terminal, plain lines elsewhere; silent on other ranks than 0.  Use as a context manager
    around the steps.

    Args:
        total: steps of the whole run.
        start: steps done before.
        rank0: whether this process shows anything.
        console: where to; standard error by default.
    """

    def __init__(self, total: int, start: int, rank0: bool, console: Console | None = None) -> None:
        self.total, self.rank0 = total, rank0
        self.console = console or Console(stderr=True)
        self.bar: Bar | None = None
        if rank0 and self.console.is_terminal:
            columns = (
                "{task.description}",
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[line]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            # Speed is judged over ten minutes, because steps of different lengths vary.
            self.bar = Bar(*columns, console=self.console, speed_estimate_period=600)
            self.task = self.bar.add_task("training", total=total, completed=start, line="")

    def __enter__(self) -> Progress:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def update(self, step: int, values: dict[str, float]) -> None:
        """Show step `step`; of the values, the loss, tokens/s, seconds per step and learning rate are used where
        present.
        """
        if not self.rank0:
            return
        text = summary(values)
        if self.bar is not None:
            self.bar.update(self.task, completed=step, line=text)
        else:
            remaining = (self.total - step) * values.get("step_time", math.nan)
            left = f"  {_duration(remaining)} left" if math.isfinite(remaining) else ""
            self.console.print(f"step {step}/{self.total}  {text}{left}", highlight=False, soft_wrap=True)


def summary(values: dict[str, float]) -> str:
    """The numbers of a log line that a reader follows, in a few words."""
    shown = (
        ("loss", "loss {:.4f}"),
        ("grad_norm", "grad {:.2f}"),
        ("learning_rate", "lr {:.1e}"),
        ("tokens_per_second", "{:,.0f} tokens/s"),
    )
    return "  ".join(pattern.format(values[name]) for name, pattern in shown if name in values)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
