"""The sample command with a lossless codec and predictions that are known beforehand: what it writes, what it keeps,
what it tells.
"""

from __future__ import annotations

import json
from dataclasses import fields

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from megatron_videogpt.__main__ import main
from megatron_videogpt.config.schema import SampleConfig
from megatron_videogpt.config.schema_data import PhysicsConfig
from megatron_videogpt.data.decode import probe, read_frames
from megatron_videogpt.data.sources.physics import render_scene
from megatron_videogpt.data.video.pictures import to_model_range, write_video
from megatron_videogpt.hub.common.sampling_videogpt import Recompute
from megatron_videogpt.objective.next_clip.sampler import ClipSampler
from megatron_videogpt.sample import cli, compare
from megatron_videogpt.sample.generate import Model, generate
from megatron_videogpt.sample.prompts import Prompt
from tests.fakes import CONFIG, Joining, Unshuffle, fake_model, plain


def noisy(histories, zs, t, conditions):
    """Predicts something that depends on the noise and the history."""
    return [0.5 * z + past[-1:] for past, z in zip(histories, zs)]


def prompt(start, frames=3, height=16, width=24):
    return Prompt(
        f"p{start}", np.concatenate([plain(start + 10 * n, 1, height, width) for n in range(frames)]), None, 12.0
    )


def test_a_prompt_is_continued_the_same_way_alone_and_among_others_and_otherwise_with_another_seed():
    prompts = [prompt(0), prompt(40, 2, 32, 16), prompt(90, 1), prompt(0)]
    model, settings, seen = fake_model(noisy), CONFIG.sample, []
    many = list(generate(model, prompts, settings, 5, lambda frames, tokens: seen.append(frames), batch=3))
    for one, continuation in zip(prompts, many):
        (alone,) = generate(model, [one], settings, 5)
        assert (
            continuation.prompt is one
            and torch.equal(alone.latents, continuation.latents)
            and np.array_equal(alone.frames, continuation.frames)
        )
        assert alone.latents.shape[0] == 5 and alone.frames.shape == (5, *one.condition.shape[1:])
        (other,) = generate(model, [one], settings, 6)
        assert not torch.equal(other.latents, alone.latents)
    assert torch.equal(many[0].latents, many[3].latents)
    assert min(seen) > 0 and sum(seen) == pytest.approx(4 * 5)


def test_the_settings_given_decide_not_those_of_the_model():
    built = []

    def denoiser(settings):
        built.append(settings)
        return ClipSampler(Recompute(noisy))

    model = Model(denoiser, CONFIG, Unshuffle(), torch.device("cpu"))
    settings = SampleConfig(clips=(1, 1), window=4, steps=1, guidance=1.0, cache=False)
    (done,) = generate(model, [prompt(0)], settings, 0)
    assert built == [settings] and len(done.frames) == 2


def test_a_codec_that_joins_frames_decodes_all_at_the_end():
    codec = Joining()
    grey = Prompt("grey", np.concatenate([plain(127, 1), plain(60, 4)]), None, 12.0)
    (done,) = generate(fake_model(codec=codec), [grey], CONFIG.sample, 0)
    assert done.latents.shape[0] == 5 and done.frames.shape[0] == 20 and (done.frames == 60).all()


def sample_command(*arguments):
    return main(["sample", "--checkpoint", "run", *map(str, arguments)])


@pytest.fixture
def model(monkeypatch):
    """The command with a model that predicts no motion."""
    monkeypatch.setattr(cli, "load", lambda source, step, average, *encoder: fake_model())


def ramp(path, frames=20, step=8, side=64):
    write_video(path, np.concatenate([plain(step * n, 1, side, side) for n in range(frames)]), 24)
    return path


def test_command_continues_a_scene(model, tmp_path, capsys):
    output = tmp_path / "new" / "out.v2.mp4"
    assert sample_command("--scene", "fall/7", "--output", output, "--history-noise", "0.0") == 0
    frames = render_scene(PhysicsConfig(size=32, scenes=("fall",)), 7, 9, 2)
    expected = float(np.square((frames[4:].astype(float) - frames[3]) / 255).mean())
    report = json.loads((tmp_path / "new" / "out.v2.json").read_text())
    assert (
        report["settings"]["clips"] == [3, 2]
        and report["settings"]["interval"] == 2
        and report["settings"]["history"] == 4
    )
    assert (
        report["settings"]["cache"] is True
        and report["versions"]["torch"] == torch.__version__
        and report["frames_per_second"] > 0
    )
    assert report["errors"]["mse_model"] == pytest.approx(expected, rel=1e-4) and report["errors"][
        "ratio"
    ] == pytest.approx(1, rel=1e-4)
    assert len(read_frames(output, range(9))) == 9
    assert sorted(path.name for path in output.parent.iterdir()) == ["out.v2.json", "out.v2.mp4", "out.v2.png"]
    text = capsys.readouterr().out
    assert "4 frames given, 5 generated" in text and "ratio 1.000" in text and f"wrote {output}" in text


def test_command_continues_many_inputs_and_goes_on_after_a_bad_one(model, tmp_path, capsys):
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    ramp(folder / "a.mp4"), ramp(folder / "sub" / "a.mp4", 4)
    (folder / "b.mp4").write_text("not a video")
    Image.new("RGB", (64, 32), (0, 0, 200)).save(folder / "c.png")
    out = tmp_path / "out"
    command = (
        folder,
        "--scene",
        "fall/7",
        "--output",
        out,
        "--video",
        tmp_path / "gone.mp4",
        "--formats",
        "mp4,latents",
        "--batch",
        2,
        "--seed",
        3,
    )
    assert sample_command(*command) == 1
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2 and "b.mp4: not a readable video" in errors[0] and "gone.mp4: No such file" in errors[1]
    assert captured.err.splitlines()[-1] == "4 of 6 inputs continued, 2 skipped (named above)"
    assert sorted(path.name for path in out.iterdir()) == sorted(
        f"{name}{end}" for name in ("a", "a_2", "c", "fall_7") for end in (".json", ".mp4", ".safetensors")
    )
    assert captured.out.count("no ground truth") == 2 and captured.out.count("ratio 1.000") == 2
    assert (
        json.loads((out / "c.json").read_text())["errors"] == {}
        and json.loads((out / "a.json").read_text())["settings"]["seed"] == 3
    )
    assert probe(out / "c.mp4").frames == 6 and probe(out / "a.mp4").frames == 9
    with safe_open(out / "c.safetensors", "pt") as file:
        given, new, facts = file.get_tensor("given"), file.get_tensor("generated"), file.metadata()
    assert torch.equal(
        given, Unshuffle().encode(to_model_range(np.asarray(Image.open(folder / "c.png").resize((32, 16)))[None]))[0]
    )
    # Two Euler steps with the right prediction end exactly there.
    assert new.shape == (5, 192, 2, 4) and torch.allclose(new, given.expand_as(new), atol=1e-5)
    assert json.loads(facts["settings"])["clips"] == [3, 2] and facts["input"].endswith("c.png")
    # Again: results are overwritten, and those in the folder are no inputs.
    assert sample_command(folder, "--output", folder / "out", "--formats", "png") == 1
    assert sample_command(folder, "--output", folder / "out", "--formats", "png") == 1
    assert sorted(path.name for path in (folder / "out").glob("*.png")) == ["a.png", "a_2.png", "c.png"]


def test_comparisons_are_told_written_and_averaged(model, tmp_path, capsys, monkeypatch):
    seen = []

    def differences(predicted, truth, lpips):
        """A stand-in for the measures, which have tests of their own: the differences of the frames' means."""
        seen.append((predicted.shape, truth.shape, lpips))
        values = [abs(float(a.mean()) - float(b.mean())) for a, b in zip(predicted, truth)]
        return {
            "frames": len(values),
            "psnr": values,
            "ssim": None,
            "lpips": None,
            "mean": {"psnr": sum(values) / len(values), "ssim": None, "lpips": None},
        }

    monkeypatch.setattr(compare, "compare", differences)
    monkeypatch.setattr(compare, "find_lpips", lambda: (None, "no LPIPS: none here"))
    a, b = ramp(tmp_path / "a.mp4", step=5), ramp(tmp_path / "b.mp4", 10, step=12)
    Image.new("RGB", (32, 32)).save(tmp_path / "c.png")
    command = ("--clips", "2,2", "--interval", 1, "--compare", "--formats", "mp4")
    assert sample_command(a, b, tmp_path / "c.png", "--output", tmp_path / "out", *command) == 0
    text = capsys.readouterr().out
    facts = json.loads((tmp_path / "out" / "metrics.json").read_text())
    # Nothing moves in the prediction: the truth is 1, 2, 3 and 4 steps away.
    assert list(facts["prompts"]) == ["a", "b"] and facts["prompts"]["a"]["psnr"] == pytest.approx(
        [5, 10, 15, 20], abs=2
    )
    assert facts["prompts"]["b"]["mean"]["psnr"] == pytest.approx(30, abs=2) and facts["mean"] == {
        "psnr": pytest.approx((facts["prompts"]["a"]["mean"]["psnr"] + facts["prompts"]["b"]["mean"]["psnr"]) / 2),
        "ssim": None,
        "lpips": None,
    }
    assert (
        text.startswith("no LPIPS: none here\n")
        and text.count("nothing to compare with") == 1
        and text.count("(mean of 4 frames)") == 2
    )
    assert (
        f"mean of 2 prompts: PSNR {facts['mean']['psnr']:.2f} dB\n" in text
        and (tmp_path / "out" / "metrics.png").is_file()
    )
    assert {(first[0], second[0]) for first, second, _ in seen} == {(4, 4)}
    assert sample_command(a, "--output", tmp_path / "x.y.mp4", *command) == 0
    assert json.loads((tmp_path / "x.y.metrics.json").read_text())["prompts"] == {"a": facts["prompts"]["a"]}
    assert sample_command(tmp_path / "c.png", "--output", tmp_path / "c.mp4", *command) == 0
    assert not (tmp_path / "c.metrics.json").exists() and "no metrics: none of the inputs" in capsys.readouterr().out


def test_inputs_may_stand_between_options(model, tmp_path):
    a, b = ramp(tmp_path / "a.mp4", 6), ramp(tmp_path / "b.mp4", 6)
    assert (
        sample_command(a, "--clips", "1x2,1", b, "--output", tmp_path / "out", "--formats", "latents", "--interval", 1)
        == 0
    )
    assert json.loads((tmp_path / "out" / "b.json").read_text())["settings"]["clips"] == [1, 1, 1]


def test_help_names_every_setting_of_the_configuration(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["sample", "--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0 and text.count("python -m megatron_videogpt sample") >= 4
    names = {field.name for field in fields(SampleConfig)} - {"cache"} | {"no_cache"}
    assert all(f"--{name.replace('_', '-')} " in text or f"--{name.replace('_', '-')}\n" in text for name in names)


def test_command_reports_the_mistakes_of_a_user_in_one_line_each(model, tmp_path, capsys):
    broken, short, fine = tmp_path / "text.mp4", tmp_path / "short.mp4", ramp(tmp_path / "fine.mp4", 6)
    broken.write_text("not a video")
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty").mkdir(), (tmp_path / "folder.mp4").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "metrics.png")
    (tmp_path / "fine").write_text("")
    write_video(short, plain(90, 4, 32, 32), 24)
    scene = ("--scene", "fall/1", "--output", tmp_path / "out.mp4")
    for arguments, message in [
        (("--video", tmp_path / "none.mp4", "--output", "o.mp4"), "none.mp4: No such file"),
        ((broken, "--output", "o.mp4"), "text.mp4: not a readable video"),
        ((tmp_path / "text.png", "--output", "o.mp4"), "text.png: not a readable image"),
        ((tmp_path / "empty", "--output", "o"), "empty: no video or image in it"),
        ((fine, "--output", fine), "would overwrite the input"),
        ((tmp_path, "--output", tmp_path), "would overwrite the input"),
        ((fine, "--output", broken / ".." / "text.png"), "must end in .mp4 or be a folder"),
        ((fine, short, "--output", "o.mp4"), "--output o.mp4: must be a folder for 2 inputs"),
        (("--output", "o.mp4"), "nothing to continue"),
        (
            (tmp_path / "metrics.png", "--output", tmp_path, "--formats", "mp4", "--compare"),
            "would overwrite the input",
        ),
        ((fine, "--output", fine.with_suffix("")), "is a file; expected a folder"),
        ((fine, "--output", tmp_path / "folder.mp4"), "is a folder; expected an mp4"),
        (("--scene", "fall/1", "--output", "o.avi"), "--output o.avi: must end in .mp4"),
        ((*scene, "--steps", 0), "sample.steps = 0: must be at least 1"),
        ((*scene, "--window", 2), "sample.window = 2: must hold a frame of history beside the longest clip"),
        ((*scene, "--window", 3), "beside the longest clip of sample.clips, 3 frames; use 4 or more, or shorter clips"),
        (
            (*scene, "--clips", "2,12"),
            "sample.window = 12: must hold a frame of history beside the longest clip of sample.clips, 12 frames",
        ),
        ((*scene, "--interval", 0), "--interval 0: must be at least 1"),
        ((*scene, "--history", 0), "--history 0: must be at least 1"),
        ((*scene, "--batch", 0), "--batch 0: must be at least 1"),
        ((*scene, "--guidance-schedule", "0.8:1,0.2:3"), "sample.guidance_schedule = "),
        ((short, "--output", "o.mp4", "--history", 3), "--history 3 needs 3 frames, the video has 2"),
    ]:
        assert sample_command(*arguments) == 2, arguments
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
        assert len(lines) == 1 and message in lines[0], (arguments, lines)
    assert sample_command(*scene, "--steps", 0, "--interval", 0) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 2, "all problems at once"


@pytest.mark.parametrize(
    "arguments",
    [
        ("--clips", "8,x"),
        ("--clips", "8x0"),
        ("--scene", "dance/1"),
        ("--scene", "fall"),
        ("--formats", "mp4,avi"),
        ("--guidance-schedule", "3"),
    ],
)
def test_command_line_that_cannot_be_parsed_ends_with_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        sample_command("in.mp4", "--output", "o.mp4", *arguments)
    assert ended.value.code == 2
