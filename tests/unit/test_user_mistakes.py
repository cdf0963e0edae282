"""Whatever a user gets wrong is one line and exit code 2, never a traceback; what is wrong in here keeps its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_videogpt import __main__ as cli
from megatron_videogpt.errors import UserError, exit_code

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = str(ROOT / "examples" / "videogpt" / "quickstart.toml")
TRAIN = ("train", QUICKSTART, "parallel.tensor=1", "parallel.sequence=false", "train.platform=cpu")
CHECK = ("check", QUICKSTART, "--data", "parallel.tensor=1", "parallel.sequence=false")
SAMPLE = ("sample", "--scene", "bounce/1", "--output", "out.mp4", "--checkpoint")

Prepare = Callable[[Path], None]


def holds(name: str, text: str = "") -> Prepare:
    """A file with this text, in its folder; a name that ends with a slash is a folder."""

    def make(folder: Path) -> None:
        path = folder / name
        if name.endswith("/"):
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return make


def nothing(folder: Path) -> None:
    """No file is needed."""


MISTAKES: list[tuple[Prepare, tuple[str, ...], str]] = [
    (nothing, ("train", "none.toml"), "none.toml: there is no such configuration file"),
    (holds("folder.toml/"), ("train", "folder.toml"), "folder.toml: cannot be read as a text file"),
    (holds("broken.toml", "[train"), ("train", "broken.toml"), "broken.toml: must be valid TOML"),
    (nothing, (*TRAIN, "train.stepz=3"), "train.stepz = 3"),
    (nothing, (*TRAIN, "data.source=videos", "data.path=gone"), 'data.path = "gone": there is no such folder'),
    (nothing, (*TRAIN, "train.init_from=gone"), 'train.init_from = "gone"'),
    (holds("taken"), (*TRAIN, "train.output=taken/run"), 'train.output = "taken/run": taken is a file, not a folder'),
    (holds("videos/"), (*CHECK, "data.source=videos", "data.path=videos"), "data.path=videos: no videos in it"),
    (holds("shards/"), (*CHECK, "data.source=shards", "data.path=shards"), "data.path=shards: no *.tar in it"),
    (
        holds("shards/a.tar", "x" * 600),
        (*CHECK, "data.source=shards", "data.path=shards"),
        "no usable sample in 1 tar files",
    ),
    (
        holds("vae/config.json", "{"),
        (*CHECK, "codec.name=autoencoder_kl", "codec.path=vae"),
        "codec.path=vae: config.json cannot be read",
    ),
    (nothing, (*SAMPLE, "gone"), "gone: no such folder"),
    (holds("empty/"), (*SAMPLE, "empty"), "empty: no complete checkpoint"),
    (holds("hub/config.json", "{"), (*SAMPLE, "hub"), "config.json: not JSON"),
    (
        nothing,
        ("sample", "gone.mp4", "--output", "out.mp4", "--checkpoint", "gone"),
        "gone.mp4: No such file or directory",
    ),
    (
        holds("text.mp4", "no video"),
        ("sample", "text.mp4", "--output", "out.mp4", "--checkpoint", "gone"),
        "text.mp4: not a readable video",
    ),
    (
        holds("folder/"),
        ("sample", "folder", "--output", "out", "--checkpoint", "gone"),
        "folder: no video or image in it",
    ),
    (nothing, ("demo", "--checkpoint", "gone", "--port", "70000"), "--port 70000: must be from 1 to 65535"),
]


@pytest.mark.parametrize(("prepare", "argv", "told"), MISTAKES, ids=[told[:30] for *_, told in MISTAKES])
def test_a_mistake_is_one_line(
    prepare: Prepare,
    argv: tuple[str, ...],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if argv[0] == "demo":
        pytest.importorskip("gradio", reason="the page needs Gradio: pip install -e '.[demo]'")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    prepare(tmp_path)
    assert cli.main(argv) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line]
    assert line.startswith("error: ") and told in line


@pytest.mark.parametrize("error", [ValueError("ours"), KeyError("ours"), FileNotFoundError("ours")])
def test_a_fault_below_a_command_is_no_mistake(
    error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from megatron_videogpt.plan import data_report

    def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr(data_report, "print_data_report", broken)
    with pytest.raises(type(error)) as caught:
        cli.main(CHECK)
    assert caught.value is error and caught.traceback[-1].name == "broken"


def test_tools_end_alike(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(UserError("--frame 3: expected\n HEIGHTxWIDTH")) == 2
    assert capsys.readouterr().err == "error: --frame 3: expected HEIGHTxWIDTH\n"
    for fault in (ValueError("ours"), OSError(5, "ours"), KeyError("ours")):
        with pytest.raises(type(fault)) as caught:
            exit_code(fault)
        assert caught.value is fault
    assert capsys.readouterr().err == ""


def test_sampling_settings_are_the_users_and_what_else_the_sampler_refuses_is_ours() -> None:
    import torch

    from megatron_videogpt.config.schema import SampleConfig
    from megatron_videogpt.hub.common.sampling_videogpt import sigmas
    from megatron_videogpt.objective.flow_sampler import sampling

    assert sampling(SampleConfig()).steps == SampleConfig().steps
    with pytest.raises(UserError, match="window=2: clip 1 of 4 frames leaves no room"):
        sampling(SampleConfig(clips=(4,), window=2))
    with pytest.raises(ValueError, match="at least 1 step") as caught:
        sigmas(0, 1.0)
    assert not isinstance(caught.value, UserError) and isinstance(sigmas(2, 1.0), torch.Tensor)
