"""The distribution of docs/extending.md, taken from the page: an objective, a codec and a callback in one run."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from megatron_videogpt.codec.build import build_codec
from megatron_videogpt.config.load import config_from_dict
from megatron_videogpt.data.sources.open import open_source
from tests.loading import loader_of

from .launch import REPOSITORY, interpreter, python_path, run, torchrun

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BLOCK = re.compile(r"^```(?:python|toml)\n# (mylab/\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def page() -> dict[str, str]:
    """The files of the page, by name."""
    return dict(BLOCK.findall((REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to import from, as after pip install: the package, and the metadata that its pyproject.toml gives."""
    site = tmp_path_factory.mktemp("site")
    files = page()
    for name, text in files.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(text, encoding="utf-8")
    for folder in {(site / name).parent for name in files}:
        (folder / "__init__.py").touch()
    project = tomllib.loads(files["mylab/pyproject.toml"])["project"]
    dist = site / f"{project['name']}-{project['version']}.dist-info"
    dist.mkdir()
    named = f"Name: {project['name']}\nVersion: {project['version']}\n"
    (dist / "METADATA").write_text(f"Metadata-Version: 2.1\n{named}")
    groups = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
        for group, points in project["entry-points"].items()
    ]
    (dist / "entry_points.txt").write_text("\n".join(groups))
    return site


def environment(site: Path) -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join([str(site), python_path()])}


@pytest.fixture(scope="module")
def trained(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's run: tensor and sequence parallel over two processes."""
    output = tmp_path_factory.mktemp("mylab") / "run"
    arguments = ("-m", "megatron_videogpt", "train", str(site / "mylab" / "run.toml"), f"train.output={output}")
    torchrun(2, *arguments, cold=True, **environment(site))
    return output


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_the_first_loss_is_that_of_predicting_nothing(trained: Path) -> None:
    """The head starts with zeros: by hand, from pixels."""
    values = tomllib.loads(page()["mylab/run.toml"])
    side, size = values["codec"]["side"], values["data"]["physics"]["size"]
    values["train"].pop("callbacks")
    config = config_from_dict({**values, "objective": {}, "codec": {"name": "pixels"}, "parallel": {}})
    codec = build_codec(config.codec)
    loader = loader_of(open_source(config.data, codec), codec, config)
    videos = [sample.mean for row in next(loader) for sample in row.samples]
    loader.close()
    squares = [video.unfold(2, side, side).unfold(3, side, side).mean(dim=(-1, -2)) for video in videos]
    frames = torch.cat([(2.0 * one[1:]).square().mean(dim=(1, 2, 3)) for one in squares])
    assert squares[0].shape == (6, 3, size // side, size // side) and len(frames) == 4 * 5
    found = [line["loss"] for line in lines(trained)]
    assert found[0] == pytest.approx(float(frames.mean()), rel=1e-5)
    assert len(found) == 6 and found[-1] < 0.9 * found[0]


def test_the_callback_has_the_losses_of_the_log(trained: Path) -> None:
    told = json.loads((trained / "losses.json").read_text())
    assert told == {str(line["step"]): line["loss"] for line in lines(trained)}


def test_the_codec_is_recorded(trained: Path) -> None:
    from megatron_videogpt.codec.base import fingerprint_of

    state = json.loads((trained / "checkpoints" / "step_00000006" / "state.json").read_text())
    assert state["codec"] == fingerprint_of("pooled 4 2.0", [])


CHECKS = """
import sys
from megatron_videogpt.codec.build import build_codec
from megatron_videogpt.codec.options import CodecConfig
from megatron_videogpt.config.check import load_checked
from megatron_videogpt.config.load import ConfigError
for overrides in ([], ["codec.name=poled"], ["objective.name=next"], ["codec.side=5"], ["codec.path=x"]):
    try:
        config = load_checked(sys.argv[1], overrides, 2)
        print("fine", config.codec.side)
    except ConfigError as error:
        told = ("codec.name", "codec.path", "objective.name", "data.physics.size")
        print(next(line for line in error.problems if line.startswith(told)))
# What a command makes that knows a codec by its name alone.
codec = build_codec(CodecConfig("pooled"))
import torch
video = torch.rand(3, 3, 16, 8) * 2 - 1
latents, _ = codec.encode(video)
print(list(latents.shape), codec.decode(latents).shape == video.shape, codec.spatial_stride)
"""


def test_what_is_wrong_with_it_is_one_line_and_unknown_names_list_what_there_is(site: Path) -> None:
    file = site / "mylab" / "run.toml"
    result = run(interpreter("-c", CHECKS, file), cold=True, **environment(site))
    assert result.returncode == 0, result.stderr
    fine, name, objective, side, option, codec = result.stdout.splitlines()
    assert fine == "fine 4"
    known = "tiny, tiny_fsq, pixels, autoencoder_kl, autoencoder_kl_wan, fsq, pooled (from mylab.pooled)"
    assert name == f"codec.name = \"poled\": must be one of {known}; 'poled' is not known"
    assert "tokenizer, next_frame (from mylab.next_frame); 'next' is not known" in objective
    assert side == (
        "data.physics.size = 32: must be a multiple of the codec's stride 5 * model.patch_size 2 = 10 and of 16; use 80"
    )
    assert option.startswith('codec.path = "x": there is no such option')
    assert codec == "[3, 3, 2, 1] True 8"


def test_pooling_is_what_the_page_says() -> None:
    """The mean over squares, against the unfolding above."""
    video = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    squares = video.unfold(2, 4, 4).unfold(3, 4, 4).mean(dim=(-1, -2))
    assert torch.allclose(F.avg_pool2d(video, 4), squares)
