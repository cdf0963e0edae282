"""Continues two videos of codes, with guidance and a window that slides, in several layouts:
`block_sampling_worker.py CASES.json OUTPUT.json`, under torchrun.

A case is name -> options of its configuration.  Rank 0 leaves name -> the new ids of each video.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.layouts import worker

LEVELS = (5, 4, 3)


def continuation(options: list[str]) -> list[list[int]]:
    """Ids of the rollout in the layout of these options; rows of odd length, so that some are padded."""
    device = worker.platform()
    from megatron_videogpt.codec.fsq import codes_of, ids_of
    from megatron_videogpt.config.check import check_config
    from megatron_videogpt.config.load import config_from_dict, parse_overrides
    from megatron_videogpt.model.init import load_released
    from megatron_videogpt.objective.build import build_sampler
    from megatron_videogpt.platforms import world
    from megatron_videogpt.train.networks import build_chunks

    config = config_from_dict(parse_overrides(options))
    check_config(config, torch.distributed.get_world_size() if torch.distributed.is_initialized() else None)
    world.start(device, config.parallel)
    chunks = build_chunks(config, len(LEVELS), device)
    for chunk in chunks:
        load_released(chunk, config.model, lambda entry: worker.spread(entry, config, len(LEVELS)))
    draws = torch.Generator().manual_seed(0)
    histories = [codes_of(torch.randint(60, size, generator=draws), LEVELS) for size in ((2, 4, 4), (1, 8, 4))]
    shown = [torch.tensor([1]), None]
    sampler = build_sampler(chunks, config, device.device)
    clips = list(sampler.rollout(histories, config.sample, [0, 1], 0, shown))
    world.leave_layout()
    return [ids_of(torch.cat(parts), LEVELS).flatten().tolist() for parts in zip(*clips)]


def main() -> None:
    """Entry point under torchrun."""
    worker.platform()
    found = {}
    for name, options in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")).items():
        found[name] = continuation(options)
        everyone: list = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(everyone, found[name])
        assert all(one == found[name] for one in everyone), f"{name}: ranks differ"
    if torch.distributed.get_rank() == 0:
        Path(sys.argv[2]).write_text(json.dumps(found), encoding="utf-8")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
