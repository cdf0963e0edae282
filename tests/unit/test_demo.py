"""The demo command and what its button does, without a browser (tests/data/test_demo.py has one): a model that predicts
no motion, a lossless codec.
"""

from __future__ import annotations

import json
import socket
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from megatron_videogpt.__main__ import main
from megatron_videogpt.data.decode import read_frames
from megatron_videogpt.data.sources.physics import render_scene
from megatron_videogpt.data.video.pictures import write_video
from megatron_videogpt.demo import cli, work
from megatron_videogpt.demo.work import Request, continue_one

from ..fakes import CONFIG, fake_model, plain

REQUEST = Request(path=None, scene=("fall", 7), clips=2, frames=3, given=4, interval=2, steps=2, guidance=1.0, seed=0)


def ask(folder, model=None, **changes):
    told = []
    result = continue_one(
        model or fake_model(), replace(REQUEST, **changes), folder, lambda share, text: told.append((share, text))
    )
    return result, told


def test_a_scene_is_continued_by_as_many_frames_as_were_asked_for(tmp_path):
    result, told = ask(tmp_path)
    frames = read_frames(result.video, range(10))
    with pytest.raises(Exception, match="10"):
        read_frames(result.video, range(11))
    true = render_scene(replace(CONFIG.data.physics, scenes=("fall",)), 7, 10, 2)
    # Below a caption of 24 pixels and inside an outline of 4; at the right of the truth where there is some.
    shown = frames[:, 28 : 28 + 256, -260:-4].reshape(10, 32, 8, 32, 8, 3).mean((2, 4))
    assert np.abs(shown[:4] - true[:4]).mean() < 8 and np.abs(shown[4:] - true[3]).mean() < 8, (
        "given frames, then no motion"
    )
    assert Image.open(result.sheet).format == "PNG"
    error = np.square((true[4:].astype(float) - true[3]) / 255).mean()
    assert (
        result.text.startswith("4 frames given, 6 generated in ")
        and f"prediction {-10 * np.log10(error):.2f} dB PSNR" in result.text
    )
    shares = [share for share, _ in told]
    assert shares == sorted(shares) and shares[-1] == pytest.approx(1) and told[-1][1].startswith("6.0 of 6 frames, ")
    report = json.loads(next(result.video.parent.glob("*.json")).read_text())
    assert (
        report["settings"]["clips"] == [3, 3] and report["settings"]["given"] == 4 and report["settings"]["steps"] == 2
    )


def test_a_video_without_a_number_of_given_frames_is_continued_before_its_end_and_an_image_from_one_frame(tmp_path):
    video, image = tmp_path / "in.mp4", tmp_path / "one.png"
    write_video(video, plain(90, 20, 64, 64), 24)
    Image.fromarray(plain(90, 1, 64, 64)[0]).save(image)
    result, _ = ask(tmp_path, path=video, given=0, clips=1)
    assert (
        result.text.startswith("4 frames given, 3 generated") and "against the 3 true frames" in result.text
    )  # of every second of 20, as sample.history says
    result, _ = ask(tmp_path, path=image, clips=1)
    assert result.text.startswith("1 frames given, 3 generated") and "no ground truth" in result.text


def test_what_cannot_be_done_is_one_line_in_the_words_of_the_page(tmp_path):
    text, short, large = tmp_path / "<b>.mp4", tmp_path / "short.mp4", tmp_path / "large.mp4"
    text.write_text("not a video")
    write_video(short, plain(90, 4, 32, 32), 24)
    with open(large, "wb") as file:
        file.truncate(work.LARGEST_MB * 10**6 + 1)
    for changes, message in [
        ({"path": text}, "<b>.mp4: not a readable video"),
        ({"path": large}, "large.mp4: 200.0 MB, more than data.max_video_mb=200"),
        (
            {"path": short},
            "short.mp4: frames given: 4 needs 4 frames, the video has 2 at this interval; use fewer frames "
            "given, or a smaller N",
        ),
        ({"scene": (None, 1)}, "nothing to continue: give a video or an image"),
        ({"scene": ("fall", -1)}, "number of the scene = -1: expected a whole number from 0"),
        ({"clips": None}, "clips = nothing: expected a whole number from 1 to 30"),
        ({"clips": 30, "frames": 17}, "frames per clip = 17: expected a whole number from 1 to 11"),
        ({"clips": 31}, "clips = 31: expected"),
        ({"steps": 1.5}, "steps = 1.5: expected a whole number from 1 to 200"),
        ({"steps": 10**9}, "steps = 1e+09: expected"),
        ({"steps": float("nan")}, "steps = nan: expected"),
        ({"guidance": 99.0}, "guidance = 99: expected a number from 1 to 10"),
        ({"given": 13}, "frames given = 13: expected a whole number from 0 to 12"),
        ({"interval": 0}, "every N-th frame = 0: expected"),
        ({"seed": -1}, "seed = -1: expected"),
    ]:
        with pytest.raises(ValueError) as caught:
            ask(tmp_path, **changes)
        assert message in str(caught.value) and str(tmp_path) not in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="30 clips of 17 frames: at most 480 frames at a time"):
        ask(tmp_path, fake_model(window=80), clips=30, frames=17)


def test_the_page_has_a_field_for_everything_and_errors_are_shown_as_text(tmp_path):
    gr = pytest.importorskip("gradio", reason="the page needs Gradio: pip install -e '.[demo]'")
    from megatron_videogpt.demo import page

    model = fake_model(guidance_schedule=((0.0, 5.0),))
    with gr.Blocks():
        fields = page._fields(model)
    defaults = [field.value for field in fields]
    request = Request(defaults[0], tuple(defaults[1:3]), *defaults[3:])
    expected = Request(
        path=None,
        scene=("fall", 1),
        clips=2,
        frames=3,
        given=0,
        interval=2,
        steps=2,
        guidance=1.0,
        seed=0,
        temperature=1.0,
    )
    assert request == expected, "what the model was configured with, in the fields' order"
    seen = []
    video, text, download, sheet = page.handle(model, tmp_path, tuple(defaults), lambda share, desc: seen.append(desc))
    assert Path(video).is_file() and Path(sheet).is_file() and "6 generated" in text and download.interactive and seen
    hostile = tmp_path / "<img src=x>.mp4"
    hostile.write_text("not a video")
    with pytest.raises(gr.Error) as caught:
        page.handle(model, tmp_path, (str(hostile), *defaults[1:]), lambda share, desc: None)
    assert (
        caught.value.message.startswith("&lt;img src=x&gt;.mp4: not a readable video")
        and not caught.value.print_exception
    )


def test_the_page_s_words_and_guidance_win_over_a_schedule(tmp_path):
    settings, given, interval, seed = work._settings(
        fake_model(guidance_schedule=((0.0, 5.0),)).config, replace(REQUEST, guidance=2.5, seed=9)
    )
    assert (settings.guidance, settings.guidance_schedule, settings.clips, given, interval, seed) == (
        2.5,
        (),
        (3, 3),
        4,
        2,
        9,
    )


def test_command_reports_what_is_missing_in_one_line_before_the_model_is_loaded(monkeypatch, capsys):
    pytest.importorskip("gradio", reason="the page needs Gradio: pip install -e '.[demo]'")

    def lines(*arguments):
        assert main(["demo", "--checkpoint", "nowhere", *arguments]) == 2
        return capsys.readouterr().err.splitlines()

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert lines("--port", port) == [
            f"error: --host 127.0.0.1 --port {port}: cannot listen there (Address already in use); choose "
            "another --port or --host"
        ]
    assert lines("--port", "0") == ["error: --port 0: must be from 1 to 65535"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "demo runs in one process" in lines()[0]
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None)
    assert lines() == ["error: demo needs Gradio, which is not installed: pip install -e '.[demo]'"]


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["demo", "--help"])
    assert ended.value.code == 0 and "demo --checkpoint runs/quickstart" in capsys.readouterr().out
