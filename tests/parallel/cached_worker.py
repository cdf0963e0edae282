"""Continues two videos with the cache in several layouts: `cached_worker.py CASES.json OUTPUT.safetensors`, under
torchrun.

A case is name -> options of its configuration.  Rank 0 leaves the new latents of each video as ``<name>.<video>``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.layouts import worker

MODEL = """train.platform=cpu train.precision=fp32 train.threads=1 attention.backend=ranged model.num_layers=4
model.hidden_size=64 model.ffn_hidden_size=64 model.num_attention_heads=4 model.num_query_groups=1
model.position_table_size=16"""
"""One key-value head: fewer than tensor or context parallel ranks."""


def continuation(options: list[str]) -> list[Tensor]:
    """A rollout whose window slides, in the layout of these options; rows of odd length, so that some are padded."""
    device = worker.platform()
    from megatron_videogpt.config.check import check_config
    from megatron_videogpt.config.load import config_from_dict, parse_overrides
    from megatron_videogpt.hub.common.sampling_videogpt import Settings, continue_videos
    from megatron_videogpt.model.init import load_released
    from megatron_videogpt.objective.next_clip.denoiser import build_denoiser
    from megatron_videogpt.objective.next_clip.sampler import keyed_noise
    from megatron_videogpt.objective.noise import normal
    from megatron_videogpt.platforms import world
    from megatron_videogpt.train.networks import build_chunks

    config = config_from_dict(parse_overrides([*MODEL.split(), *options]))
    check_config(config, torch.distributed.get_world_size() if torch.distributed.is_initialized() else None)
    world.start(device, config.parallel)
    chunks = build_chunks(config, 4, device)
    for chunk in chunks:
        load_released(chunk, config.model, lambda entry: worker.spread(entry, config, 4))
    settings = Settings(clips=(2, 1, 2), window=5, steps=2, guidance=2.0)
    histories = [normal(0, "history", (3, 4, 6, 6)), normal(1, "history", (1, 4, 6, 10))]
    new = continue_videos(build_denoiser(chunks, config, device.device), histories, settings, keyed_noise([0, 1], 0))
    world.leave_layout()
    return new


def main() -> None:
    """Entry point under torchrun."""
    from safetensors.torch import save_file

    worker.platform()
    found = {}
    for name, options in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")).items():
        for video, latents in enumerate(continuation(options)):
            of_all = [torch.empty_like(latents) for _ in range(torch.distributed.get_world_size())]
            torch.distributed.all_gather(of_all, latents.contiguous())
            assert all(torch.equal(one, latents) for one in of_all), f"{name}: ranks differ"
            found[f"{name}.{video}"] = latents.contiguous()
    if torch.distributed.get_rank() == 0:
        save_file(found, sys.argv[2])
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
