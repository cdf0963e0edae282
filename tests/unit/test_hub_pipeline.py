"""The pipeline of an exported folder against the package's own codecs, resizing and sampler; and the folder in a
process without this package.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from megatron_videogpt.codec.build import build_codec
from megatron_videogpt.codec.options import CodecConfig
from megatron_videogpt.data.video.pictures import resize_frames, to_model_range
from megatron_videogpt.hub.common.sampling_videogpt import Noise, Settings, continue_videos
from tests import dense
from tests.data.vae import small_kl
from tests.hub_folder import export

pytest.importorskip("transformers", reason="the stand-alone model needs transformers (the extra hub)")

from megatron_videogpt.hub.common import frames_videogpt as frames_module  # noqa: E402
from megatron_videogpt.hub.common import videos_videogpt as videos_module  # noqa: E402
from megatron_videogpt.hub.next_clip.denoiser_videogpt import denoiser_of  # noqa: E402
from megatron_videogpt.hub.next_clip.modeling_videogpt import VideoGPTModel  # noqa: E402
from megatron_videogpt.hub.next_clip.pipeline_videogpt import VideoGPTPipeline  # noqa: E402
from tests.unit.test_hub import close, model_of  # noqa: E402


@pytest.fixture(scope="module")
def grouped() -> VideoGPTModel:
    tiny = dense.Tiny(channels=16, groups=2)
    return model_of(tiny, dense.random_weights(tiny, 1))


def picture(frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(48, 64), (50, 71), (130, 300), (40, 33), (256, 256)])
def test_pictures_are_resized_as_in_training(size: tuple[int, int]) -> None:
    frames = picture(2, *size)
    assert np.array_equal(videos_module.resize_frames(frames, 64, 16), resize_frames(frames, 64, 16))


def test_what_may_be_a_video() -> None:
    one = picture(2, 16, 32)
    pictures = [Image.fromarray(frame) for frame in one]
    for given_video in (one, torch.from_numpy(one), pictures, list(one), [one], one / 255, torch.from_numpy(one / 255)):
        videos = videos_module.to_videos(given_video)
        assert len(videos) == 1 and np.array_equal(videos[0], one)
    assert [video.shape[0] for video in videos_module.to_videos([one, pictures[0], pictures])] == [2, 1, 2]
    assert len(videos_module.to_videos(np.stack([one, one, one]))) == 3
    for wrong, message in (
        ("a.mp4", "str is not a video"),
        (one.transpose(0, 3, 1, 2), "colours last"),
        (one * 2.0, "floats in"),
        ([], "not a video"),
    ):
        with pytest.raises(ValueError, match=message):
            videos_module.to_videos(wrong)


FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@pytest.mark.parametrize("dtype", [torch.uint8, *FLOATS], ids=str)
def test_every_dtype_and_layout_of_a_video(dtype: torch.dtype) -> None:
    # All 256 values; n / 255 is nearer to itself than to its neighbours even in bfloat16.
    values = torch.arange(2 * 8 * 16 * 3, dtype=torch.int64).remainder(256).to(torch.uint8).view(2, 8, 16, 3)
    pixels = values if dtype == torch.uint8 else (values.double() / 255).to(dtype)
    layouts = [
        (pixels[0], [values[:1]]),
        (pixels, [values]),
        (torch.stack([pixels, pixels.flip(0)]), [values, values.flip(0)]),
    ]
    layouts += [([pixels[0], pixels[1]], [values]), ([pixels, pixels[:1]], [values, values[:1]])]
    layouts += [
        (pixels.transpose(1, 2).contiguous().transpose(1, 2), [values]),
        (pixels.clone().requires_grad_(dtype != torch.uint8), [values]),
    ]
    if dtype != torch.bfloat16:
        layouts += [(pixels.numpy(), [values]), (pixels.numpy()[:, ::-1], [values.flip(1)])]
    for number, (video, expected) in enumerate(layouts):
        found = videos_module.to_videos(video)
        assert len(found) == len(expected) and all(np.array_equal(a, b.numpy()) for a, b in zip(found, expected)), (
            number
        )
        assert all(video.dtype == np.uint8 for video in found)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.bool, *FLOATS], ids=str)
def test_values_outside_of_a_dtype_s_range_are_one_line(dtype: torch.dtype) -> None:
    for value in (2.0, -0.5, float("nan")) if dtype.is_floating_point else (1,):
        with pytest.raises(ValueError, match=r"expected uint8, or floats in \[0, 1\]") as caught:
            videos_module.to_videos(torch.full((1, 4, 4, 3), value, dtype=dtype))
        assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def pipeline(grouped: VideoGPTModel) -> VideoGPTPipeline:
    made = VideoGPTPipeline(grouped, frames_module.TinyVAE(build_codec(CodecConfig()).model))
    made.set_progress_bar_config(disable=True)
    return made


def drawn(seed: int) -> Noise:
    """What a generator with this seed draws, in the sampler's order."""
    generator = torch.Generator().manual_seed(seed)
    return lambda video, clip, purpose, shape: torch.randn(shape, generator=generator)


@pytest.mark.parametrize("clips, history_noise", [((2, 2), 0.1), ((1, 1), 0.0)])
def test_pipeline_is_the_sampler(
    pipeline: VideoGPTPipeline, grouped: VideoGPTModel, clips: tuple[int, ...], history_noise: float
) -> None:
    """Three videos, two of them alike, each with its own generator, against the sampler run on each alone without a
    cache; the window moves, for one shape first.
    """
    videos = [picture(3, 32, 48, 1), picture(2, 32, 64, 2), picture(3, 32, 48, 3)]
    options = {"num_inference_steps": 2, "window": 4, "history_noise": history_noise}
    steps = []
    out = pipeline(
        videos,
        clips=clips,
        **options,
        guidance_schedule=[(0.5, 1.0)],
        generator=[torch.Generator().manual_seed(seed) for seed in (4, 5, 6)],
        output_type="latent",
        callback_on_step_end=lambda pipe, step, t, shown: steps.append((step, t, shown["latents"])),
    ).frames
    for number, frames in enumerate(videos):
        history = build_codec(CodecConfig()).encode(to_model_range(resize_frames(frames, 64, 16)))[0]
        how = Settings(clips, 4, 2, 3.0, ((0.5, 1.0),), history_noise)
        alone = continue_videos(denoiser_of(grouped, cache=False), [history], how, drawn(4 + number))[0]
        close(out[number], alone, 5e-4)
        assert torch.equal(out[number], torch.cat([steps[1][2][number], steps[3][2][number]]))
    assert [(step, t) for step, t, _ in steps] == [(0, 0.0), (1, 0.5), (2, 0.0), (3, 0.5)]


def test_pipeline_outputs(pipeline: VideoGPTPipeline) -> None:
    def run(seed: int = 0, **more):
        return pipeline(
            picture(2, 32, 64), clips=[1], num_inference_steps=2, generator=torch.Generator().manual_seed(seed), **more
        )

    pil, values, tensors = (run(output_type=kind).frames[0] for kind in ("pil", "np", "pt"))
    assert isinstance(pil[0], Image.Image) and pil[0].size == (64, 32)
    assert values.shape == (1, 32, 64, 3) and values.min() >= 0 and values.max() <= 1
    assert np.array_equal(np.asarray(pil[0]), (values[0] * 255).round().astype(np.uint8))
    assert torch.equal(tensors, torch.from_numpy(values).permute(0, 3, 1, 2))
    assert np.array_equal(run(return_dict=False, output_type="np")[0][0], values)
    assert not np.array_equal(run(seed=1, output_type="np").frames[0], values)
    for wrong, message in (
        ({"clips": []}, "at least one clip"),
        ({"clips": [81]}, "window=80: clip 1 of 81 frames leaves no room for itself"),
        (
            {"clips": [80]},
            "window=80: clip 1 of 80 frames leaves no room for a frame of history; use a window of 81 or more",
        ),
        ({"clips": [1, 4], "window": 4}, "window=4: clip 2 of 4 frames leaves no room for a frame of history"),
        ({"cache": False, "cache_offload": True}, "there is no cache"),
        ({"cache": False, "cache_dtype": torch.bfloat16}, "there is no cache"),
        ({"num_inference_steps": 0}, "at least 1 step"),
        ({"history_noise": 1.0}, "history_noise=1.0"),
        ({"output_type": "gif"}, "choose pil, np"),
        ({"guidance_schedule": [(0.5, 1), (0.2, 2)]}, "ascending"),
        ({"generator": [torch.Generator()] * 2}, "2 generators for 1 videos"),
        ({"longest_side": 8}, "raise longest_side"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            pipeline(picture(2, 32, 64), **{"num_inference_steps": 1, "clips": [1], **wrong})
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="no model or no VAE"):
        VideoGPTPipeline()(picture(1, 32, 64))


class Carrier:
    """What accelerate's hook for offloaded models does before `forward`, with "meta" as the accelerator.

    Mixing devices fails there too.
    """

    execution_device = torch.device("meta")

    def __init__(self) -> None:
        self.carried: list[str] = []

    def pre_forward(self, module: torch.nn.Module, *rest: object) -> None:
        self.carried.append(type(module).__name__)
        module.to(self.execution_device)


@pytest.mark.parametrize("options", [{}, {"cache": False}, {"history_noise": 0.1, "window": 4}], ids=str)
def test_offloaded_parts_are_brought_to_the_device_before_they_compute(
    pipeline: VideoGPTPipeline, grouped: VideoGPTModel, options: dict
) -> None:
    model, vae, hook = copy.deepcopy(grouped), copy.deepcopy(pipeline.vae), Carrier()
    model._hf_hook = vae._hf_hook = hook
    offloaded = VideoGPTPipeline(model, vae)
    offloaded.set_progress_bar_config(disable=True)
    out = offloaded(
        picture(2, 32, 64),
        clips=[1, 2],
        num_inference_steps=2,
        output_type="latent",
        generator=torch.Generator(),
        **options,
    )
    assert out.frames[0].device.type == "meta" and out.frames[0].shape == (3, 16, 4, 8)
    assert hook.carried[0] == "TinyVAE" and set(hook.carried[1:]) == {"VideoGPTModel"}
    new = frames_module.decode(vae, out.frames[0][:1], out.frames[0][1:])
    assert new.device.type == "meta" and new.shape == (2, 3, 32, 64)
    assert set(VideoGPTPipeline.model_cpu_offload_seq.split("->")) == set(offloaded.components)


def test_sequential_offload_is_refused_in_one_line(pipeline: VideoGPTPipeline) -> None:
    with pytest.raises(ValueError, match="use enable_model_cpu_offload"):
        pipeline.enable_sequential_cpu_offload()


def test_folders_that_do_not_load(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="snapshot_download"):
        VideoGPTPipeline.from_pretrained(tmp_path)
    tiny, codec = dense.Tiny(), CodecConfig("autoencoder_kl", str(small_kl(tmp_path / "kl")))
    folder = export(tmp_path / "folder", tiny, dense.random_weights(tiny, 0), codec)
    assert json.loads((folder / "model_index.json").read_text())["vae"] == ["diffusers", "AutoencoderKL"]
    assert VideoGPTPipeline.from_pretrained(folder, dtype=torch.bfloat16).model.dtype == torch.bfloat16
    weights = load_file(folder / "model.safetensors")
    weights.pop("llm.norm.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="1 weights are missing, llm.norm.weight"):
        VideoGPTPipeline.from_pretrained(folder)
    save_file({**weights, "llm.norm.weight": torch.zeros(32)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="do not load into the model") as error:
        VideoGPTPipeline.from_pretrained(folder)
    assert "\n" not in str(error.value)
    vae = folder / "vae" / "diffusion_pytorch_model.safetensors"
    whole = vae.read_bytes()
    vae.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="does not load as the AutoencoderKL") as error:
        VideoGPTPipeline.from_pretrained(folder)
    assert "\n" not in str(error.value)
    vae.rename(folder / "vae" / "diffusion_pytorch_model.fp16.safetensors")
    with pytest.raises(ValueError, match=f"no {vae.name} in it.*fp16.safetensors is not read"):
        VideoGPTPipeline.from_pretrained(folder)
    (folder / "vae" / "diffusion_pytorch_model.fp16.safetensors").rename(folder / "vae" / "pickled.bin")
    with pytest.raises(ValueError, match="pickled weights are never loaded"):
        VideoGPTPipeline.from_pretrained(folder)
