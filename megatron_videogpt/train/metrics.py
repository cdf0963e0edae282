"""What a run records: metrics.jsonl, TensorBoard, Weights & Biases, pictures, the loss curve.  Nothing here is needed
to train.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..config.schema import Config
from ..data.locks import write_whole
from ..data.video.pictures import write_video
from ..errors import UserError
from ..objective.base import Metric
from .board import Board
from .curves import keep_lines, plot_loss, read_metrics
from .records import Appended, Records
from .standard_errors import PREFIX as ERROR

VIDEO_FPS = 6
WANDB = "Weights & Biases"

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
    """Numbers, videos and pictures of one run; on other ranks than 0 every method does nothing.

    `metrics.jsonl` has one JSON object per `log` call: ``{"step": 10, "loss": 0.5, ...}``; numbers that are not finite
    become null.  After a resume, what an interrupted run recorded past `resume_step` is dropped, so that no step is
    there twice.  On a full disk nothing here fails: see `Records`.

    Args:
        output: the run's folder.
        config: `logging` is used; all of it goes to Weights & Biases.
        rank0: whether this process records.
        resume_step: the step that training continues from; 0 starts the records anew.
        metrics: the objective's, for their families.
        records: told of what cannot be written.
    """

    def __init__(
        self,
        output: Path,
        config: Config,
        rank0: bool,
        resume_step: int = 0,
        metrics: Sequence[Metric] = (),
        records: Records | None = None,
    ) -> None:
        self.families = {metric.name: metric.family for metric in metrics}
        self.output, self.resume_step, self.enabled = Path(output), resume_step, rank0
        self.records = records or Records()
        self.board: Board | None = None
        self.wandb: Any = None
        if not rank0:
            return
        self.path = self.output / "metrics.jsonl"
        self.file = Appended(self.path, self.path.name, self.records, "line")
        self._keep(lambda line: resume_step > 0 and line["step"] <= resume_step)
        self.file.flush()
        if config.logging.tensorboard:
            self.board = Board(self.output / "tensorboard", resume_step, self.records)
        if config.logging.wandb:
            self.records.attempt(WANDB, lambda: self._start_wandb(config), "run")

    def log(self, step: int, values: dict[str, float]) -> None:
        """Record numbers of one step; they are on disk when this returns, if the disk takes them."""
        if not self.enabled:
            return
        numbers = {name: float(value) for name, value in values.items()}
        if step == self.resume_step:
            # A run that ended after its last checkpoint measures that step again.
            self._keep(lambda line: line["step"] != step or set(line) != {"step", *numbers})
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        self.file.add(step, f"{json.dumps({'step': step, **finite}, allow_nan=False)}\n".encode())
        tagged = {self._tag(name): value for name, value in numbers.items()}
        if self.board is not None:
            self.board.numbers(step, tagged)
        if self.wandb is not None:
            self.records.attempt(WANDB, lambda: self.wandb.log(tagged, step=step), "call", step)

    def _tag(self, name: str) -> str:
        """TensorBoard and Weights & Biases group by what stands before the slash."""
        if "/" in name:
            return name
        plain = name.removeprefix("validation_")
        if plain != name and plain.startswith(ERROR):
            return f"standard_error/{name}"
        return f"{self.families.get(plain, 'train' if plain == name else 'validation')}/{name}"

    def _keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Before the next line is written, only the wanted ones stay in the file."""
        self.file.before.append(lambda: keep_lines(self.path, wanted))

    def video(self, step: int, name: str, frames: np.ndarray, fps: float = VIDEO_FPS) -> None:
        """Record uint8 ``[F, H, W, 3]`` as ``videos/NAME_STEP.mp4``, and as a moving picture in TensorBoard and Weights
        & Biases.
        """
        if not self.enabled:
            return
        path = self.output / "videos" / f"{name}_{step:08d}.mp4"
        written = self.picture(step, path, lambda partial: write_video(partial, frames, fps))
        if self.board is not None:
            self.board.moving_picture(step, name, frames, fps)
        if self.wandb is not None and written:
            import wandb

            video = {name: wandb.Video(str(path), format="mp4")}
            self.records.attempt(WANDB, lambda: self.wandb.log(video, step=step), "call", step)

    def picture(self, step: int, path: Path, draw: Callable[[Path], Any]) -> bool:
        """Whether a file that `draw` makes is there, whole; its folder is what is told where it is not."""
        if not self.enabled:
            return False

        def write() -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, draw)

        return self.records.attempt(path.parent.name, write, "file", step)

    def curve(self, label: str, beside: Sequence[Metric]) -> None:
        """Draw what `metrics.jsonl` has as `loss.png`; see `plot_loss`."""
        if not self.enabled:
            return
        png = self.output / "loss.png"

        def draw() -> None:
            if not any("loss" in line for line in read_metrics(self.path)):
                raise OSError(errno.ENOENT, f"{self.path.name} has no loss to draw")
            write_whole(png, lambda partial: plot_loss(self.path, partial, beside, label))

        self.records.attempt(png.name, draw, "file")

    def close(self) -> None:
        """Finish all records."""
        if not self.enabled:
            return
        self.file.close()
        if self.board is not None:
            self.board.close()
        if self.wandb is not None:
            self.records.attempt(WANDB, self.wandb.finish, "call")

    def _start_wandb(self, config: Config) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UserError(
                "logging.wandb = true, but Weights & Biases is not installed: pip install wandb, or use "
                "logging.wandb=false"
            ) from error
        remembered = self.output / "wandb_id.txt"
        self.wandb = wandb.init(
            project=config.logging.wandb_project,
            id=remembered.read_text(encoding="utf-8").strip() if self.resume_step and remembered.is_file() else None,
            resume="allow",
            dir=str(self.output),
            name=self.output.name,
            config=dataclasses.asdict(config),
        )

        def remember() -> None:
            write_whole(remembered, lambda partial: partial.write_text(self.wandb.id, encoding="utf-8"))

        self.records.attempt(remembered.name, remember, "file")
