"""Under torchrun with four processes: `convert_worker.py FOLDERS.json` writes the checkpoint of each folder with TP2 x
PP2, then, where it is a Video-GPT, predicts with it at TP2.

A task is {"folder": ..., "run": ..., "predict": file}; "predict" is "" for another network.
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
    from megatron_videogpt.convert import forward, ingest, mapped, mapped_codec, mapped_run, new_run, settings
    from megatron_videogpt.convert.folder import Folder
    from megatron_videogpt.platforms import world

    tasks, codec = json.loads(Path(sys.argv[1]).read_text()), settings.codec_of(None)
    world.start(platform, ParallelConfig(tensor=2, pipeline=2))
    opened = []
    for task in tasks:
        folder, run = Path(task["folder"]), Path(task["run"])
        path, released = new_run.checkpoint_of(run), mapped.released_in(folder)
        if released is not None:
            block = mapped.open_source(folder, released, mapped_codec.place_of(run, released), {}, None, False)
            new_run.write_checkpoint(block, mapped_run.run_config(block, run, 2, 2), path, lambda count: None)
            continue
        source = ingest.open_source(Folder(folder), codec, None, None, False)
        config = new_run.run_config(source, codec, run, 2, 2)
        new_run.write_checkpoint(source, config, path, lambda count: None)
        opened.append((task, source, config, path))
    world.leave_layout()
    for task, source, config, path in opened:
        prediction = forward.of_run(path, config, source.channels, tensor=2)
        if torch.distributed.get_rank() == 0:
            save_file({"prediction": prediction.contiguous()}, task["predict"])
    world.stop()


if __name__ == "__main__":
    main()
