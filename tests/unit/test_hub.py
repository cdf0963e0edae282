"""The stand-alone model and its pipeline against recorded numbers, the dense implementation, the Megatron model, and the package's own codecs and sampler."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from megatron_videogpt.config.schema import CodecConfig
from megatron_videogpt.data.codec import build_codec
from megatron_videogpt.data.decode import resize_frames, to_model_range
from megatron_videogpt.hub.sampling_videogpt import Noise, Settings, continue_videos
from megatron_videogpt.sample.settings import sampling
from tests import dense
from tests.data.vae import small_kl
from tests.hub_folder import SCRIPT, export, released
from tests.hub_folder import settings as fields
from tests.parity.test_dense import build
from tests.unit.test_sampler import CASES as SAMPLER_CASES
from tests.unit.test_sampler import Recorded

pytest.importorskip("transformers", reason="the stand-alone model needs transformers (the extra hub)")

from megatron_videogpt.hub import frames_videogpt as frames_module  # noqa: E402
from megatron_videogpt.hub import modeling_videogpt as modeling  # noqa: E402
from megatron_videogpt.hub.configuration_videogpt import VideoGPTConfig  # noqa: E402
from megatron_videogpt.hub.denoiser_videogpt import denoiser_of  # noqa: E402
from megatron_videogpt.hub.layers_videogpt import position_table, rotary_tables  # noqa: E402
from megatron_videogpt.hub.modeling_videogpt import VideoGPTModel  # noqa: E402
from megatron_videogpt.hub.pipeline_videogpt import VideoGPTPipeline  # noqa: E402

LONG = dense.Tiny(long_factor=tuple(1 + 0.3 * i for i in range(8)), longest=131072)
MODELS = {"multi-head": dense.Tiny(), "grouped-query": dense.Tiny(groups=2), "long RoPE": LONG}


def model_of(tiny: dense.Tiny, weights: dict[str, torch.Tensor]) -> VideoGPTModel:
    model = VideoGPTModel(VideoGPTConfig(**fields(tiny))).eval()
    model.load_state_dict(released(weights, tiny))
    return model


def close(ours: torch.Tensor, recorded: torch.Tensor, limit: float) -> None:
    assert ours.shape == recorded.shape
    assert float((ours - recorded).abs().max() / recorded.abs().max()) < limit


@pytest.fixture(scope="module")
def golden(reference: Path) -> VideoGPTModel:
    extra = {"patch_size": 2, "in_channels": 4, "pos_embed_max_size": 32, "diffusion_token_id": 5, "img_start_token_id": 6, "img_end_token_id": 7}
    model = VideoGPTModel(VideoGPTConfig(**json.loads((reference / "tiny_mha" / "config.json").read_text()) | extra)).eval()
    model.load_state_dict(load_file(reference / "tiny_mha" / "model.safetensors"))
    return model


@pytest.mark.usefixtures("processes")
@torch.no_grad()
def test_recorded_forward(reference: Path, golden: VideoGPTModel) -> None:
    from megatron_videogpt.convert.parity import Cases

    cases = Cases(reference, "forward_train")
    assert cases.hint_ids == golden.config.hint_ids
    seen: dict[str, torch.Tensor] = {}
    golden.llm.register_forward_pre_hook(lambda module, inputs: seen.update(inputs_embeds=inputs[0]))
    for number, layer in enumerate(golden.llm.layers):
        layer.register_forward_hook(lambda module, inputs, output, number=number: seen.update({f"layer{number}_out": output}))
    golden.llm.norm.register_forward_hook(lambda module, inputs, output: seen.update(final_norm_out=output))
    compared = 0
    for case in cases:
        for b, sample in enumerate(case["samples"]):
            noisy, clean, t = (cases.get(sample, name)[None] for name in ("noisy", "clean", "t"))
            close(golden(noisy, t, clean, sample["frame_blocks"]).sample[0], cases.get(sample, "pred"), 2e-5)
            for name, entry in (case.get("intermediates") or {}).items():
                close(seen[name][0], cases.tensors[entry["key"]][b, case["pad_len"][b] :], 2e-5)
                compared += 1
    assert compared


@pytest.mark.usefixtures("processes")
@torch.no_grad()
def test_recorded_components(reference: Path, golden: VideoGPTModel) -> None:
    from megatron_videogpt.convert.parity import Cases

    cases = Cases(reference, "components")
    for case in cases:
        tensors = {key: cases.get(case, key) for key in case["tensors"]}
        if case["name"] == "time":
            close(golden.time_token(tensors["t"]), tensors["time_token"], 2e-5)
            close(golden.t_embedder(tensors["t"]), tensors["t_embedder"], 2e-5)
        elif "latent" in tensors:
            grid = (case["latent_h"] // 2, case["latent_w"] // 2)
            close(golden._patches(golden.x_embedder, tensors["latent"][None], grid)[0], tensors["noisy_tokens"], 2e-5)
            close(golden._patches(golden.input_x_embedder, tensors["latent"][None], grid)[0], tensors["clean_tokens"], 2e-5)
            close(golden._predict(tensors["final_in"][None], tensors["final_t"][None], grid)[0], tensors["final_latent"], 2e-5)
        elif "position" in tensors:
            scaling = {"type": "su", "long_factor": tensors["long_factor"].tolist(), "short_factor": []} if "long_factor" in tensors else None
            sizes = {key: case[key] for key in ("max_position_embeddings", "original_max_position_embeddings") if key in case}
            config = VideoGPTConfig(hidden_size=case["head_dim"], num_attention_heads=1, rope_theta=case["rope_theta"], rope_scaling=scaling, **sizes)
            for ours, name in zip(rotary_tables(config, tensors["position"], torch.float32), ("cos", "sin")):
                close(torch.cat([ours, ours], dim=-1), tensors[name], 2e-5)
        else:
            table = position_table(case["pos_embed_max_size"], case["hidden_size"]).view(case["pos_embed_max_size"], -1, case["hidden_size"])
            assert torch.equal(torch.stack([table[row, column] for row, column in case["row_col"]]), tensors["values"])


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("name", SAMPLER_CASES)
def test_recorded_sampler(reference: Path, golden: VideoGPTModel, name: str, cache: bool) -> None:
    recorded = Recorded(reference, name)
    steps = []
    denoiser = denoiser_of(golden, cache)
    out = continue_videos(denoiser, [recorded.initial], sampling(recorded.settings), recorded.noise, lambda step: steps.append(step.x1_cond[0]))[0]
    close(out, torch.cat([clip["final"] for clip in recorded.clips]), 5e-4)
    for ours, expected in zip(steps, [x1 for clip in recorded.clips for x1 in clip["x1_cond"]], strict=True):
        close(ours, expected, 5e-4)


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("name", MODELS)
def test_the_megatron_model_predicts_the_same(name: str) -> None:
    from megatron_videogpt.objective.next_clip import Sequence, assemble, unpatchify
    from megatron_videogpt.sequence.layout import layout, training_shape

    tiny, clips = MODELS[name], [2, 1, 2]
    weights = dense.random_weights(tiny, seed=len(name))
    draw = torch.Generator().manual_seed(3)
    noisy, clean, t = torch.randn(5, 4, 4, 6, generator=draw), torch.randn(3, 4, 4, 6, generator=draw), torch.rand(5, generator=draw)
    with torch.no_grad():
        ours = model_of(tiny, weights)(noisy[None], t[None], clean[None], clips).sample[0]
        inputs = assemble([Sequence(layout(training_shape(tuple(clips), (2, 3))), noisy, clean, t, None)], 2, tiny.table, 1)
        close(ours, unpatchify(build(tiny, weights)[0](inputs), 5, (2, 3), 2), 2e-5)
        close(ours, dense.forward(weights, tiny, clips, noisy, clean, t), 2e-5)


@pytest.fixture(scope="module")
def grouped() -> VideoGPTModel:
    tiny = dense.Tiny(channels=16, groups=2)
    return model_of(tiny, dense.random_weights(tiny, 1))


@settings(max_examples=20, deadline=None)
@given(
    parts=st.lists(st.integers(1, 3), max_size=3),
    new=st.integers(1, 3),
    batch=st.integers(1, 2),
    height=st.integers(1, 3),
    width=st.integers(1, 3),
    at_once=st.integers(1, 40),
    forget=st.integers(0, 3),
)
def test_cached_equals_uncached(grouped, parts: list[int], new: int, batch: int, height: int, width: int, at_once: int, forget: int) -> None:
    """However the history is cut into passes, and after part of it is forgotten and encoded anew."""
    draw = torch.Generator().manual_seed(sum(parts) + 10 * new)
    shape = (16, 2 * height, 2 * width)
    history, noisy = torch.randn(batch, sum(parts), *shape, generator=draw), torch.randn(batch, new, *shape, generator=draw)
    t = torch.rand(batch, new, generator=draw)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(modeling, "ENCODED_AT_ONCE", at_once)
        cache = grouped.new_cache()
        for part in history.split(parts, dim=1) if parts else ():
            grouped.encode_clean(part, cache)
        kept = max(0, sum(parts) - forget)
        cache.truncate(kept)
        if sum(parts) > kept:
            grouped.encode_clean(history[:, kept:], cache)
        assert cache.frames == sum(parts)
        close(grouped.denoise(noisy, t, cache), grouped.recompute(noisy, t, history), 5e-5)


@torch.no_grad()
def test_dtype_and_place_of_the_cache(grouped: VideoGPTModel) -> None:
    draw = torch.Generator().manual_seed(0)
    history, noisy = torch.randn(1, 4, 16, 4, 4, generator=draw), torch.randn(1, 2, 16, 4, 4, generator=draw)
    caches = [grouped.new_cache(), grouped.new_cache(torch.bfloat16), grouped.new_cache(offload=True)]
    for cache in caches:
        grouped.encode_clean(history, cache)
    plain, half, offloaded = (grouped.denoise(noisy, 0.5, cache) for cache in caches)
    assert caches[1].bytes * 2 == caches[0].bytes == 2 * 2 * 2 * 4 * 6 * 16 * 4  # layers, keys and values, heads, frames, tokens, head size, bytes
    assert torch.equal(plain, offloaded)
    assert 0 < float((plain - half).abs().max() / plain.abs().max()) < 0.05
    with pytest.raises(ValueError, match="a cache of 1 videos"):
        grouped.denoise(torch.cat([noisy, noisy]), 0.5, caches[0])


def test_bfloat16_keeps_rotary_frequencies() -> None:
    """Rounded to bfloat16, frequencies would be off by whole turns at the released model's positions."""
    config, positions = VideoGPTConfig(**fields(LONG)), torch.tensor([17_000, 32_000])
    expected = dense.rotate(torch.cat([torch.ones(1, 2, 8), torch.zeros(1, 2, 8)], dim=-1), positions, LONG)[0]
    for ours, wanted in zip(rotary_tables(config, positions, torch.bfloat16), expected.chunk(2, dim=-1)):
        assert float((ours.float() - wanted).abs().max()) < 0.02
    model = model_of(LONG, dense.random_weights(LONG, 2)).to(torch.bfloat16)
    assert not any("freq" in name for name, _ in model.named_buffers())


def test_a_new_model_starts_as_a_run_does() -> None:
    model = VideoGPTModel(VideoGPTConfig(**fields(dense.Tiny())))
    weights = model.state_dict()
    assert torch.equal(weights["pos_embed"], released(dense.random_weights(dense.Tiny(), 0), dense.Tiny())["pos_embed"])
    for key in ("x_embedder.proj.weight", "final_layer.linear.weight", "final_layer.adaLN_modulation.1.weight", "time_token.mlp.0.bias"):
        assert not weights[key].any(), key
    assert abs(float(weights["llm.layers.0.mlp.gate_up_proj.weight"].std()) - 0.02) < 1e-3
    assert 0.5 < float(weights["input_x_embedder.proj.weight"].abs().max()) / (6 / (64 + 16)) ** 0.5 <= 1


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"diffusion_token_id": None}, "diffusion_token_id"),
        ({"img_end_token_id": 6}, "from 0 to 5"),
        ({"num_key_value_heads": 3}, "num_key_value_heads=3"),
        ({"rope_scaling": {"type": "yarn"}}, "yarn"),
        ({"rope_scaling": {"type": "su", "long_factor": [1.0]}}, "expected 8"),
    ],
)
def test_wrong_settings(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        VideoGPTModel(VideoGPTConfig(**fields(dense.Tiny()) | wrong))
    assert "\n" not in str(error.value)


def test_wrong_inputs(grouped: VideoGPTModel) -> None:
    noisy, t = torch.zeros(1, 3, 16, 4, 4), torch.zeros(1, 3)
    for arguments, message in (
        ((noisy, t, noisy[:, :1], [2, 1]), "must add up"),
        ((noisy, t[:, :2], noisy[:, :2], [2, 1]), "timesteps"),
        ((noisy[:, :, :4], t, noisy[:, :2, :4], [2, 1]), "multiples of 2"),
        ((noisy[..., :3], t, noisy[:, :2, :, :, :3], [2, 1]), "multiples of 2"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            grouped(*arguments)
        assert "\n" not in str(error.value)


def picture(frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(48, 64), (50, 71), (130, 300), (40, 33), (256, 256)])
def test_pictures_are_resized_as_in_training(size: tuple[int, int]) -> None:
    frames = picture(2, *size)
    assert np.array_equal(frames_module.resize_frames(frames, 64, 16), resize_frames(frames, 64, 16))


def test_what_may_be_a_video() -> None:
    one = picture(2, 16, 32)
    pictures = [Image.fromarray(frame) for frame in one]
    for given_video in (one, torch.from_numpy(one), pictures, list(one), [one], one / 255, torch.from_numpy(one / 255)):
        videos = frames_module.to_videos(given_video)
        assert len(videos) == 1 and np.array_equal(videos[0], one)
    assert [video.shape[0] for video in frames_module.to_videos([one, pictures[0], pictures])] == [2, 1, 2]
    assert len(frames_module.to_videos(np.stack([one, one, one]))) == 3
    for wrong, message in (("a.mp4", "str is not a video"), (one.transpose(0, 3, 1, 2), "colours last"), (one * 2.0, "floats in"), ([], "not a video")):
        with pytest.raises(ValueError, match=message):
            frames_module.to_videos(wrong)


def test_vaes_agree_with_training(tmp_path: Path) -> None:
    from diffusers import AutoencoderKLWan

    wan = {"base_dim": 8, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1, "latents_mean": [0.1, -0.2, 0.3, 0.4], "latents_std": [0.5, 1.5, 2.0, 1.0]}
    torch.manual_seed(0)
    AutoencoderKLWan(**wan).save_pretrained(tmp_path / "wan")
    for name, path in (("tiny", ""), ("autoencoder_kl", str(small_kl(tmp_path / "kl"))), ("autoencoder_kl_wan", str(tmp_path / "wan"))):
        config = CodecConfig(name=name, path=path)
        codec, folder = build_codec(config), export(tmp_path / f"{name}_folder", dense.Tiny(), dense.random_weights(dense.Tiny(), 0), config)
        vae = frames_module.TinyVAE(codec.model) if name == "tiny" else frames_module.load_vae(folder / "vae", None)
        assert frames_module.pixel_multiple(vae, 2) == 2 * codec.spatial_stride
        frames = picture(9, 32, 48)
        latents = codec.encode(to_model_range(frames))[0]
        close(frames_module.encode(vae, frames), latents, 1e-5)
        close(frames_module.decode(vae, latents[:1], latents[1:]) * 2 - 1, codec.decode(latents)[1:], 1e-5)


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
def test_pipeline_is_the_sampler(pipeline: VideoGPTPipeline, grouped: VideoGPTModel, clips: tuple[int, ...], history_noise: float) -> None:
    """Three videos, two of them alike, each with its own generator, against the sampler run on each alone without a cache; the window moves, for
    one shape first."""
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
        return pipeline(picture(2, 32, 64), clips=[1], num_inference_steps=2, generator=torch.Generator().manual_seed(seed), **more)

    pil, values, tensors = (run(output_type=kind).frames[0] for kind in ("pil", "np", "pt"))
    assert isinstance(pil[0], Image.Image) and pil[0].size == (64, 32)
    assert values.shape == (1, 32, 64, 3) and values.min() >= 0 and values.max() <= 1
    assert np.array_equal(np.asarray(pil[0]), (values[0] * 255).round().astype(np.uint8))
    assert torch.equal(tensors, torch.from_numpy(values).permute(0, 3, 1, 2))
    assert np.array_equal(run(return_dict=False, output_type="np")[0][0], values)
    assert not np.array_equal(run(seed=1, output_type="np").frames[0], values)
    for wrong, message in (
        ({"clips": []}, "at least one clip"),
        ({"clips": [81]}, "window=80"),
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
    (folder / "vae" / "diffusion_pytorch_model.safetensors").rename(folder / "vae" / "pickled.bin")
    with pytest.raises(ValueError, match="pickled weights are never loaded"):
        VideoGPTPipeline.from_pretrained(folder)


def prepare(work: Path) -> Path:
    """A folder, and beside it what a model and a pipeline loaded from it must give; long RoPE and a foreign `model_type`, as released folders have."""
    tiny = dense.Tiny(channels=16, groups=2, long_factor=LONG.long_factor, longest=LONG.longest)
    weights = dense.random_weights(tiny, 1)
    folder = export(work / "folder", tiny, weights, model_type="phi3", architectures=["Phi3ForCausalLM"])
    draw, clips, video = torch.Generator().manual_seed(0), [2, 1], torch.from_numpy(picture(3, 48, 64))
    noisy, clean, t = torch.randn(1, 3, 16, 4, 6, generator=draw), torch.randn(1, 2, 16, 4, 6, generator=draw), torch.rand(1, 3, generator=draw)
    history = build_codec(CodecConfig()).encode(to_model_range(video.numpy()))[0]
    denoiser, how = denoiser_of(model_of(tiny, weights), cache=False), Settings((2, 1), 80, 3, 3.0)
    latents = continue_videos(denoiser, [history], how, drawn(5))[0]
    given_tensors = {"noisy": noisy, "clean": clean, "t": t, "clips": torch.tensor(clips), "video": video, "latents": latents}
    given_tensors["pred"] = dense.forward(weights, tiny, clips, noisy[0], clean[0], t[0])[None]
    save_file(given_tensors, work / "given.safetensors")
    return folder


def run_script(python: str, folder: Path, work: Path, block: bool, **environment: str) -> str:
    """The script's last line; fails with what it wrote."""
    (work / "script.py").write_text(SCRIPT)
    command = [python, str(work / "script.py"), str(folder), str(work), "block" if block else "free"]
    env = {**os.environ, "HF_HOME": str(work / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment}
    result = subprocess.run(command, cwd=work, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "of type `phi3`" not in result.stderr, result.stderr
    return result.stdout.splitlines()[-1]


def test_a_user_without_megatron(tmp_path: Path) -> None:
    """AutoModel, forward, save_pretrained and the pipeline in a process where neither megatron-core nor this package can be imported."""
    assert run_script(sys.executable, prepare(tmp_path), tmp_path, block=True) == "fine"
