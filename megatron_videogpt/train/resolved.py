"""Options that say `auto`, decided by all ranks for all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ..checkpoint.saved import Saved
from ..codec.sharing import shares_encoding, who_encodes
from ..config.derived import in_precision
from ..config.schema import Config
from ..errors import RunError, UserError
from ..model.accumulation import obstacle
from ..objective.build import parts_of
from ..plan.recompute import resolve_recompute
from ..platforms import Platform, world


def with_precision(config: Config, saved: Saved | None, platform: Platform, control: Any) -> Config:
    """`train.precision=auto` resolved, the same on all ranks; a run goes on in the precision that it was begun in."""
    if config.train.precision != "auto":
        return config
    everywhere = torch.tensor(int(platform.bf16))
    torch.distributed.all_reduce(everywhere, op=torch.distributed.ReduceOp.MIN, group=control)
    if saved is not None:
        precision, why = saved.config.train.precision, f"as in {saved.path}"
    elif everywhere:
        precision, why = "bf16", f"{platform.device_name} has instructions for it"
    else:
        precision, why = "fp32", f"{platform.device_name}, of at least one rank, has no instructions for bf16"
    if world.is_rank_zero():
        print(f"precision: {precision} ({why})", flush=True)
    return in_precision(config, precision)


def with_recompute(config: Config, channels: int, platform: Platform, control: Any) -> Config:
    """`parallel.recompute=auto` resolved for the smallest device: ranks that recompute differently would wait in
    different collectives.
    """
    smallest = torch.tensor(round(config.parallel.memory_gb * 1e9) or platform.memory_total())
    torch.distributed.all_reduce(smallest, op=torch.distributed.ReduceOp.MIN, group=control)
    memory = int(smallest)
    # What else lies on a device depends on which it is; the configuration keeps what it says of that.
    here = replace(config, train=replace(config.train, platform=platform.name))
    try:
        resolved = replace(config, parallel=resolve_recompute(here, world.world_size(), channels, memory).parallel)
    except UserError as error:
        raise RunError(str(error)) from None
    if resolved != config and world.is_rank_zero():
        layers = (
            f", {resolved.parallel.recompute_layers} layers of each pipeline rank"
            if resolved.parallel.recompute_layers
            else ""
        )
        print(
            f"recompute: {resolved.parallel.recompute}{layers} (the least that should fit {memory / 1e9:.1f} GB)",
            flush=True,
        )
    return resolved


def with_fusion(config: Config, platform: Platform, control: Any) -> Config:
    """`parallel.gradient_accumulation_fusion=auto` resolved, the same on all ranks; RunError on all of them where it is
    on and one cannot.
    """
    asked, missing = config.parallel.gradient_accumulation_fusion, obstacle(platform.name)
    anywhere = torch.tensor(int(bool(missing)))
    torch.distributed.all_reduce(anywhere, op=torch.distributed.ReduceOp.MAX, group=control)
    missing = missing or ("another rank cannot do it" if anywhere else "")
    if asked == "on" and missing:
        raise RunError(f"parallel.gradient_accumulation_fusion = on, but {missing}; install NVIDIA Apex, or use auto")
    if asked != "auto":
        return config
    if not missing and config.train.precision != "bf16":
        missing = f"it saves memory traffic in bf16, and this is {config.train.precision}"
    if not missing and len(parts_of(config)) > 1:
        missing = "several networks are trained, whose losses are weighed by gradients"
    if platform.name == "cuda" and world.is_rank_zero():
        how = f"apart ({missing})" if missing else "in the kernels that compute them (NVIDIA Apex)"
        print(f"weight gradients are added up {how}", flush=True)
    fusion = "off" if missing else "on"
    return replace(config, parallel=replace(config.parallel, gradient_accumulation_fusion=fusion))


def with_encoding(config: Config) -> Config:
    """`data.share_encoding=auto` resolved: by the configuration alone, and so the same on all ranks."""
    if config.parallel.model_size > 1 and world.is_rank_zero():
        print(f"encoding: by {who_encodes(config)} (data.share_encoding={config.data.share_encoding})", flush=True)
    if config.data.share_encoding != "auto":
        return config
    return replace(config, data=replace(config.data, share_encoding="on" if shares_encoding(config) else "off"))
