"""What `tools/measure_memory.py` measures: runs of its table, or a configuration's own rows."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_videogpt.codec.geometry import expected_geometry
from megatron_videogpt.condition.folder import text_width
from megatron_videogpt.condition.options import IDS
from megatron_videogpt.config.check import load_checked
from megatron_videogpt.config.derived import frame_side
from megatron_videogpt.config.load import config_from_dict
from megatron_videogpt.config.schema import Config
from megatron_videogpt.errors import UserError
from megatron_videogpt.objective.next_clip.work import clip_work
from megatron_videogpt.objective.work import Work
from megatron_videogpt.plan.estimate import longest_row

CHANNELS, GRID = 4, (8, 8)
"""Latent channels, and patches of a frame by rows and columns."""


@dataclass(frozen=True)
class Run:
    """One measured launch.  width: hidden size; frames: of each packed sample, in clips of two; samples: packed per
    row; rows: micro-batches of a step on each data parallel rank; options: further overrides.
    """

    name: str
    processes: int = 1
    precision: str = "fp32"
    layers: int = 6
    width: int = 512
    frames: int = 8
    samples: int = 6
    rows: int = 1
    options: dict[str, Any] = field(default_factory=dict)

    def config(self) -> dict[str, Any]:
        """As nested tables of a TOML file."""
        parallel = {key: value for key, value in self.options.items() if not key.startswith("model.")}
        model = {key.partition(".")[2]: value for key, value in self.options.items() if key.startswith("model.")}
        replicas = self.processes // (
            parallel.get("tensor", 1) * parallel.get("context", 1) * parallel.get("pipeline", 1)
        )
        return {
            "model": {
                "num_layers": self.layers,
                "hidden_size": self.width,
                "ffn_hidden_size": self.width * 8 // 3 // 16 * 16,
                "num_attention_heads": 8,
                **model,
            },
            "parallel": parallel,
            "train": {
                "precision": self.precision,
                "micro_batch_size": self.samples,
                "global_batch_size": self.samples * self.rows * replicas,
            },
        }

    def settings(self) -> Config:
        """The configuration of all ranks."""
        return config_from_dict(self.config())

    def clips(self, config: Config) -> list[int]:
        """Frames of the clips of every sample."""
        return [2] * (self.frames // 2)

    def latents(self, config: Config) -> tuple[int, ...]:
        """Channels, rows and columns of a sample's latent frames."""
        return CHANNELS, *(side * config.model.patch_size for side in GRID)

    def text(self, config: Config) -> tuple[int, int] | None:
        """Tokens and width of the features of every sample's text, if it has one."""
        return None

    def work(self, config: Config) -> Work[float]:
        """Of a packed row."""
        return clip_work(self.clips(config), GRID[0] * GRID[1]).times(self.samples)


@dataclass(frozen=True)
class Recipe:
    """As `Run`, of a configuration: its longest rows, with the longest texts where these are features."""

    file: str
    overrides: list[str]
    processes: int

    @property
    def name(self) -> str:
        """In the table."""
        return " ".join([Path(self.file).name, *self.overrides])

    def settings(self) -> Config:
        """See `Run`; UserError for what breaks a rule, and for what only a run or its data decide."""
        config = load_checked(self.file, self.overrides, self.processes)
        for name, value, use in (
            ("parallel.recompute", config.parallel.recompute, "none"),
            ("train.precision", config.train.precision, "fp32"),
        ):
            if value == "auto":
                raise UserError(f"{name} = auto: must be decided before it is measured; use {name}={use}, say")
        if config.data.pack_tokens:
            raise UserError(f"data.pack_tokens = {config.data.pack_tokens}: measured rows are micro-batches; use 0")
        return config

    def clips(self, config: Config) -> list[int]:
        """See `Run`: as many clips as there can be, the last, of which nothing comes twice, as short as it can be."""
        frames = config.data.frames
        count = min(config.data.clips[1], frames)
        return [frames - count + 1, *[1] * (count - 1)]

    def latents(self, config: Config) -> tuple[int, ...]:
        """See `Run`."""
        codec = expected_geometry(config.codec)
        return codec.channels, *[frame_side(config) // codec.spatial_stride] * 2

    def text(self, config: Config) -> tuple[int, int] | None:
        """See `Run`: the longest."""
        condition = config.condition
        features = condition.kind == "text" and condition.encoder != IDS
        return (condition.text_tokens, text_width(condition)) if features else None

    def work(self, config: Config) -> Work[float]:
        """See `Run`."""
        return longest_row(config)


SAMPLES = {"none": 6, "selective": 8, "mlp": 10, "full": 7}
"""Packed into a row, so that every run grows by 1.5 GB or more; policies that keep little get a wider model too."""
WIDE = {"layers": 8, "width": 768}
RUNS = [
    *(Run(f"fp32 {name}", samples=SAMPLES[name], options={"recompute": name}) for name in ("none", "selective", "mlp")),
    Run("fp32 full", samples=7, options={"recompute": "full"}, **WIDE),
    Run("fp32 full, 4 of 6 layers", samples=12, options={"recompute": "full", "recompute_layers": 4}),
    Run("bf16 none", precision="bf16", samples=10, options={"recompute": "none"}),
    Run("bf16 selective", precision="bf16", samples=14, options={"recompute": "selective"}),
    Run("bf16 full", precision="bf16", samples=10, options={"recompute": "full"}, **WIDE),
    Run("TP2+SP fp32 none", 2, samples=12, options={"tensor": 2, "sequence": True}),
    Run("TP2+SP fp32 selective", 2, samples=16, options={"tensor": 2, "sequence": True, "recompute": "selective"}),
    Run("TP2 fp32 none", 2, samples=9, options={"tensor": 2}),
    Run("PP2 fp32 none", 2, samples=6, rows=3, options={"pipeline": 2}),
    Run("PP2 fp32 full", 2, samples=7, rows=2, options={"pipeline": 2, "recompute": "full"}, layers=12, width=768),
    Run("PP2xVPP2 fp32 none", 2, layers=4, samples=6, rows=4, options={"pipeline": 2, "virtual_pipeline": 2}),
    Run("CP2 fp32 none", 2, samples=12, options={"context": 2}),
    Run(
        "CP2 bf16 selective",
        2,
        precision="bf16",
        layers=8,
        samples=24,
        options={"context": 2, "recompute": "selective"},
    ),
    Run("DP2 fp32 none", 2, samples=6),
    Run("DP2 bf16 none", 2, precision="bf16", samples=10),
]


def of_file(asked: Path) -> Run | Recipe:
    """What a file of a run's or a recipe's fields says."""
    fields = json.loads(asked.read_text(encoding="utf-8"))
    return Recipe(**fields) if "file" in fields else Run(**fields)
