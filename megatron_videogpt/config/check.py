"""Rules on values and between options.  Each problem is one line: option, value, constraint, fix; all are reported
together.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from . import sections
from .check_data import check_data
from .check_parallel import check_parallel, divisors
from .load import ConfigError, read_config
from .options import Option, value_of
from .problems import Report
from .schedules import decays
from .schema import Config, SampleConfig
from .sections import not_sampled_with
from .toml import show, to_toml

Rule = tuple[str, Callable[[Any], bool], str]

# Constraint, predicate, and the options it holds for; a list option's elements are each checked.
RANGES: tuple[Rule, ...] = (
    (
        "at least 1",
        lambda v: v >= 1,
        """model.num_layers model.hidden_size model.ffn_hidden_size model.num_attention_heads model.patch_size
        model.position_table_size model.max_position_embeddings model.original_max_position_embeddings data.physics.size
        data.physics.epoch_scenes data.frames data.frame_interval data.clips data.longest_side data.size_multiple
        data.min_side data.max_aspect data.prefetch data.row_lengths data.decode_threads data.max_video_frames
        parallel.tensor parallel.context parallel.pipeline parallel.virtual_pipeline parallel.pipeline_layers
        optimizer.max_skipped optimizer.lr_wsd_decay_ends train.steps train.global_batch_size train.micro_batch_size
        eval.samples sample.clips sample.window sample.steps logging.every""",
    ),
    (
        "at least 0",
        lambda v: v >= 0,
        """model.num_query_groups model.init_std data.workers data.min_frames data.pack_tokens data.cost
        data.cost_buckets optimizer.min_lr optimizer.warmup_steps optimizer.weight_decay optimizer.clip_grad
        optimizer.lr_wsd_decay_iters optimizer.spike_factor parallel.recompute_layers parallel.bucket_size
        parallel.memory_gb train.seed train.threads train.gc_every checkpoint.every checkpoint.keep
        checkpoint.keep_every checkpoint.retries logging.slowest_every eval.every eval.predict_every eval.final_scenes
        sample.history sample.guidance sample.temperature sample.top_k sample.guidance_ratio logging.peak_tflops""",
    ),
    (
        "above 0",
        lambda v: v > 0,
        """data.worker_timeout data.cache_gb data.max_video_mb data.max_megapixels model.norm_epsilon model.rope_theta
        data.physics.fps optimizer.lr optimizer.eps train.timeout_minutes sample.time_shift""",
    ),
    ("from 0 to 1", lambda v: 0 <= v <= 1, "data.max_bad_fraction"),
    (
        "at least 0 and below 1",
        lambda v: 0 <= v < 1,
        "model.dropout optimizer.betas optimizer.ema_decay sample.history_noise",
    ),
    ("above 0 and below 1", lambda v: 0 < v < 1, "data.validation_fraction"),
    ("above 0 and at most 1", lambda v: 0 < v <= 1, "sample.top_p optimizer.lr_wsd_decay_share"),
    ("0, 1 or 2", lambda v: v in (0, 1, 2), "data.physics.difficulty"),
)


def check_config(config: Config, world_size: int | None) -> None:
    """Raise `ConfigError` with every broken rule.  world_size: processes of the run; None leaves out the rules that
    need it.
    """
    problems = _run_problems(config, world_size)
    if problems:
        raise ConfigError(problems)


def load_checked(path: str | Path, overrides: Sequence[str], world_size: int | None) -> Config:
    """`load_config` and `check_config` in one: what cannot be read and what breaks a rule are reported together."""
    config, problems, broken = read_config(path, overrides)
    problems += _run_problems(config, world_size, broken)
    if problems:
        raise ConfigError(problems)
    return config


def _run_problems(config: Config, world_size: int | None, broken: set[str] | None = None) -> list[str]:
    """`find_problems`, and those of what only a run brings to life."""
    report = Report(config, broken or set())
    report.lines = find_problems(config, world_size, broken)
    for rules in sections.run_rules():
        rules(report)
    return report.lines


def find_problems(
    config: Config, world_size: int | None, broken: set[str] | None = None, asked: Collection[str] = ()
) -> list[str]:
    """Every broken rule, one line each; rules that involve an option named in `broken` are left out.  asked: see
    `Report`.
    """
    report = Report(config, broken or set(), asked)
    _check_values(report)
    _check_model(report)
    check_parallel(report, world_size)
    check_data(report, world_size)
    for kind, told in sections.KINDS.items():
        if report.sound(f"{kind}.{told}"):
            sections.find(kind, value_of(config, f"{kind}.{told}")).rules(report)
    _check_rest(report)
    return report.lines


def _check_values(report: Report) -> None:
    """Each option on its own: known names and ranges."""
    for option in report.known.values():
        value = value_of(report.config, option.name)
        unknown = [
            v for v in (value if isinstance(value, tuple) else (value,)) if option.choices and v not in option.choices
        ]
        if unknown:
            report.add(option.name, f"be one of {_choices(option)}", f"{unknown[0]!r} is not known")
        if value == () and option.default:
            report.add(option.name, "have at least one entry", f"use for example {to_toml(option.default)}")
        if unknown or (value == () and option.default):
            report.broken.add(option.name)
    for must, holds, names in RANGES:
        report.check_range(must, holds, names)


def _choices(option: Option) -> str:
    """The names an option may take; those that came with other distributions say with which."""
    kind, _, leaf = option.name.rpartition(".")
    return sections.described(kind) if sections.KINDS.get(kind) == leaf else ", ".join(option.choices)


def _check_model(report: Report) -> None:
    model = report.config.model
    width, heads = "model.hidden_size", "model.num_attention_heads"
    step = math.lcm(4, 2 * model.num_attention_heads)
    if report.sound(width, heads) and model.hidden_size % step:
        near = max(step, model.hidden_size // step * step)
        must = (
            f"be a multiple of {step}: of 4 (2-D sin-cos table) and of 2 * {heads} (RoPE rotates pairs of a "
            "head's channels)"
        )
        report.add(width, must, f"use {near}, or another {heads}")
        report.broken.add(width)
    if report.sound(heads, "model.num_query_groups") and model.num_attention_heads % model.kv_heads:
        report.add(
            "model.num_query_groups",
            f"divide {heads} = {model.num_attention_heads}",
            f"use 0 or one of {divisors(model.num_attention_heads)}",
        )
        report.broken.add("model.num_query_groups")
    if model.rope_scaling and model.positions != "rope" and report.sound("model.rope_scaling", "model.positions"):
        must = f"be empty with model.positions = {model.positions}, which rotates nothing"
        report.add("model.rope_scaling", must, "use {}, or model.positions=rope")
        report.broken.add("model.rope_scaling")
    if model.rope_scaling and report.sound("model.rope_scaling"):
        _check_rope_scaling(report)
    largest, original = model.max_position_embeddings, model.original_max_position_embeddings
    if (
        model.rope_scaling
        and report.sound(
            "model.rope_scaling", "model.max_position_embeddings", "model.original_max_position_embeddings"
        )
        and largest < original
    ):
        report.add(
            "model.max_position_embeddings",
            f"be at least model.original_max_position_embeddings = {original}",
            f"use {original} or more",
        )


def _check_rope_scaling(report: Report) -> None:
    model, name = report.config.model, "model.rope_scaling"
    unknown = sorted(set(model.rope_scaling) - {"type", "long_factor", "short_factor"})
    if unknown:
        report.add(name, "have the entries type, long_factor and short_factor only", f"remove {', '.join(unknown)}")
    if model.rope_scaling.get("type") not in ("longrope", "su"):
        report.add(
            name,
            'have type="longrope" (or "su", its older name)',
            f"it has type={show(model.rope_scaling.get('type', ''))}",
        )
    if not report.sound("model.hidden_size", "model.num_attention_heads"):
        return
    half = model.head_dim // 2
    for key in ("long_factor", "short_factor"):
        factors = model.rope_scaling.get(key)
        entries = factors if isinstance(factors, (list, tuple)) else ()
        if len(entries) != half or not all(
            isinstance(f, (int, float)) and not isinstance(f, bool) and f > 0 for f in entries
        ):
            must = f"have {half} positive numbers in {key} (half of a head's channels)"
            report.add(
                name,
                must,
                f"it has {len(entries)} entries there: copy the list of a Phi-3 config with this head size, "
                f"or use {{}} for plain RoPE",
            )


def _check_decays(report: Report) -> None:
    """Decays of wsd and wsd_s lie behind the warm-up and one another, the last one at the end."""
    optimizer, steps, ends = report.config.optimizer, report.config.train.steps, "optimizer.lr_wsd_decay_ends"
    names = [f"optimizer.lr_wsd_decay_{name}" for name in ("style", "iters", "share", "ends")]
    if not report.sound("optimizer.schedule", "optimizer.warmup_steps", "train.steps", *names):
        return
    schedules = ("wsd", "wsd_s")
    for name in names:
        of = schedules[name == ends :]
        if optimizer.schedule not in of and not report.left(name):
            must = f"be left out with optimizer.schedule = {optimizer.schedule}, which makes no use of it"
            report.add(name, must, f"remove it, or use optimizer.schedule={of[0]}")
            return
    if optimizer.schedule == "wsd_s":
        listed = optimizer.lr_wsd_decay_ends
        if list(listed) != sorted(set(listed)) or listed[-1:] != (steps,):
            must = f"be ascending and end with train.steps = {steps}"
            report.add(ends, must, f"use for example [{steps // 4}, {steps // 2}, {steps}]")
            return
    before, until = optimizer.warmup_steps, "the warm-up"
    for first, end in decays(optimizer, steps):
        if first < before:
            name = "optimizer.lr_wsd_decay_iters" if optimizer.lr_wsd_decay_iters else "optimizer.lr_wsd_decay_share"
            must = f"leave {until} its {before} steps, but the decay that ends at step {end} begins at {first}"
            report.add(name, must, "use a smaller one, or later ends" if before else "use a smaller one")
            return
        before, until = end, "the decay before it"


def _check_guidance(report: Report) -> None:
    pairs, name = report.config.sample.guidance_schedule, "sample.guidance_schedule"
    starts = [start for start, _ in pairs]
    if report.sound(name) and (
        starts != sorted(set(starts)) or not all(0 <= start < 1 and scale >= 0 for start, scale in pairs)
    ):
        must = "have pairs [t, scale] with t from 0 to below 1 in ascending order and scales of at least 0"
        report.add(name, must, "use for example [[0.2, 5.0], [0.8, 1.0]]")


def _check_sampling(report: Report) -> None:
    """Nothing that the objective's sampler makes no use of."""
    objective, sample = report.config.objective.name, report.config.sample
    for name in sorted(not_sampled_with(objective)):
        if report.sound(f"sample.{name}") and getattr(sample, name) != getattr(SampleConfig(), name):
            must = f"be left out with objective.name = {objective}, which makes no use of it"
            fix = f"remove it, or use what it is without being said, {show(getattr(SampleConfig(), name))}"
            report.add(f"sample.{name}", must, fix)
            report.broken.add(f"sample.{name}")
    if report.sound("sample.top_p", "sample.top_k") and sample.top_p < 1 and not sample.top_k:
        report.add("sample.top_p", "be 1 without sample.top_k, which comes first", "use sample.top_k too")


def _check_rest(report: Report) -> None:
    config = report.config
    if (
        report.sound("optimizer.lr", "optimizer.min_lr")
        and config.optimizer.schedule != "constant"
        and config.optimizer.min_lr > config.optimizer.lr
    ):
        report.add("optimizer.min_lr", f"not exceed optimizer.lr = {config.optimizer.lr:g}", "use 0")
    _check_decays(report)
    _check_guidance(report)
    _check_sampling(report)
    if config.attention.backend in ("flash", "triton", "flex") and config.train.platform in ("cpu", "npu"):
        report.add(
            "attention.backend",
            f"not be {config.attention.backend} on train.platform={config.train.platform} (CUDA only)",
            "use auto or ranged",
        )
    if config.attention.backend in ("npu", "npu_dense") and config.train.platform in ("cpu", "cuda"):
        report.add(
            "attention.backend",
            f"not be {config.attention.backend} on train.platform={config.train.platform} (Ascend NPUs only)",
            "use auto or ranged",
        )
    if config.train.adaptor != "auto" and config.train.platform in ("cpu", "cuda"):
        report.add(
            "train.adaptor",
            f"be auto on train.platform={config.train.platform} (Ascend NPUs only)",
            "leave it out, or use train.platform=npu",
        )
    if config.attention.backend == "flash" and config.attention.deterministic:
        report.add(
            "attention.deterministic",
            "be false with attention.backend = flash, which adds gradients in no fixed order",
            "use attention.backend=triton",
        )
    if not config.train.output:
        report.add("train.output", "name the folder of the run", "use for example runs/first")
    if config.logging.wandb and importlib.util.find_spec("wandb") is None:
        report.add(
            "logging.wandb",
            "be false where Weights & Biases is not installed",
            "pip install wandb, or use logging.wandb=false",
        )
