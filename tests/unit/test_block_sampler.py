"""Sampling of next block prediction: filters and draws, windows that slide, the same with a cache, in company and
without, and the sample command.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_videogpt.__main__ import main
from megatron_videogpt.codec.build import build_codec
from megatron_videogpt.codec.fsq import codes_of, ids_of
from megatron_videogpt.config.check import find_problems
from megatron_videogpt.config.load import config_from_dict
from megatron_videogpt.config.schema import Config
from megatron_videogpt.data.conditioning import Conditioning
from megatron_videogpt.demo.work import Request, continue_one
from megatron_videogpt.errors import UserError
from megatron_videogpt.hub.next_block.sampling_nextblock import Drawing, filtered
from megatron_videogpt.sample import cli
from megatron_videogpt.sample.generate import Model
from tests.tokenizer import SMALL, saved
from tools.measuring.networks import spread

LEVELS = (5, 4, 3)


def left(logits: list[float], top_k: int, top_p: float) -> set[int]:
    """Places that are not filtered out, one after another."""
    order = sorted(range(len(logits)), key=lambda place: -logits[place])
    order = [place for place in order if logits[place] >= logits[order[min(top_k, len(order)) - 1]]]
    weights = torch.tensor([logits[place] for place in order]).double().exp()
    kept, before = set(), 0.0
    for place, share in zip(order, (weights / weights.sum()).tolist()):
        if before <= top_p:
            kept.add(place)
        before += share
    return kept


@pytest.mark.parametrize(("top_k", "top_p"), [(5, 0.6), (5, 1.0), (40, 0.3), (64, 0.9), (1, 0.5)])
def test_filters_go_token_by_token(top_k: int, top_p: float) -> None:
    logits = torch.randn(6, 40, generator=torch.Generator().manual_seed(top_k)) * 2
    ranked = logits[0].sort(descending=True)
    if top_p == 1:
        # Four share the fifth place of the first row: all stay.
        logits[0, ranked.indices[3:7]] = ranked.values[4]
    found = filtered(logits, top_k, top_p)
    for row, kept in zip(logits, found):
        places = {int(place) for place in kept.isfinite().nonzero()}
        assert places == left(row.tolist(), top_k, top_p)
        assert all(kept[place] == row[place] for place in places)
    assert len(found[0].isfinite().nonzero()) == 7 or top_p < 1
    assert torch.equal(filtered(logits, 0, 0.1), logits)


def test_ids_are_drawn_as_often_as_they_are_likely() -> None:
    """argmax(p / E), at a temperature, guided."""
    logits, without = torch.tensor([1.0, 0.0, -1.0, 2.0]), torch.tensor([0.5, 0.5, -2.0, 1.0])
    noise = torch.empty(40_000, 4).exponential_(generator=torch.Generator().manual_seed(0))
    how = Drawing(temperature=0.8, top_k=3, guidance=0.5, growing=True)
    ids = how.draw(logits.expand(len(noise), -1), without.expand(len(noise), -1), 2, noise)
    mixed = (2 * logits - without) / 0.8
    mixed[1] = -torch.inf
    assert torch.allclose(ids.bincount(minlength=4) / len(ids), mixed.softmax(-1), atol=0.01)
    assert Drawing(temperature=0).draw(logits[None], None, 0, None).item() == 3


def config_of(folder: Path, **changes: Any) -> Config:
    (folder / "config.json").write_text(json.dumps({"levels": LEVELS}))
    sections: dict[str, dict[str, Any]] = {
        "objective": {"name": "next_block_prediction", "block": 4},
        "codec": {"name": "fsq", "path": str(folder)},
        "model": {"num_layers": 2, "hidden_size": 32, "ffn_hidden_size": 48, "num_attention_heads": 4},
        "data": {"frames": 4, "source": "videos", "path": ".", "size_multiple": 32, "clips": [1, 1]},
        "train": {"precision": "fp32"},
        "sample": {"clips": [2, 1, 2], "window": 4},
    }
    sections["model"] |= {"patch_size": 1, "norm": "layer", "activation": "gelu", "biases": True}
    sections["model"] |= {"positions": "learned", "max_position_embeddings": 144}
    for name, values in changes.items():
        sections[name] = sections.get(name, {}) | values
    return config_from_dict(sections)


CLASSES = {"objective": {"layout": "hybrid"}, "condition": {"kind": "class", "classes": ["a", "b", "c"]}}
GUIDED = {"guidance_ratio": 0.7, "temperature": 0.9, "top_k": 40, "top_p": 0.95, "clips": [2, 1, 2], "window": 4}


def sampler_of(config: Config) -> Any:
    from megatron_videogpt.model.init import load_released
    from megatron_videogpt.objective.build import build_network, build_sampler
    from megatron_videogpt.platforms import activate

    platform = activate("cpu")
    network = build_network(config, len(LEVELS), platform, "ranged")
    load_released(network, config.model, partial(spread, config=config, channels=len(LEVELS)))
    return build_sampler([network], config, torch.device("cpu"))


def history(frames: int, rows: int = 4, seed: int = 0) -> Tensor:
    ids = torch.randint(60, (frames, rows, 4), generator=torch.Generator().manual_seed(seed))
    return codes_of(ids, LEVELS)


def rolled(
    config: Config, histories: list[Tensor], shown: list[Tensor | None] | None = None, **how: Any
) -> list[Tensor]:
    settings = replace(config.sample, **how)
    clips = list(sampler_of(config).rollout(histories, settings, list(range(len(histories))), 3, shown))
    return [torch.cat(parts) for parts in zip(*clips)]


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"objective": {"block": 8, "block_shape": [1, 2, 4]}},
        CLASSES | {"sample": GUIDED},
        CLASSES | {"objective": {"layout": "given_first_block"}},
    ],
    ids=["rows", "shape", "hybrid guided", "given"],
)
def test_a_cache_and_company_change_nothing(changes: dict[str, Any], tmp_path: Path) -> None:
    """Two videos of two sizes and lengths, over windows that slide."""
    config = config_of(tmp_path, **changes)
    shown = [torch.tensor([1]), None] if "condition" in changes else None
    histories = [history(2), history(1, rows=8, seed=1)]
    cached = rolled(config, histories, shown)
    assert [len(new) for new in cached] == [5, 5] and all(ids_of(new, LEVELS).unique().numel() > 8 for new in cached)
    plain = replace(config, sample=replace(config.sample, cache=False))
    # Each alone, without a cache, with the keys that they had together.
    for number, past in enumerate(histories):
        (clips,) = zip(*sampler_of(plain).rollout([past], plain.sample, [number], 3, shown and [shown[number]]))
        assert torch.equal(torch.cat(clips), cached[number])
    other = list(sampler_of(config).rollout(histories, config.sample, [0, 1], 4, shown))
    assert not torch.equal(torch.cat([clip[0] for clip in other]), cached[0])


@pytest.mark.usefixtures("processes")
def test_a_window_that_slid_is_the_beginning_of_a_video(tmp_path: Path) -> None:
    """Greedy: what follows the last frames is what they would be followed by, had there been nothing before."""
    config = config_of(tmp_path, sample={"temperature": 0, "clips": [2, 2, 1]})
    (new,) = rolled(config, [history(2)])
    shown = torch.cat([history(2), new])
    for first, clip in ((2, 2), (3, 1)):
        (again,) = rolled(config, [shown[first : first + 4 - clip]], clips=(clip,))
        assert torch.equal(again, shown[first + 4 - clip : first + 4])


@pytest.mark.usefixtures("processes")
def test_frames_that_are_no_whole_block_stay_as_they_are(tmp_path: Path) -> None:
    """Blocks of two frames after one or three given ones: of the block with the third, only the fourth is new."""
    config = config_of(tmp_path, objective={"block": 16, "block_shape": [2, 2, 4], "layout": "hybrid"})
    (new,) = rolled(config, [history(3)], clips=(1,))
    (same,) = rolled(config, [history(3)], clips=(1,), cache=False)
    assert len(new) == 1 and torch.equal(new, same)
    with pytest.raises(UserError, match=r"clip 1 of 2 latent frames after 1, 4x4 tokens each: no whole number of"):
        rolled(config, [history(1)], clips=(2,))


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize(
    ("frames", "clips", "message"),
    [
        (2, (5,), "clip 1 of 5 latent frames: the window has 4 (the model was trained with 4); use shorter"),
        (2, (4,), "the window of 4 leaves no room for a frame before it"),
        (0, (2,), "objective.layout = unconditional predicts no video's first block (4 tokens)"),
    ],
)
def test_what_cannot_be_sampled_is_one_line(frames: int, clips: tuple[int, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        rolled(config_of(tmp_path), [history(2)[:frames]], clips=clips, window=80)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_options_that_do_not_go_together(tmp_path: Path) -> None:
    for sample, message in (
        ({"steps": 3}, "sample.steps = 3: must be left out with objective.name = next_block_prediction"),
        ({"top_p": 0.9}, "sample.top_p = 0.9: must be 1 without sample.top_k"),
        ({"guidance_ratio": 1.0}, "sample.guidance_ratio = 1.0: must be 0 without a condition"),
        ({"window": 9}, "sample.window = 9: must be at most data.frames = 4"),
    ):
        problems = [line for line in find_problems(config_of(tmp_path, sample=sample), 1) if "sample." in line]
        assert len(problems) == 1 and problems[0].startswith(message), problems


def model_of(folder: Path, **changes: Any) -> Model:
    """An untrained model of codes of scenes, 4x4 a latent frame."""
    from megatron_videogpt.model.init import load_released
    from megatron_videogpt.objective.build import build_network, build_sampler
    from megatron_videogpt.platforms import activate

    data = {"source": "physics", "frames": 4, "frame_interval": [1, 1], "physics": {"size": 32}, "clips": [1, 4]}
    config = config_of(folder, data=data, **changes)
    saved(folder, SMALL)
    network = build_network(config, 3, activate("cpu"), "ranged")
    load_released(network, config.model, partial(spread, config=config, channels=3))
    codec = build_codec(config.codec)

    def sampler(settings: Any) -> Any:
        return build_sampler([network], replace(config, sample=settings), torch.device("cpu"))

    return Model(sampler, config, codec, torch.device("cpu"), 1, Conditioning(config.condition, None))


@pytest.mark.usefixtures("processes")
def test_the_command_continues_scenes_and_makes_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    classes = {"objective": {"layout": "hybrid"}, "condition": {"kind": "class", "classes": ["bounce", "roll"]}}
    model = model_of(tmp_path, **classes, sample={"clips": [2], "history": 2, "window": 4, "top_k": 60})
    monkeypatch.setattr(cli, "load", lambda *arguments: model)
    out = tmp_path / "out"

    def sample(*words: str) -> int:
        return main(["sample", "--checkpoint", "run", "--output", str(out), "--formats", "latents", *words])

    # 2 latent frames are 5, and 2 more 8 frames.
    assert sample("--scene", "bounce/3", "--compare") == 0
    report = json.loads((out / "bounce_3.json").read_text())
    assert (report["given_frames"], report["generated_frames"], report["settings"]["top_k"]) == (5, 8, 60)
    assert json.loads((out / "metrics.json").read_text())["prompts"]["bounce_3"]["frames"] == 8
    assert (
        sample("--class", "bounce", "--class", "roll", "--clips", "4", "--guidance-ratio", "0.5", "--batch", "1") == 0
    )
    made = [json.loads((out / f"{name}.json").read_text()) for name in ("bounce", "roll")]
    assert [(one["given_frames"], one["generated_frames"], one["class"]) for one in made] == [
        (0, 13, "bounce"),
        (0, 13, "roll"),
    ]
    # A window that slides: 5 clips of one latent frame.
    assert sample("--scene", "bounce/3", "--clips", "1x5", "--temperature", "0") == 0
    assert json.loads((out / "bounce_3.json").read_text())["generated_frames"] == 20
    capsys.readouterr()
    for words, message in (
        (("--steps", "3"), "--steps: a model of objective.name = next_block_prediction makes no use of it"),
        (("--top-p", "0"), "sample.top_p = 0.0: must be above 0 and at most 1"),
        (("--clips", "4"), "leaves no room for a frame before it"),
    ):
        assert sample("--scene", "bounce/3", *words) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
        assert len(lines) == 1 and message in lines[0], lines


@pytest.mark.usefixtures("processes")
def test_the_demo_asks_for_a_temperature(tmp_path: Path) -> None:
    model, told = model_of(tmp_path, sample={"clips": [2], "history": 2, "window": 4}), list[str]()
    asked = Request(None, ("fall", 7), 2, 1, 0, 1, None, None, 0, temperature=0.5)
    result = continue_one(model, asked, tmp_path, lambda share, text: told.append(text))
    assert result.text.startswith("5 frames given, 8 generated") and told[-1].startswith("2.0 of 2 frames")
    assert json.loads(next(result.video.parent.glob("*.json")).read_text())["settings"]["temperature"] == 0.5
    with pytest.raises(UserError, match="temperature = nothing: expected a number from 0 to 2"):
        continue_one(model, replace(asked, temperature=None), tmp_path, lambda share, text: None)
