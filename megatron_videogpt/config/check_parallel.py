"""Rules on the parallel layout: what it divides, the stages it cuts, and the processes of a run."""

from __future__ import annotations

from .derived import dp_size
from .problems import Report
from .sections import AXES, find


def divisors(*values: int) -> str:
    """The common divisors of the values up to 1024, as text."""
    found = [str(n) for n in range(1, min(1024, *values) + 1) if all(value % n == 0 for value in values)]
    return ", ".join(found)


def check_parallel(report: Report, world_size: int | None) -> None:
    """What the layout divides, the stages it cuts, and, where it is known, the number of processes."""
    tensor, context, pipeline = "parallel.tensor", "parallel.context", "parallel.pipeline"
    layout = report.config.parallel
    _check_axes(report)
    _check_heads(report)
    _check_stages(report)
    if report.sound("parallel.sequence", tensor) and layout.sequence and layout.tensor == 1:
        report.add(
            "parallel.sequence",
            "be false without tensor parallelism",
            "use parallel.sequence=false, or parallel.tensor=2 or more",
        )
    if layout.overlap_param_gather and not layout.overlap_grad_reduce:
        report.add(
            "parallel.overlap_param_gather",
            "be false without parallel.overlap_grad_reduce",
            "turn both off, or both on",
        )
    if layout.recompute_layers and layout.recompute not in ("mlp", "full"):
        report.add(
            "parallel.recompute_layers",
            f"be 0 with parallel.recompute={layout.recompute}",
            "use parallel.recompute=mlp or full to count layers",
        )
    if world_size is not None and report.sound(tensor, context, pipeline):
        _check_world(report, world_size)


def _check_axes(report: Report) -> None:
    """The objective's network may not split over every axis."""
    name, layout = report.config.objective.name, report.config.parallel
    if not report.sound("objective.name"):
        return
    for axis in sorted(AXES - find("objective", name).axes):
        size = getattr(layout, axis)
        if report.sound(f"parallel.{axis}") and size > 1 - isinstance(size, bool):
            one = "false" if isinstance(size, bool) else "1"
            report.add(
                f"parallel.{axis}",
                f"be {one} with objective.name = {name}, whose network does not split over it",
                f"use parallel.{axis}={one}",
            )
            report.broken.add(f"parallel.{axis}")


def _check_heads(report: Report) -> None:
    """TP shards heads and feed-forward; CP exchanges heads."""
    config, tensor, context, heads = report.config, "parallel.tensor", "parallel.context", "model.num_attention_heads"
    model, layout = config.model, config.parallel
    sizes = {heads: model.num_attention_heads, "model.ffn_hidden_size": model.ffn_hidden_size}
    sizes = {name: value for name, value in sizes.items() if report.sound(name)}
    wrong = [f"{name} = {value}" for name, value in sizes.items() if report.sound(tensor) and value % layout.tensor]
    if wrong:
        report.add(tensor, f"divide {' and '.join(wrong)}", f"use one of {divisors(*sizes.values())}")
        report.broken.add(tensor)
    if not report.sound(tensor, context, heads):
        return
    groups = model.kv_heads
    if report.sound("model.num_query_groups") and groups % layout.tensor and layout.tensor % groups:
        report.add(
            tensor,
            f"divide model.num_query_groups = {groups} or be a multiple of it",
            f"use one of {divisors(groups)}",
        )
    if model.num_attention_heads % (layout.tensor * layout.context):
        must = (
            f"with parallel.tensor = {layout.tensor} divide {heads} = {model.num_attention_heads} (Ulysses "
            "exchanges whole heads)"
        )
        report.add(context, must, f"use one of {divisors(model.num_attention_heads // layout.tensor)}")
        report.broken.add(context)


def _check_stages(report: Report) -> None:
    """The decoder's cut into pipeline stages."""
    config, layers, pipeline, chunks = (
        report.config,
        "model.num_layers",
        "parallel.pipeline",
        "parallel.virtual_pipeline",
    )
    layout, given = config.parallel, config.parallel.pipeline_layers
    if not report.sound(layers, pipeline, chunks, "parallel.pipeline_layers"):
        return
    if layout.virtual_pipeline > 1 and layout.pipeline == 1:
        report.add(
            chunks,
            "be 1 without pipeline parallelism",
            "use parallel.pipeline=2 or more, or parallel.virtual_pipeline=1",
        )
    elif layout.stages > config.model.num_layers:
        parts = (
            f"{layers} = {config.model.num_layers} into {pipeline} {layout.pipeline} * {chunks} "
            f"{layout.virtual_pipeline} = {layout.stages} stages"
        )
        report.add(
            pipeline,
            f"leave every stage a layer, but it cuts {parts}",
            f"use fewer: at most {config.model.num_layers} stages",
        )
        report.broken.add(pipeline)
    if given and (len(given) != layout.stages or sum(given) != config.model.num_layers):
        must = (
            f"have {layout.stages} numbers ({pipeline} * {chunks}) that add up to {layers} = {config.model.num_layers}"
        )
        report.add(
            "parallel.pipeline_layers", must, f"it has {len(given)} with the sum {sum(given)}; [] spreads the layers"
        )


def _check_world(report: Report, world_size: int) -> None:
    """The layout against the number of processes, and the batch against the data parallel ranks."""
    config, layout = report.config, report.config.parallel
    product = layout.model_size
    if world_size % product:
        parts = f"{layout.tensor} (TP) x {layout.context} (CP) x {layout.pipeline} (PP) = {product} processes"
        must = f"make model replicas of {parts} that divide the {world_size} of this run"
        report.add("parallel.tensor", must, f"start a multiple of {product} processes, or use smaller sizes")
        return
    batch, micro = "train.global_batch_size", "train.micro_batch_size"
    # With data.pack_tokens rows are filled by tokens, and any batch can be dealt.
    if not report.sound(batch, micro) or config.data.pack_tokens:
        return
    replicas = dp_size(config, world_size)
    step, parts = (
        replicas * config.train.micro_batch_size,
        f"{replicas} data parallel ranks * {micro} {config.train.micro_batch_size}",
    )
    if layout.virtual_pipeline > 1:
        # The interleaved schedule works through its micro-batches in groups of one per pipeline rank.
        step, parts = step * layout.pipeline, f"{parts} * parallel.pipeline {layout.pipeline} (interleaved schedule)"
    if config.train.global_batch_size % step:
        near = max(step, config.train.global_batch_size // step * step)
        report.add(
            batch, f"be a multiple of {parts} = {step}", f"use {near}, another {micro} or another number of processes"
        )
