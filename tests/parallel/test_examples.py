"""Every configuration under examples/: `check` accepts it, and with `--shrink` it trains two steps in two processes and
saves, on miniatures of its data and of its codec, text encoder and tokenizer, where its file expects them; the first
of each kind goes on and samples.
"""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_videogpt import __main__ as command_line
from megatron_videogpt.config.check import check_config
from megatron_videogpt.config.load import load_config, read_config, tomllib
from megatron_videogpt.config.schema import Config
from megatron_videogpt.config.sections import find
from megatron_videogpt.config.shrink import shrink
from megatron_videogpt.data.decode import probe
from megatron_videogpt.objective.build import has_sampler
from tests.data.vae import small_kl
from tests.miniatures import folder_of_videos, frames_of_a_video, kinetics_name, msrvtt, ucf101, video
from tests.texts import text_ids, text_t5
from tests.tokenizer import random_vgg16, saved

from .launch import REPOSITORY, cli, interpreter, run, torchrun

pytestmark = pytest.mark.long
FILES = sorted(
    str(path.relative_to(REPOSITORY))
    for path in (REPOSITORY / "examples").rglob("*.toml")
    # How a data set becomes shards: test_recipes.py; ladders are no runs, but many.
    if path.parent.name not in ("datasets", "scaling")
)
LADDERS = sorted(str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "examples" / "scaling").glob("*.toml"))
NUMBERS = {"one": 1, "two": 2}
DEVICES = (
    r"--gpus (\d+)",
    r"--nproc_per_node=(\d+)",
    r"--nnodes (\d+) .*--nproc-per-node (\d+)",
    r"^python -m megatron_videogpt train ()",
    r"--nproc-per-node (\d+)",
    r"(\d+|one|two) (?:devices|CPU cores)",
)
"""How a header says for how many processes it is, the surest way first."""


def kind(file: str) -> tuple[object, ...]:
    """What going on and sampling depend on, beside sizes."""
    config = load_config(REPOSITORY / file)
    network = getattr(config.objective, "network", "")
    starts = bool(config.train.init_from)
    return config.objective.name, network, config.condition.kind, config.data.source, config.codec.name, starts


FIRST = {kind(file): file for file in reversed(FILES)}
"""Kind -> the first file of it; the others of a family differ in sizes, which `--shrink` makes equal."""


def header(file: str) -> str:
    """The comment at a configuration's beginning."""
    lines = (REPOSITORY / file).read_text(encoding="utf-8").splitlines()
    rest = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(line.removeprefix("#").strip() for line in lines[:rest])


def base_of(file: str) -> str | None:
    """The file that this one starts from."""
    base = tomllib.loads((REPOSITORY / file).read_text(encoding="utf-8")).get("base")
    return None if base is None else str((REPOSITORY / file).parent.joinpath(base).resolve().relative_to(REPOSITORY))


def devices(file: str) -> int | None:
    """Processes that its header is for, or its base's; None where nothing is said."""
    for pattern in DEVICES:
        if found := re.search(pattern, header(file), re.MULTILINE):
            return math.prod(NUMBERS.get(number) or int(number or 1) for number in found.groups())
    base = base_of(file)
    return None if base is None else devices(base)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with everything that the configurations name, in its published layout."""
    folder = tmp_path_factory.mktemp("home")
    for name in ("examples", "tools"):
        (folder / name).symlink_to(REPOSITORY / name)
    folder_of_videos(folder / "data/videos", 5, 40, (256, 256))
    for number in range(5):
        video(folder / "data/k600" / kinetics_name(f"-3B32lodo{number}", number, number + 10), number, 20, (128, 128))
    ucf101(folder / "data", "ucf101", 20, (128, 128), groups=2)
    for number in range(4):
        frames_of_a_video(folder / f"sky_timelapse/sky_train/a/a_{number}", 16, seed=number)
    msrvtt(folder / "msrvtt", "videos256", 30, (256, 256))
    ucf101(folder / "ucf101", "UCF-101-256", 30, (256, 256), groups=2)
    models = folder / "checkpoints"
    for name in ("sdxl-vae", "sd-vae-ft-ema"):
        small_kl(models / name)
    saved(models / "nbp-tokenizer")
    (models / "vgg16").mkdir()
    from safetensors.torch import save_file

    save_file(random_vgg16(), models / "vgg16" / "vgg16.safetensors")
    text_t5(models / "t5-v1_1-xxl", width=4096)
    text_ids(folder / "data/llama2")
    return folder


def options_of(file: str) -> list[str]:
    """What its header leaves to the user, and a layout."""
    config, _, _ = read_config(REPOSITORY / file)
    options = [] if config.data.path or config.data.source == "physics" else ["data.path=data/videos"]
    return [*options, *(["parallel.tensor=2"] if "tensor" in find("objective", config.objective.name).axes else [])]


def prepared(file: str, home: Path) -> None:
    """The shards that it reads, by the commands of its header."""
    for line in header(file).splitlines():
        words = shlex.split(re.split(r" {2,}", line)[0]) if line.startswith("python ") else []
        others = {"train", "check", "sample"} & set(words) or any(word.startswith("runs/") for word in words)
        if words and not others and not (home / words[-1]).is_dir():
            done = run(interpreter(*words[1:]), cwd=str(home))
            assert done.returncode == 0, (line, done.stderr[-2000:])


def losses(output: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def trained(file: str, home: Path) -> Config:
    """Two steps, after those of the run whose weights it starts from; the configuration of the run."""
    options = options_of(file)
    wanted = load_config(REPOSITORY / file, options)
    output = home / f"{wanted.train.output}-shrunk"
    small, _ = shrink(wanted, given=[option.partition("=")[0] for option in options], world_size=2)
    if wanted.train.init_from and not (home / small.train.init_from).is_dir():
        before = next(
            other for other in FILES if load_config(REPOSITORY / other).train.output == wanted.train.init_from
        )
        trained(before, home)
    prepared(file, home)
    shutil.rmtree(output, ignore_errors=True)  # of another file that does not name its own
    torchrun(2, "-m", "megatron_videogpt", "train", file, "--shrink", *options, cwd=str(home))
    ran = load_config(output / "config.toml")
    wanted = small
    for name, key in DECIDED:
        section = replace(getattr(wanted, name), **{key: getattr(getattr(ran, name), key)})
        wanted = replace(wanted, **{name: section})
    assert ran == wanted
    return ran


DECIDED = (
    ("parallel", "recompute"),
    ("parallel", "gradient_accumulation_fusion"),
    ("train", "precision"),
    ("data", "share_encoding"),
)
"""Options that may say auto, and then another value in the run's folder."""


def shown(config: Config, home: Path) -> list[str]:
    """What the sample command is given."""
    condition, words = config.condition, []
    if condition.kind == "class":
        words = ["--class", condition.classes[0]]
    elif condition.kind == "text":
        words = ["--text", "apply eye makeup"]
    if not config.sample.history:
        return words
    some = home / ("msrvtt/videos256" if config.data.source == "shards" else config.data.path)
    if config.data.source == "physics":
        return [*words, "--scene", "bounce/2"]
    return [*words, next(str(path) for path in sorted(some.rglob("*")) if path.suffix in (".mp4", ".avi"))]


@pytest.mark.parametrize("file", FILES)
def test_check_accepts_it(
    file: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    gpus = devices(file)
    words = ["--gpus", str(gpus)] if gpus else []
    given = [option for option in options_of(file) if option.startswith("data.")]
    assert command_line.main(["check", file, *words, *given]) == 0
    assert f"= {gpus or 1} " in capsys.readouterr().out


@pytest.mark.parametrize("file", LADDERS)
def test_ladders_can_be_planned(
    file: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each planned run is one that `check` would accept, and the largest is far enough away to be predicted."""
    monkeypatch.chdir(home)
    assert command_line.main(["scaling", "plan", file, f"ladder.output={tmp_path}", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)["runs"]
    for one in planned:
        config = load_config(tmp_path / "configs" / f"{one['name']}.toml")
        check_config(config, one["devices"])
    fitted = [one["six_nd"] for one in planned if not one["held_out"]]
    held_out = [one["six_nd"] for one in planned if one["held_out"]]
    assert sum(len(one["points"]) for one in planned if not one["held_out"]) >= 9
    assert min(held_out) >= 3 * max(fitted)


@pytest.mark.parametrize("file", FILES)
def test_it_trains_small(file: str, home: Path) -> None:
    config = trained(file, home)
    output = home / config.train.output
    assert sorted(losses(output)) == [1, 2] and (output / "checkpoints" / "step_00000002" / "state.json").is_file()
    if file != FIRST[kind(file)]:
        return
    more = ["train.steps=3", "optimizer.allow_rate_jump=true"]
    again = torchrun(2, "-m", "megatron_videogpt", "train", file, "--shrink", *options_of(file), *more, cwd=str(home))
    assert "resumed from" in again.stdout
    found = losses(output)
    assert sorted(found) == [1, 2, 3] and all(map(math.isfinite, found.values()))
    assert (output / "checkpoints" / "step_00000003" / "state.json").is_file()
    frames = config.sample.clips[0]
    words = ["sample", "--checkpoint", str(output), *shown(config, home), "--clips", str(frames), "--output"]
    done = cli(*words, str(output / "sampled.mp4"), cwd=str(home))
    if not has_sampler(config):
        assert done.returncode == 2 and done.stderr.count("error:") == 1, done.stderr
        return
    assert done.returncode == 0, done.stderr[-2000:]
    assert probe(output / "sampled.mp4").frames >= frames


def test_the_real_run_refuses_what_a_small_one_saved(home: Path) -> None:
    file = "examples/videogpt/quickstart.toml"
    output = trained(file, home).train.output
    done = cli("train", file, f"train.output={output}", cwd=str(home))
    assert done.returncode == 2 and done.stderr.count("error:") == 1, done.stderr
    assert "is a checkpoint of another model: model.num_layers is 2 there and 6 here" in done.stderr


def test_headers_tell_for_how_many_processes_they_are() -> None:
    told = {Path(file).stem: devices(file) for file in FILES if "videogpt/" in file or "vidgpt/" in file}
    assert told["stage1"] == told["stage4"] == 320 and told["quickstart"] == told["videos_factorised"] == 2
    assert (told["msrvtt"], told["ucf101"], told["skytimelapse"]) == (144, 8, 1)
