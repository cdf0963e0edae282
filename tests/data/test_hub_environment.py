"""Exported folders where only torch, transformers and diffusers are installed, in several versions of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import filelock
import pytest
import torch
from packaging.specifiers import SpecifierSet
from safetensors.torch import save_file

from megatron_videogpt.codec.build import build_codec
from megatron_videogpt.codec.options import CodecConfig
from megatron_videogpt.convert import card
from megatron_videogpt.data.video.pictures import to_model_range
from megatron_videogpt.hub.common.sampling_videogpt import Settings, continue_videos
from tests import dense, hub_env
from tests.hub_folder import OFFLOAD, SCRIPT, export
from tests.parallel.launch import REPOSITORY

pytest.importorskip("transformers", reason="the numbers to compare with need transformers (the extra hub)")

from megatron_videogpt.hub.next_clip.denoiser_videogpt import denoiser_of  # noqa: E402
from tests.unit.test_hub import LONG, model_of  # noqa: E402
from tests.unit.test_hub_pipeline import drawn, picture  # noqa: E402

CONSTRAINTS = dict(
    line.split("==") for line in (REPOSITORY / "constraints-cpu.txt").read_text().splitlines() if "==" in line
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder, and a file of what a model and a pipeline loaded from it must give.

    Long RoPE and a foreign `model_type`, as released folders have.
    """
    work = tmp_path_factory.mktemp("exported")
    tiny = dense.Tiny(channels=16, groups=2, long_factor=LONG.long_factor, longest=LONG.longest)
    weights = dense.random_weights(tiny, 1)
    folder = export(work / "folder", tiny, weights, model_type="phi3", architectures=["Phi3ForCausalLM"])
    draw, clips, video = torch.Generator().manual_seed(0), [2, 1], torch.from_numpy(picture(3, 48, 64))
    noisy, clean, t = (
        torch.randn(1, 3, 16, 4, 6, generator=draw),
        torch.randn(1, 2, 16, 4, 6, generator=draw),
        torch.rand(1, 3, generator=draw),
    )
    history = build_codec(CodecConfig()).encode(to_model_range(video.numpy()))[0]
    denoiser, how = denoiser_of(model_of(tiny, weights), cache=False), Settings((2, 1), 80, 3, 3.0)
    latents = continue_videos(denoiser, [history], how, drawn(5))[0]
    given_tensors = {
        "noisy": noisy,
        "clean": clean,
        "t": t,
        "clips": torch.tensor(clips),
        "video": video,
        "latents": latents,
    }
    given_tensors["pred"] = dense.forward(weights, tiny, clips, noisy[0], clean[0], t[0])[None]
    save_file(given_tensors, work / "given.safetensors")
    return folder, work / "given.safetensors"


def run_script(name: str, script: str, exported: tuple[Path, Path], work: Path, *absent: str) -> None:
    """A script of `hub_folder` in an environment of `hub_env`; fails with what it wrote."""
    try:
        python = hub_env.python_of(name)
    except hub_env.Unavailable as reason:
        pytest.skip(str(reason))
    (work / "script.py").write_text(script)
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    env |= {"HF_HOME": str(work / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONNOUSERSITE": "1"}
    command = [str(python), str(work / "script.py"), *map(str, exported), str(work), *absent]
    result = subprocess.run(command, cwd=work, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0 and result.stdout.splitlines()[-1] == "fine", result.stdout + result.stderr
    assert "of type `phi3`" not in result.stderr, result.stderr


@pytest.mark.parametrize("name", ["4.57", "installed", pytest.param("5.0", marks=pytest.mark.long)])
def test_torch_transformers_and_diffusers_suffice(name: str, exported: tuple[Path, Path], tmp_path: Path) -> None:
    """AutoModel, forward, save_pretrained, both ways to the pipeline."""
    run_script(name, SCRIPT, exported, tmp_path, "accelerate", "matplotlib", "av")


def test_the_pipeline_s_parts_move_to_the_device_and_back_with_accelerate(
    exported: tuple[Path, Path], tmp_path: Path
) -> None:
    run_script("accelerate", OFFLOAD, exported, tmp_path)


def test_versions_that_were_tried_are_those_that_the_card_and_the_requirements_name() -> None:
    project = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    pairs = {
        tuple(pins.get(package, CONSTRAINTS[package]) for package in card.RUNS_WITH) for pins in hub_env.PINS.values()
    }
    assert pairs == set(card.TRIED)
    for package, versions in zip(card.RUNS_WITH, zip(*card.TRIED)):
        assert f'"{package}{card.RUNS_WITH[package]}"' in project
        assert all(version in SpecifierSet(card.RUNS_WITH[package]) for version in versions), package


TWO = "import sys; from tests.hub_env import python_of; print(python_of('installed'))"


def test_two_processes_at_once_make_one_environment_and_leave_nothing_half_made(tmp_path: Path) -> None:
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY)}
    started = [
        subprocess.Popen([sys.executable, "-c", TWO], cwd=REPOSITORY, env=env, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    first, second = (process.communicate(timeout=300)[0].strip() for process in started)
    assert first == second and Path(first).is_file() and all(process.returncode == 0 for process in started)
    folder = Path(first).parent.parent
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name, f"{folder.name}.lock"]
    # Versions are part of the name, and what is not needed is not there.
    names = {path.name for path in (folder / "lib").glob("python*/site-packages/*")}
    assert {"torch", "transformers", "diffusers"} <= names and not names & {
        "megatron",
        "accelerate",
        "av",
        "matplotlib",
        "megatron_videogpt",
    }


def test_an_environment_that_was_not_finished_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def fails(packages: list[str], site: Path) -> None:
        site.joinpath("half").write_text("")
        raise hub_env.Unavailable("no index")

    with monkeypatch.context() as patch:
        patch.setattr(hub_env, "_install", fails)
        with pytest.raises(hub_env.Unavailable, match="no index"):
            hub_env.python_of("4.57")
    (lock,) = hub_env.cache_folder().iterdir()
    # As a process that was killed leaves it.
    left = lock.with_name(f"{lock.name.removesuffix('.lock')}.half-killed")
    left.mkdir()
    monkeypatch.setitem(hub_env.PINS, "4.57", {})
    left = left.rename(left.with_name(f"hub-env-{hub_env._digest('4.57')}.half-killed"))
    assert hub_env.python_of("4.57").is_file() and not left.exists()


def test_the_lock_is_not_waited_for_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(hub_env, "SECONDS", 0.2)
    hub_env.cache_folder().mkdir()
    with (
        filelock.FileLock(hub_env.cache_folder() / f"hub-env-{hub_env._digest('installed')}.lock"),
        pytest.raises(filelock.Timeout),
    ):
        hub_env.python_of("installed")
