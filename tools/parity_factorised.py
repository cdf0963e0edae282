"""Recorded numbers of Ca2-VDM through the megatron-core network, in any tensor and context parallel size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from megatron_videogpt.config.schema import ParallelConfig
    from megatron_videogpt.objective.frame_prompt.factorised.sampler import WholeMemory
    from megatron_videogpt.objective.recorded import Report


def limits() -> dict[str, float]:
    """Of every quantity that is compared through this network."""
    from megatron_videogpt.objective.frame_prompt.factorised import parity
    from tools.parity_vidgpt import LIMITS

    return {**LIMITS, **parity.LIMITS}


def check_network(folder: Path, parallel: ParallelConfig, attention: str, report: Report) -> list[str]:
    """Masks, passes, losses, gradients, and sampling without a cache; names of the cases that are not compared."""
    import torch

    from megatron_videogpt.attention.choice import select
    from megatron_videogpt.model.videogpt import VideoGPT
    from megatron_videogpt.objective.frame_prompt.factorised import parity
    from megatron_videogpt.platforms import activate

    platform = activate("cpu")

    def build(config, ends, channels):  # type: ignore[no-untyped-def]
        backend, _ = select(attention, "cpu", torch.float32, config.model.head_dim)
        return VideoGPT(config, channels, platform, backend, ends)

    return parity.check_folder(folder, parallel, build, report) + check_sampling(folder, parallel, build, report)


@dataclass(frozen=True)
class Sampled:
    """As `parity_vidgpt_sampler.check_sampler` asks a network."""

    network: Any
    variant: Any
    patch: int
    multiple: int

    def memory(self, cached: bool, window: int, text: Tensor | None, mask: Tensor | None, guided: bool) -> WholeMemory:
        """See `parity_vidgpt.Network`."""
        import torch

        from megatron_videogpt.objective.frame_prompt.factorised.rows import Text
        from megatron_videogpt.objective.frame_prompt.factorised.sampler import WholeMemory

        assert not cached
        texts = None
        if text is not None:
            texts = [Text(one, None if mask is None else mask[number]) for number, one in enumerate(text)]
        device = torch.device("cpu")
        return WholeMemory([self.network], self.variant, self.patch, self.multiple, device, texts, guided)


def check_sampling(folder: Path, parallel: ParallelConfig, build: Any, report: Report) -> list[str]:
    """Cases of sampling without a cache; names of the others."""
    from megatron_videogpt.config.schema import Config, TrainConfig
    from megatron_videogpt.model.init import load_released
    from megatron_videogpt.objective.frame_prompt.factorised.ends import ends_of
    from megatron_videogpt.objective.frame_prompt.factorised.published import open_folder
    from megatron_videogpt.objective.recorded import Cases
    from tools.parity_vidgpt_sampler import check_sampler

    cases, skipped = Cases(folder, "sampler"), []
    for case in cases:
        if case["mode"] == "cached":
            skipped.append(case["name"])
            continue
        model, variant, settings, tensor_of = open_folder(folder / case["checkpoint"], case["overrides"])
        config = Config(model=model, train=TrainConfig(precision="fp32"), parallel=parallel)
        network = build(config, ends_of(variant), settings["in_channels"])
        load_released(network, model, tensor_of)
        asked = Sampled(network, variant, model.patch_size, config.parallel.row_multiple)
        check_sampler(cases, case, asked, report)  # type: ignore[arg-type]
    return skipped
