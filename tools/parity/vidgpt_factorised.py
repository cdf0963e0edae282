"""Recorded numbers of Ca2-VDM through the megatron-core network, in any tensor and context parallel size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from megatron_videogpt.config.schema import ParallelConfig
    from megatron_videogpt.hub.frame_prompt.sampling_frameprompt import Memory
    from megatron_videogpt.model.cache import KeyValueCache
    from megatron_videogpt.objective.recorded import Report


def limits() -> dict[str, float]:
    """Of every quantity that is compared through this network."""
    from megatron_videogpt.objective.frame_prompt.factorised import parity
    from tools.parity.vidgpt import LIMITS

    return {**LIMITS, **parity.LIMITS}


def check_network(folder: Path, parallel: ParallelConfig, attention: str, report: Report) -> list[str]:
    """Masks, passes, losses, gradients, sampling with a cache and without; names of the cases that are not compared."""
    import torch

    from megatron_videogpt.attention.choice import select
    from megatron_videogpt.errors import UserError
    from megatron_videogpt.model.videogpt import VideoGPT
    from megatron_videogpt.objective.frame_prompt.factorised import parity
    from megatron_videogpt.platforms import activate

    platform, size = activate("cpu"), parallel.tensor * parallel.context

    def build(config, ends, channels):  # type: ignore[no-untyped-def]
        heads = config.model.num_attention_heads
        if heads % size:
            raise UserError(f"{size} parts (tensor x context parallel) do not divide {heads} heads of a checkpoint")
        backend, _ = select(attention, "cpu", torch.float32, config.model.head_dim)
        return VideoGPT(config, channels, platform, backend, ends)

    return parity.check_folder(folder, parallel, build, report) + check_sampling(folder, parallel, build, report)


@dataclass(frozen=True)
class Sampled:
    """As `vidgpt_sampler.check_sampler` asks a network."""

    network: Any
    variant: Any
    patch: int
    multiple: int

    def memory(self, cached: bool, window: int, text: Tensor | None, mask: Tensor | None, guided: bool) -> Memory:
        """See `vidgpt.Network`."""
        import torch

        from megatron_videogpt.objective.frame_prompt.factorised.memory import CachedMemory, Told, WholeMemory
        from megatron_videogpt.objective.frame_prompt.factorised.rows import Text

        texts, device = None, torch.device("cpu")
        if text is not None:
            texts = [Text(one, None if mask is None else mask[number]) for number, one in enumerate(text)]
        told = Told([self.network], self.variant, self.patch, self.multiple, device, texts, guided)
        return CachedMemory(told, window) if cached else WholeMemory(told)

    def kept(self, memory: Any) -> dict[str, Tensor]:
        """See `vidgpt.Network`: whole on every rank."""
        kept, guided = memory.kept, memory.told.guided
        found = {"temporal_kv": self._joined(kept.time, kept, kept.window, guided).transpose(2, 3)[:, :, kept.ages()]}
        if self.variant.enhance != "none":
            slots = kept.prompt.rows // (kept.videos * kept.patches)
            rows = self._joined(kept.prompt, kept, kept.patches, guided, slots)
            found["spatial_kv"] = rows[:, :, kept.of_prompt]
        return found

    def _joined(self, cache: KeyValueCache, kept: Any, last: int, guided: bool, first: int = 0) -> Tensor:
        """All layers' keys and values ``[layers, videos, first or patches, last, 2D]``, of all ranks' heads; of guided
        videos those without the text are first, as recorded.
        """
        import torch
        from megatron.core import parallel_state

        layers = []
        for layer in sorted(cache.layers):
            pair = [_all_heads(part, parallel_state) for part in cache.layers[layer]]
            layers.append(torch.cat([part.flatten(1) for part in pair], dim=1))
        count = kept.videos * (first or kept.patches) * last
        whole = torch.stack(layers)[:, :count].unflatten(1, (kept.videos, first or kept.patches, last))
        return whole.roll(kept.videos // 2, dims=1) if guided else whole


def _all_heads(part: Tensor, groups: Any) -> Tensor:
    """This rank's heads ``[rows, h, d]`` -> all ``[rows, H, d]``; context ranks divide those of a tensor rank."""
    import torch

    for group in (groups.get_context_parallel_group(), groups.get_tensor_model_parallel_group()):
        parts = [torch.empty_like(part) for _ in range(group.size())]
        torch.distributed.all_gather(parts, part.contiguous(), group=group)
        part = torch.cat(parts, dim=1)
    return part


def check_sampling(folder: Path, parallel: ParallelConfig, build: Any, report: Report) -> list[str]:
    """Every case of sampling; names of those that are not compared."""
    from megatron_videogpt.config.schema import Config, TrainConfig
    from megatron_videogpt.model.init import load_released
    from megatron_videogpt.objective.frame_prompt.factorised.ends import ends_of
    from megatron_videogpt.objective.frame_prompt.factorised.parity_masks import ROPE
    from megatron_videogpt.objective.frame_prompt.factorised.published import open_folder
    from megatron_videogpt.objective.recorded import Cases
    from tools.parity.vidgpt_sampler import check_sampler

    cases, skipped = Cases(folder, "sampler"), []
    for case in cases:
        if case["overrides"].get("relative_tpe_mode") == ROPE:
            skipped.append(case["name"])
            continue
        model, variant, settings, tensor_of = open_folder(folder / case["checkpoint"], case["overrides"])
        config = Config(model=model, train=TrainConfig(precision="fp32"), parallel=parallel)
        network = build(config, ends_of(variant), settings["in_channels"])
        load_released(network, model, tensor_of)
        check_sampler(cases, case, Sampled(network, variant, model.patch_size, parallel.row_multiple), report)  # type: ignore[arg-type]
    return skipped
