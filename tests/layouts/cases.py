"""What `tools/compare_layouts.py` compares: models, layouts, and the data that all of them train on.

No torch at import time, so that `--help` is quick.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

STEPS, BATCH, CHANNELS, FRAMES = 5, 8, 4, 4
SPLITS = ((2, 1, 1), (1, 1, 1, 1), (4,), (1, 3), (3, 1))
"""Clips of the samples in turn; ``(4,)`` is a single clip, which has no clean rows."""
SIZES = ((4, 4), (4, 6))
"""Latent rows and columns of the samples in turn: two resolutions in every packed row."""
ALL_SINGLE = 2
"""In this step (from 0) every sample is a single clip: no rank has a clean row, and the clean patch projection no
gradient but zero.
"""
BLANKS = ((1, 6), (3, 3), (3, 4))
"""(step, number) of samples that could not be read: alone in their rows, or beside others, as the layout has it."""

COMMON = """train.platform=cpu train.global_batch_size=8 model.hidden_size=64 model.ffn_hidden_size=128
model.position_table_size=16 optimizer.lr=1e-3 optimizer.warmup_steps=0 train.threads=1 attention.backend=ranged"""
MODELS = {
    "plain": "model.num_layers=8 model.num_attention_heads=8",
    "7 layers": "model.num_layers=7 model.num_attention_heads=8",
    "2 kv heads": "model.num_layers=4 model.num_attention_heads=8 model.num_query_groups=2",
    "3 kv heads": "model.num_layers=4 model.num_attention_heads=12 model.num_query_groups=3 model.hidden_size=96",
    "classes": 'model.num_layers=4 model.num_attention_heads=4 condition.kind=class condition.classes=["a","b","c"]',
    "texts": "model.num_layers=4 model.num_attention_heads=4 condition.kind=text condition.width=24 "
    "condition.frames=[0,3]",
}
"""Each is its own reference in one process."""

SHORT = {
    "TP": "parallel.tensor",
    "PP": "parallel.pipeline",
    "VP": "parallel.virtual_pipeline",
    "CP": "parallel.context",
}


@dataclass(frozen=True)
class Case:
    """One layout.  options: ``section.option=value`` on top of `COMMON` and the model; fast: part of the test suite;
    bf16: also compared in that precision.
    """

    name: str
    processes: int
    options: tuple[str, ...] = ()
    model: str = "plain"
    precision: str = "fp32"
    fast: bool = False
    bf16: bool = False

    @property
    def all_options(self) -> list[str]:
        """Everything that makes the run's configuration."""
        return [*COMMON.split(), *MODELS[self.model].split(), f"train.precision={self.precision}", *self.options]

    @property
    def key(self) -> str:
        """A name for files."""
        return "".join(c if c.isalnum() else "_" for c in f"{self.name} {self.model} {self.precision} {self.processes}")


def case(layout: str, *extra: str, model: str = "plain", fast: bool = False, bf16: bool = False) -> Case:
    """``case("DP2 TP2+SP CP2", "micro=2")``: sizes in `layout` (DP multiplies the processes), options and their short
    forms in `extra`.
    """
    processes, options = 1, []
    for word in layout.split():
        name, size = word[:2], int(word[2:].removesuffix("+SP") or 1)
        if name in SHORT:
            options.append(f"{SHORT[name]}={size}")
        if word.endswith("+SP"):
            options.append("parallel.sequence=true")
        processes *= 1 if name == "VP" else size
    long = {"micro": "train.micro_batch_size", "ema": "optimizer.ema_decay"}
    names = [layout.replace(" ", " x ")] if layout != "P1" else []
    for text in extra:
        short, _, value = text.partition("=")
        options += NAMED[text] if text in NAMED else [f"{long.get(short, f'parallel.{short}')}={value}"]
        names.append(f"micro-batches of {value}" if short == "micro" else text)
    return Case(", ".join(names) or "one process", processes, tuple(options), model, fast=fast, bf16=bf16)


NAMED = {
    "no overlap": ["parallel.overlap_grad_reduce=false", "parallel.overlap_param_gather=false"],
    "small buckets": ["parallel.bucket_size=20000"],
}

CASES: tuple[Case, ...] = (
    case("P1", "micro=2"),
    case("P1", "micro=4", "recompute=full", bf16=True),
    case("P1", "recompute=selective"),
    case("P1", "recompute=mlp"),
    case("P1", "recompute=mlp", "recompute_layers=3", bf16=True),
    case("P1", "recompute=full"),
    case("P1", "recompute=full", "recompute_layers=3", fast=True),
    case("TP2+SP", "recompute=mlp", model="classes", fast=True),
    case("DP2", "micro=2", "small buckets", model="classes", fast=True),
    case("CP2", "recompute=full", model="classes", bf16=True),
    case("PP2 VP2", model="classes"),
    case("TP2+SP", "micro=2", model="texts", bf16=True),
    case("CP2", "small buckets", model="texts", fast=True),
    case("PP2", "micro=2", model="texts", fast=True),
    case("TP2+SP CP2", "micro=2", model="texts"),
    case("DP2", "no overlap"),
    case("DP2", "small buckets", "ema=0.9", fast=True),
    case("DP2", "micro=2", "small buckets", bf16=True),
    case("TP2", "ema=0.9", bf16=True),
    case("TP2+SP", "micro=2"),
    case("TP2+SP", "recompute=selective", fast=True),
    case("TP2+SP", "recompute=mlp", "recompute_layers=5"),
    case("TP2+SP", "recompute=full", "recompute_layers=2"),
    case("CP2", "small buckets"),
    case("CP2", "no overlap"),
    case("CP2", "micro=2", "recompute=mlp", bf16=True),
    case("CP2", model="3 kv heads"),
    case("PP2", "recompute=full", "recompute_layers=3"),
    case("PP2", "pipeline_layers=[3,5]", "micro=2"),
    case("PP2 VP2", "small buckets", "ema=0.9", fast=True, bf16=True),
    case("PP2 VP2", "pipeline_layers=[1,2,3,2]", "recompute=mlp", "recompute_layers=3"),
    case("TP4"),
    case("TP4+SP", "micro=2"),
    case("TP4", model="2 kv heads", bf16=True),
    case("CP4", "micro=2"),
    case("CP4", model="2 kv heads"),
    case("CP4", model="3 kv heads", bf16=True),
    case("PP4", "recompute=selective"),
    case("PP4", model="7 layers"),
    case("PP4 VP2", "micro=2", bf16=True),
    case("PP4 VP2", "no overlap", "recompute=full"),
    case("TP2 CP2", model="2 kv heads"),
    case("TP2+SP CP2", "micro=2", "recompute=selective", "small buckets", fast=True, bf16=True),
    case("TP2 PP2", "no overlap"),
    case("TP2+SP PP2 VP2", "micro=2", "small buckets", bf16=True),
    case("CP2 PP2", "ema=0.9"),
    case("CP2 PP2 VP2", "recompute=mlp", fast=True),
    case("DP2 CP2", "small buckets", "ema=0.9", bf16=True),
    case("DP2 TP2+SP", "micro=2"),
    case("DP2 PP2", "small buckets"),
    case("TP2 CP2 PP2", "micro=2"),
    case("TP2+SP CP2 PP2 VP2", "small buckets", "recompute=selective", bf16=True),
    case("DP2 TP2+SP CP2", "small buckets", "ema=0.9"),
    case("DP2 PP4 VP2"),
)


def reference(of: Case) -> Case:
    """The one process that a case is compared with; it keeps an average where the case does."""
    kept = tuple(option for option in of.options if option.startswith("optimizer.ema_decay"))
    return Case("one process" + (", ema" if kept else ""), 1, kept, of.model, of.precision)


def sample_of(step: int, number: int, condition: Any) -> Any:
    """Sample `number` of global batch `step`: random latents with a codec's variance, sizes and clips in turn, and
    classes, or texts of several lengths and frames given, of which some are dropped.

    condition: the run's section of that name.
    """
    import torch

    from megatron_videogpt.data.plans import Sample
    from megatron_videogpt.objective.noise import normal

    key = step * BATCH + number
    clips = (FRAMES,) if step == ALL_SINGLE else SPLITS[key % len(SPLITS)]
    shape = (FRAMES, CHANNELS, *SIZES[key % len(SIZES)])
    shown = {
        "class": lambda: torch.tensor([key % max(1, len(condition.classes))]),
        "text": lambda: normal(key, "text", (1 + key % 5, condition.width)),
    }.get(condition.kind, lambda: None)
    return Sample(
        key=key,
        name=str(key),
        mean=normal(key, "latents", shape),
        logvar=normal(key, "log variance", shape) - 4,
        clips=clips,
        scored=(step, number) not in BLANKS,
        condition=shown(),
        given=clips[0] if condition.frames[1] and len(clips) > 1 and key % 3 else 0,
        dropped=condition.kind != "none" and key % 4 == 1,
    )
