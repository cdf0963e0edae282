"""Trains `tiny.toml` in several layouts on one platform: `npu_worker.py PLATFORM ADAPTOR CASES.json FOLDER`, under
torchrun or alone.

A case is name -> {"options": overrides, "resumes": the case whose run goes on before its last checkpoint, or nothing,
"sample": whether its last checkpoint then continues a video}.  Rank 0 leaves ``FOLDER/found.json``: name -> losses,
gradient norms and sampled latents, which attention was chosen, in how many rectangles, and what every rank sent.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
CONFIG = str(Path(__file__).with_name("tiny.toml"))
STEPS = 6
"""Of a case that resumes, and of the one that it resumes: saved after half of them."""
CALL = 30
"""Pairs of a call, instead of a device's millions: rows of `tiny.toml` become several rectangles."""


def take_over(source: Path, target: Path) -> None:
    """A copy of a run, as if it had been stopped before its last checkpoint."""
    from megatron_videogpt.checkpoint.folders import checkpoint_name, checkpoint_root

    shutil.copytree(source, target)
    shutil.rmtree(checkpoint_root(target) / checkpoint_name(STEPS))
    (target / "metrics.jsonl").unlink()


def train(options: list[str], output: Path) -> dict[str, Any]:
    """Losses and gradient norms of all steps, in order, and the losses of validation by step."""
    from megatron_videogpt.config.load import load_config
    from megatron_videogpt.train import trainer

    trainer.train(load_config(CONFIG, [*options, f"train.output={output}"]))
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if "loss" in line]
    measured = {str(line["step"]): line["validation_loss"] for line in lines if "validation_loss" in line}
    losses, norms = ([line[name] for line in steps] for name in ("loss", "grad_norm"))
    return {"losses": losses, "norms": norms, "validation": measured}


def sample(run: Path) -> list[float]:
    """Latents of a clip that the newest checkpoint generates."""
    from dataclasses import replace

    from megatron_videogpt.objective.noise import normal
    from megatron_videogpt.sample.generate import load

    model = load(run)
    settings = replace(model.config.sample, history=2, clips=(2,), window=4, steps=2, guidance=2.0)
    history = normal(7, "history", (2, model.codec.channels, 4, 4)).to(model.device)
    clips = list(model.sampler(settings).rollout([history], settings, [7], 0, [None]))
    return [float(value) for (clip,) in clips for value in clip.flatten()]


def sent() -> list[list[str]]:
    """(backend, method, dtypes) of all collectives of this rank; nothing on the CPU platform."""
    if "torch_npu" not in sys.modules:
        return []
    from torch_npu import hccl

    return sorted({(call.backend, call.name, " ".join(call.dtypes)) for call in hccl.seen})  # type: ignore[type-var]


def watch_attention() -> tuple[list[str], list[int]]:
    """What will be chosen, one after another, and the rectangles of plans; rows have several: by a device's costs a few
    dozen tokens are one.
    """
    from megatron_videogpt.attention import agreed, npu

    chosen: list[str] = []
    rectangles: list[int] = []
    choose, on_device = agreed.choose, npu.on_device

    def choose_and_tell(*arguments: Any) -> tuple[str, str]:
        before = len(rectangles)
        found = choose(*arguments)
        # The rows of the comparison say nothing of those that are trained on.
        del rectangles[before:]
        chosen.append(found[0])
        return found

    def count(boxes: Any, device: torch.device) -> Any:
        rectangles.append(len(boxes))
        return on_device(boxes, device)

    few = npu.FINE._replace(call=CALL)
    agreed.choose, npu.on_device, npu.costs = choose_and_tell, count, lambda heads, head_dim: few
    return chosen, rectangles


def main() -> None:
    """Entry point."""
    name, adaptor, cases, folder = (
        sys.argv[1],
        sys.argv[2],
        json.loads(Path(sys.argv[3]).read_text()),
        Path(sys.argv[4]),
    )
    from megatron_videogpt.platforms import activate, probe

    # How fast the device is says nothing here, and costs seconds.
    probe.SIDE = 8
    activate(name, adaptor)
    here = [f"train.platform={name}", f"train.adaptor={adaptor}"]
    torch.set_num_threads(1)
    chosen, rectangles = watch_attention()
    found: dict[str, Any] = {}
    for case, asked in cases.items():
        output = folder / case
        if asked.get("resumes"):
            take_over(folder / asked["resumes"], output)
        found[case] = train([*asked["options"], *here], output)
        if asked.get("sample"):
            found[case]["sampled"] = sample(output)
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, sent())
    if dist.get_rank() == 0:
        found |= {"backend": dist.get_backend(), "sent": [list(call) for one in everyone for call in one]}
        found |= {"attention": sorted(set(chosen)), "rectangles": sorted(set(rectangles))}
        (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
