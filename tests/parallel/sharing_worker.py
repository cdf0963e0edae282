"""Encoding shared in several layouts: `sharing_worker.py VAE CONFIG FOLDER LAYOUT...` leaves ``FOLDER/rank<n>.json``,
layout -> what that rank found.  A layout is options of [parallel], "tensor=2 context=2"; after "train" in it a run is
trained with encoding shared and another one without.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from megatron_videogpt.platforms import activate

PLATFORM = activate("cpu")
from megatron_videogpt.codec.build import build_codec  # noqa: E402
from megatron_videogpt.codec.options import CodecConfig  # noqa: E402
from megatron_videogpt.config.load import load_config  # noqa: E402
from megatron_videogpt.data.plans import Sample  # noqa: E402
from megatron_videogpt.data.video.pictures import to_model_range  # noqa: E402
from megatron_videogpt.errors import PeerFailed  # noqa: E402
from megatron_videogpt.platforms import world  # noqa: E402
from megatron_videogpt.train import trainer  # noqa: E402
from megatron_videogpt.train.feed import host_group, is_reader  # noqa: E402
from megatron_videogpt.train.sharing import share_samples  # noqa: E402

STEPS = {
    "odd": [(5, 16, 16), (7, 24, 16), (1, 16, 32)],
    "one frame": [(1, 16, 16)],
    "one video": [(9, 16, 16)],
    "empty": [],
}
"""Videos of a step that are still to be encoded: frames, height and width."""


def samples_of(sizes: list[tuple[int, int, int]], channels: int, seed: int) -> list[Sample]:
    """Those of a step as they were read: two that have latents, one a condition, before and behind the frames."""
    random = np.random.default_rng(seed)
    ready = [
        Sample(
            n, f"ready {n}", torch.from_numpy(random.normal(size=(2, channels, 2, 2)).astype(np.float32)), None, (2,)
        )
        for n in range(2)
    ]
    ready[0] = replace(ready[0], condition=torch.arange(6.0).view(2, 3))
    frames = [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    read = [
        Sample(10 + n, f"video {n}", torch.empty(0), None, (1,), pixels, condition=torch.tensor([n]))
        for n, pixels in enumerate(frames)
    ]
    return [ready[0], *read, ready[1]]


def alike(found: Sample, read: Sample, codec: Any) -> bool:
    """Whether a sample is what was read, with the latents that the codec gives of its frames, to the bit."""
    mean, logvar = read.mean, read.logvar
    if read.pixels is not None:
        mean, logvar = codec.encode(to_model_range(read.pixels))
    pairs: list[Any] = [(found.mean, mean), (found.logvar, logvar), (found.condition, read.condition)]
    same = all((a is None) == (b is None) and (a is None or torch.equal(a, b)) for a, b in pairs)
    return same and found.pixels is None and (found.key, found.name, found.clips) == (read.key, read.name, read.clips)


def shared(vae: str, replica: int) -> dict[str, Any]:
    """Steps of several codecs, and one in which the last rank of a replica fails, by what came of it here."""
    group = host_group(1.0)
    found: dict[str, Any] = {}
    for name in ("autoencoder_kl", "tiny_fsq"):
        codec: Any = build_codec(CodecConfig(name=name, path=vae, batch_size=2))
        calls = [0]
        codec.encode = counted(codec.encode, calls)
        for label, sizes in STEPS.items():
            fitting = sizes if name == "autoencoder_kl" else [(1 + 4 * (f // 4), h, w) for f, h, w in sizes]
            samples = samples_of(fitting, codec.channels, replica)
            calls[0] = 0
            given, note, _ = share_samples(partial(given_back, samples) if is_reader() else None, codec, group)
            made = calls[0]
            well = note == "note" and len(given) == len(samples)
            found[f"{name}, {label}"] = [well and all(map(lambda a, b: alike(a, b, codec), given, samples)), made]
    broken: Any = build_codec(CodecConfig())
    if group.rank() == group.size() - 1:
        broken.encode = out_of_memory
    for label, codec in (("failed", broken), ("well again", build_codec(CodecConfig()))):
        samples = samples_of([(4, 16, 16), (4, 16, 16), (4, 16, 16), (4, 16, 16)], codec.channels, replica)
        try:
            share_samples(partial(given_back, samples) if is_reader() else None, codec, group)
            found[label] = "well"
        except (torch.OutOfMemoryError, PeerFailed) as error:
            found[label] = f"{type(error).__name__}: {error}"
    return found


def given_back(samples: list[Sample]) -> tuple[list[Sample], str]:
    """What a reader reads."""
    return samples, "note"


def counted(encode: Callable[..., Any], calls: list[int]) -> Callable[..., Any]:
    """The same, with the number of its calls."""

    def call(video: torch.Tensor) -> Any:
        calls[0] += 1
        return encode(video)

    return call


def out_of_memory(*_: Any) -> Any:
    """As CUDA says it."""
    raise torch.OutOfMemoryError("CUDA out of memory")


def trained(config: str, options: list[str], folder: Path) -> list[dict[str, float]]:
    """The log lines of a run."""
    trainer.train(load_config(config, [*options, f"train.output={folder}"]))
    dist.barrier()
    world.leave_layout()
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def main() -> None:
    """Entry point under torchrun."""
    torch.set_num_threads(1)
    vae, config, folder, layouts = sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4:]
    result: dict[str, Any] = {}
    for number, layout in enumerate(layouts):
        options = [f"parallel.{option}" for option in layout.removesuffix(" train").split()]
        parallel = load_config(config, options).parallel
        world.start(PLATFORM, parallel)
        result[layout] = shared(vae, dist.get_rank() // parallel.model_size)
        world.leave_layout()
        named = ["codec.name=autoencoder_kl", f"codec.path={vae}", "codec.batch_size=3", "train.steps=2"]
        named += ["checkpoint.every=0", "eval.every=2", "eval.samples=3", "train.global_batch_size=3", *options]
        for way, asked in (("off", "off"), ("on", "auto")) if layout.endswith(" train") else ():
            run = folder / f"{number}_{way}"
            result[layout][way] = trained(config, [*named, f"data.share_encoding={asked}"], run)
    (folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(result))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
