"""Under torchrun with four processes: `convert_worker.py FOLDERS.json` writes the checkpoint of each folder with TP2 x
PP2, then predicts with it at TP2.

A task is {"folder": ..., "run": ..., "predict": file}.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def main() -> None:
    """Entry point."""
    from megatron_videogpt.platforms import activate

    platform = activate("cpu")
    import torch
    from safetensors.torch import save_file

    from megatron_videogpt.config.schema import ParallelConfig
    from megatron_videogpt.convert import forward, ingest, new_run, settings
    from megatron_videogpt.convert.folder import Folder
    from megatron_videogpt.platforms import world

    tasks, codec = json.loads(Path(sys.argv[1]).read_text()), settings.codec_of(None)
    world.start(platform, ParallelConfig(tensor=2, pipeline=2))
    opened = []
    for task in tasks:
        source = ingest.open_source(Folder(Path(task["folder"])), codec, None, None, False)
        config, path = (
            new_run.run_config(source, codec, Path(task["run"]), 2, 2),
            new_run.checkpoint_of(Path(task["run"])),
        )
        new_run.write_checkpoint(source, config, path, lambda count: None)
        opened.append((source, config, path))
    world.leave_layout()
    for task, (source, config, path) in zip(tasks, opened, strict=True):
        prediction = forward.of_run(path, config, source.channels, tensor=2)
        if torch.distributed.get_rank() == 0:
            save_file({"prediction": prediction.contiguous()}, task["predict"])
    world.stop()


if __name__ == "__main__":
    main()
