"""FLOPs of a plan against the products that torch counts: of networks, attention on attended pairs, and of codecs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from megatron_videogpt.config.schema import Config
from megatron_videogpt.scaling.ladder.codec_cost import encoding_flops, kl_flops
from megatron_videogpt.scaling.ladder.cost import price
from megatron_videogpt.scaling.ladder.grid import plan_ladder
from megatron_videogpt.sequence.intervals import dense_mask

from .test_ladder_plan import ladder as ladder_file
from .test_ladder_plan import plan

ROOT = Path(__file__).resolve().parents[2]
RECIPES = {
    "next_clip_diffusion": (
        "videogpt/quickstart.toml",
        ("data.clips=[16, 16]", "model.patch_size=2", "objective.clean_retention=1.0"),
    ),
    "next_block_prediction": ("nbp/physics.toml", ()),
    # A long prompt, which the last layer only reads.
    "frame_prompt_diffusion": ("vidgpt/physics.toml", ("objective.prompts=[12]", "model.patch_size=2")),
}
"""Recipe and overrides that leave one split into clips, so that a sample's work is its expectation."""


def added_product(total: Any, first: Any, second: Any, **shapes: Any) -> int:
    """FLOPs of a product by the shapes of its factors."""
    return int(2 * first[0] * first[1] * second[1])


def counted(config: Config) -> float:
    """FLOPs of a forward and backward pass over one sample as torch counts them, and of attention, which `reference`
    computes for all pairs, the share that its mask has.
    """
    from megatron_videogpt.codec.geometry import expected_geometry
    from megatron_videogpt.data.plans import Sample
    from megatron_videogpt.objective.build import build_network, build_objective
    from megatron_videogpt.platforms import activate

    channels, frames = expected_geometry(config.codec).channels, config.data.frames
    model, objective = build_network(config, channels, activate("cpu"), "reference"), build_objective(config)
    # Zero is a code of every channel, too.
    mean = torch.zeros(frames, channels, 8, 8)
    clips = (1,) * config.data.clips[1] if config.data.clips[1] > 1 else (frames,)
    row = objective.prepare([Sample(key=1, name="1", mean=mean, logvar=None, clips=clips)], 1)
    # Torch does not count what is added up in place, as the gradient of a large head is.
    in_place = {torch.ops.aten.addmm_: added_product}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        objective.score(model(row), row).total.backward()
    products = {str(name): flops for name, flops in counter.get_flop_counts()["Global"].items()}
    attention = products.pop("aten.bmm")
    mask, layers, tokens = dense_mask(row.masks[0].intervals), config.model.num_layers, row.length
    read = mask[row.scored_rows]
    attended = (layers - 1) * int(mask.sum()) + int(read.sum())
    return sum(products.values()) + attention * attended / ((layers - 1) * tokens**2 + len(read) * tokens)


@pytest.mark.parametrize("objective", RECIPES)
def test_a_plans_flops_are_what_torch_counts(objective: str, processes: None, tmp_path: Path) -> None:
    recipe, overrides = RECIPES[objective]
    path = tmp_path / "ladder.toml"
    options = 'sizes = [2e5]\nmultiples = [1]\nparameters = "decoder"\naspect = 16\nmemory_gb = 4\n'
    path.write_text(f'base = "{ROOT / "examples" / recipe}"\n[ladder]\n{options}', encoding="utf-8")
    ladder, _, runs = plan_ladder(path, [*overrides, "train.precision=fp32"])
    (priced,) = price(runs, ladder)
    train = priced.run.config.train
    mine = priced.cost.flops / (train.steps * train.global_batch_size)
    assert mine == pytest.approx(counted(priced.run.config), rel=0.01)


def test_a_codecs_flops_are_what_torch_counts() -> None:
    from diffusers import AutoencoderKL

    sizes: tuple[Any, ...] = ((16, 32, 32), 2, 4)
    # Where there are no numbers, attention is two products that it counts; on CPUs it is a kernel that it does not.
    with torch.device("meta"):
        vae = AutoencoderKL(
            block_out_channels=sizes[0],
            layers_per_block=sizes[1],
            latent_channels=sizes[2],
            norm_num_groups=8,
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
        )
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            vae.encode(torch.zeros(1, 3, 32, 48))
    assert kl_flops(*sizes, 32, 48) == counter.get_total_flops()


def test_what_encoding_costs_is_known_where_the_codec_is() -> None:
    from megatron_videogpt.config.load import config_from_dict

    videos = {"source": "videos", "path": "somewhere", "frames": 16}
    published = encoding_flops(config_from_dict({"codec": {"name": "autoencoder_kl", "path": "gone"}, "data": videos}))
    # Counted by torch for SDXL's VAE as diffusers builds it, 16 frames of 176x320.
    assert published == 3_745_777_418_240
    assert encoding_flops(config_from_dict({"codec": {"name": "pixels"}})) == 0
    wan = {"name": "autoencoder_kl_wan", "path": "gone"}
    assert encoding_flops(config_from_dict({"codec": wan, "data": videos})) is None
    few, more = (encoding_flops(config_from_dict({"data": {"frames": frames}})) for frames in (4, 8))
    assert few and more == 2 * few


def test_times_follow_the_given_the_measured_and_the_assumed_speed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, peak = ladder_file(tmp_path, mfu=0.2, overhead=0.5, hold_out=[[1.2e5, 2]]), 1e12
    words = ("logging.peak_tflops=1", "--mfu", "0.1")

    def took(*words: str) -> dict[str, tuple[float, float]]:
        runs = plan(path, *words)["runs"]
        return {run["name"]: (run["mfu"], run["seconds"] - run["flops"] / (run["mfu"] * peak)) for run in runs}

    besides = {run["name"]: 0.5 * run["steps"] for run in plan(path)["runs"]}
    given, told = took(*words), took(words[0])
    assert all(given[name] == (0.1, pytest.approx(besides[name])) for name in besides)
    assert all(told[name] == (0.2, pytest.approx(besides[name])) for name in besides)
    line = json.dumps({"step": 1, "mfu": 0.05, "tflops_per_device": 0.05})
    (tmp_path / "ladder" / "10k-x1").mkdir()
    (tmp_path / "ladder" / "10k-x1" / "metrics.jsonl").write_text(line + "\n", encoding="utf-8")
    measured = took(words[0])
    # What is measured has everything in it, and is that of all runs of the size.
    assert all(measured[f"10k-x{m}"] == (0.05, pytest.approx(0.0, abs=1e-9)) for m in ("0.5", "1", "2"))
    assert measured["40k-x1"] == told["40k-x1"] and took(*words) == given
    capsys.readouterr()
    least = sum(run["device_hours"] for run in plan(path)["runs"]) * 0.99
    plan(path, "--budget", f"{least}h")
    assert "nothing is held out any more: the budget paid for no run that the la" in capsys.readouterr().out
