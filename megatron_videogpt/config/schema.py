"""Every option of the trainer, as frozen dataclasses: one class per TOML section.

Field metadata carries the help text (``help``) that `--help`, the documentation and error messages share. Derived
values are properties, never stored.  Rules that span options live in `config/check.py`.  The sections of codec,
condition and objective belong to those who bring one: `config/sections.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .schedules import DECAY_STYLES, schedule_names
from .schema_data import DataConfig
from .schema_model import ModelConfig
from .schema_parallel import ParallelConfig
from .sections import option, section


@dataclass(frozen=True)
class AttentionConfig:
    """Which kernel computes attention; all give the same result."""

    backend: str = option(
        "auto",
        "flash (FlashAttention-4, Hopper and newer), triton (CUDA), flex (CUDA), npu and npu_dense (Ascend), "
        "ranged (portable, CPU default), reference (dense oracle) or "
        "auto (the first but reference that works here, checked at start-up)",
        choices=("auto", "flash", "triton", "flex", "npu", "npu_dense", "ranged", "reference"),
    )
    deterministic: bool = option(
        False,
        "add up gradients on GPUs and NPUs in a fixed order: the same bits in every run; flash cannot, triton "
        "takes a pass of its own for it, and an NPU needs HCCL_DETERMINISTIC=true and CLOSE_MATMUL_K_SHIFT=1",
    )


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its schedule: linear warm-up, then constant, or to min_lr all the way or in decays."""

    lr: float = option(1e-4, "learning rate after warm-up")
    min_lr: float = option(0.0, "learning rate at the last step of a cosine or linear schedule, and of a decay")
    schedule: str = option(
        "constant",
        "what follows the warm-up: constant, cosine or linear to min_lr, wsd (warm-up, stable, decay: constant, and to "
        "min_lr at the end), wsd_s (the same with several decays, each followed by the high rate: one run gives a "
        "finished model at each of lr_wsd_decay_ends), or nbp_cosine (next block prediction's: to 0, and each step at "
        "the tick before it)",
        choices=schedule_names,
    )
    warmup_steps: int = option(1000, "steps of linear warm-up")
    lr_wsd_decay_style: str = option(
        "linear",
        "how a decay of wsd and wsd_s falls, as Megatron-LM names them: linear, cosine, exponential (halved, and moved "
        "so that it ends at min_lr) or minus_sqrt (1 - the root of what is done)",
        choices=tuple(DECAY_STYLES),
    )
    lr_wsd_decay_iters: int = option(0, "steps of each decay of wsd and wsd_s; 0 takes lr_wsd_decay_share")
    lr_wsd_decay_share: float = option(
        0.1, "steps of a decay as a share of all steps up to its end, where lr_wsd_decay_iters is 0"
    )
    lr_wsd_decay_ends: tuple[int, ...] = option(
        (), "steps after which the decays of wsd_s end, ascending, the last one train.steps: [500, 1000, 2000, 4000]"
    )
    allow_rate_jump: bool = option(
        False,
        "resume although train.steps or the schedule has changed since so that the learning rate jumps up",
    )
    betas: tuple[float, float] = option((0.9, 0.95), "Adam's beta1 and beta2")
    eps: float = option(1e-5, "Adam's epsilon")
    weight_decay: float = option(0.1, "decoupled weight decay, of what optimizer.decay says")
    decay: str = option(
        "matrices",
        "what weight decay acts on: matrices (weights of linear layers and patch projections, hint tokens; "
        "norms and biases are exempt) or all (every "
        "parameter, as the published Video-GPT code has it)",
        choices=("matrices", "all"),
    )
    clip_grad: float = option(1.0, "largest gradient norm; 0 turns clipping off")
    ema_decay: float = option(
        0.0, "decay per step of an exponential moving average of the weights, for example 0.9999; 0 keeps none"
    )
    spike_factor: float = option(
        0.0,
        "skip a step whose gradient norm is above this multiple of the median of the last 50 taken steps; 0 "
        "skips only what is not finite",
    )
    max_skipped: int = option(
        10, "stop the run after this many skipped steps in a row; those of which no sample could be read do not count"
    )


@dataclass(frozen=True)
class TrainConfig:
    """The run."""

    output: str = option(
        "runs/default", "folder of the run: resolved config, checkpoints, metrics, pictures", path=True
    )
    steps: int = option(1000, "optimizer steps")
    global_batch_size: int = option(320, "samples per optimizer step, over all data parallel ranks")
    micro_batch_size: int = option(1, "samples packed into one row (one micro-batch)")
    seed: int = option(0, "seed of parameters, data order, clip splits and noise")
    precision: str = option(
        "bf16",
        "bf16 (with fp32 main parameters), fp32, or auto (that of the checkpoint where there is one, else bf16 where "
        "every device has instructions for its products, else fp32)",
        choices=("bf16", "fp32", "auto"),
    )
    platform: str = option("auto", "auto, cpu, cuda or npu", choices=("auto", "cpu", "cuda", "npu"))
    adaptor: str = option(
        "auto",
        "on Ascend NPUs, what adapts megatron-core: mindspeed, megatron_adaptor, own, or auto, the first that fits",
        choices=("auto", "mindspeed", "megatron_adaptor", "own"),
    )
    threads: int = option(0, "CPU threads per process; 0 shares the machine's cores among its processes")
    gc_every: int = option(
        50,
        "steps between collections of Python's garbage, at the same steps on all ranks; 0 leaves it to "
        "Python, at any time",
    )
    timeout_minutes: float = option(30.0, "limit of one collective operation before the run is stopped")
    init_from: str = option("", "checkpoint folder whose weights (only) start this run", path=True)
    callbacks: tuple[dict, ...] = option(
        (),
        "classes that are told of steps, saves, validations and the end, by import path, those with arguments as "
        'tables: ["mine.Counter", {name="megatron_videogpt.callbacks.KeepBest", monitor="validation_loss"}]',
    )


@dataclass(frozen=True)
class CheckpointConfig:
    """Saving and resuming: a run always resumes from its newest complete checkpoint."""

    every: int = option(1000, "steps between checkpoints; the last step is always saved; 0 saves only then")
    keep: int = option(
        2, "newest checkpoints kept; 0 keeps all; those before and after each decay of wsd and wsd_s are kept besides"
    )
    keep_every: int = option(0, "also keep every checkpoint whose step is a multiple of this; 0 for none")
    async_save: bool = option(False, "write periodic checkpoints in the background while training goes on")
    retries: int = option(
        1, "further attempts at a periodic save that failed, before a warning and going on without it"
    )
    on_damaged: str = option(
        "stop",
        "where the newest checkpoint is damaged: stop, or go on from the newest whole one with a warning, keeping the "
        "damaged one as .damaged (previous)",
        choices=("stop", "previous"),
    )


@dataclass(frozen=True)
class EvalConfig:
    """Validation during training."""

    every: int = option(1000, "steps between validations; 0 turns them off")
    samples: int = option(64, "held-out samples per validation loss")
    levels: str = option(
        "stratified",
        "noise levels of held-out samples: stratified (spread evenly over all of them) or independent (as in training)",
        choices=("stratified", "independent"),
    )
    predict_every: int = option(0, "steps between predicted videos; 0 only at the end of the run")
    final_scenes: int = option(
        0, "held-out samples for the pixel error against 'repeat the last frame' after the last step; 0 turns it off"
    )


@dataclass(frozen=True)
class SampleConfig:
    """Defaults of the sample command and of the predictions made during training."""

    history: int = option(56, "frames given before the first generated clip")
    clips: tuple[int, ...] = option((24,), "frames of each generated clip, in order")
    window: int = option(80, "most frames (history and clip) the model sees at once")
    window_end: str = option(
        "recompute",
        "what a model of frame prompts does once the window drops frames: recompute keys and values of what is left "
        "(the result without a cache), or keep them, which have seen what was dropped (as published, faster)",
        choices=("recompute", "keep"),
    )
    steps: int = option(50, "Euler steps per clip")
    guidance: float = option(3.0, "history-conditioned classifier-free guidance; 1 turns it off")
    guidance_schedule: tuple[tuple[float, float], ...] = option(
        (),
        "other scales from noise level t on (0 noise, 1 data): [[0.2, 5.0], [0.8, 1.0]] guides by 5 from t = "
        "0.2 and not at all from 0.8; [] for one scale",
    )
    history_noise: float = option(
        0.0,
        "noise mixed into the history from the second clip on, in [0, 1); models of frame prompts mix it into every "
        "frame before a chunk, once",
    )
    time_shift: float = option(1.0, "time shifting factor of the noise levels; 1 leaves them even")
    temperature: float = option(1.0, "of tokens that are drawn; 0 takes the likeliest one")
    top_k: int = option(0, "draw from so many likeliest tokens; 0 from all of them, without top_p")
    top_p: float = option(1.0, "and of these, from the likeliest that together have this share of the probability")
    guidance_ratio: float = option(
        0.0, "t in (1 + t) * logits - t * logits without the condition; 0 turns this guidance off"
    )
    guidance_grows: bool = option(False, "guidance_ratio times the number of the step, from 0 on, in place of itself")
    cache: bool = option(
        True,
        "keep keys and values of the history; false computes them again at every step (the same result, "
        "several times slower)",
    )
    cache_dtype: str = option(
        "auto",
        "dtype of the cache: auto (that of the weights), fp32, bf16 or fp16",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    cache_offload: bool = option(
        False,
        "keep the cache in host memory and bring one layer at a time to the device: slower, for windows that "
        "do not fit",
    )


@dataclass(frozen=True)
class LoggingConfig:
    """What is recorded, beside metrics.jsonl which is always written."""

    every: int = option(10, "steps between log lines")
    slowest_every: int = option(100, "steps between reports of every rank's own time, naming the slowest; 0 for none")
    tensorboard: bool = option(True, "write TensorBoard events")
    wandb: bool = option(False, "log to Weights & Biases (needs the wandb extra)")
    wandb_project: str = option("megatron_videogpt", "Weights & Biases project")
    peak_tflops: float = option(
        0.0, "peak TFLOP/s of one device for MFU; 0 uses the built-in table where the device is known"
    )


@dataclass(frozen=True)
class Config:
    """A whole run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    codec: Any = section("codec")
    data: DataConfig = field(default_factory=DataConfig)
    condition: Any = section("condition")
    objective: Any = section("objective")
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
