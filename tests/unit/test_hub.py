"""The stand-alone model against recorded numbers, the dense implementation and the Megatron model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from megatron_videogpt.hub.common.sampling_videogpt import continue_videos
from megatron_videogpt.objective.flow_sampler import sampling
from tests import dense
from tests.hub_folder import released
from tests.hub_folder import settings as fields
from tests.parity.test_dense import build
from tests.unit.test_sampler_recorded import CASES as SAMPLER_CASES
from tests.unit.test_sampler_recorded import Recorded

pytest.importorskip("transformers", reason="the stand-alone model needs transformers (the extra hub)")

from megatron_videogpt.hub.common.configuration_videogpt import VideoGPTConfig  # noqa: E402
from megatron_videogpt.hub.common.layers_videogpt import position_table, rotary_tables  # noqa: E402
from megatron_videogpt.hub.next_clip import modeling_videogpt as modeling  # noqa: E402
from megatron_videogpt.hub.next_clip.denoiser_videogpt import denoiser_of  # noqa: E402
from megatron_videogpt.hub.next_clip.modeling_videogpt import VideoGPTModel  # noqa: E402

LONG = dense.Tiny(long_factor=tuple(1 + 0.3 * i for i in range(8)), longest=131072)
MODELS = {
    "multi-head": dense.Tiny(),
    "grouped-query": dense.Tiny(groups=2),
    "long RoPE": LONG,
    "LayerNorm": dense.Tiny(norm="layer"),
    "GELU by tanh": dense.Tiny(activation="gelu_tanh"),
    "biases": dense.Tiny(biases=True, groups=2),
    "no positions": dense.Tiny(positions="none"),
    "like GPT-2": dense.Tiny(norm="layer", activation="gelu", biases=True, positions="learned", longest=160),
}


def model_of(tiny: dense.Tiny, weights: dict[str, torch.Tensor]) -> VideoGPTModel:
    model = VideoGPTModel(VideoGPTConfig(**fields(tiny))).eval()
    model.load_state_dict(released(weights, tiny))
    return model


def close(ours: torch.Tensor, recorded: torch.Tensor, limit: float) -> None:
    assert ours.shape == recorded.shape
    assert float((ours - recorded).abs().max() / recorded.abs().max()) < limit


@pytest.fixture(scope="module")
def golden(reference: Path) -> VideoGPTModel:
    extra = {
        "patch_size": 2,
        "in_channels": 4,
        "pos_embed_max_size": 32,
        "diffusion_token_id": 5,
        "img_start_token_id": 6,
        "img_end_token_id": 7,
    }
    model = VideoGPTModel(
        VideoGPTConfig(**json.loads((reference / "tiny_mha" / "config.json").read_text()) | extra)
    ).eval()
    model.load_state_dict(load_file(reference / "tiny_mha" / "model.safetensors"))
    return model


@pytest.mark.usefixtures("processes")
@torch.no_grad()
def test_recorded_forward(reference: Path, golden: VideoGPTModel) -> None:
    from megatron_videogpt.objective.recorded import Cases

    cases = Cases(reference, "forward_train")
    assert cases.hint_ids == golden.config.hint_ids
    seen: dict[str, torch.Tensor] = {}
    golden.llm.register_forward_pre_hook(lambda module, inputs: seen.update(inputs_embeds=inputs[0]))
    for number, layer in enumerate(golden.llm.layers):
        layer.register_forward_hook(
            lambda module, inputs, output, number=number: seen.update({f"layer{number}_out": output})
        )
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
    from megatron_videogpt.objective.recorded import Cases

    cases = Cases(reference, "components")
    for case in cases:
        tensors = {key: cases.get(case, key) for key in case["tensors"]}
        if case["name"] == "time":
            close(golden.time_token(tensors["t"]), tensors["time_token"], 2e-5)
            close(golden.t_embedder(tensors["t"]), tensors["t_embedder"], 2e-5)
        elif "latent" in tensors:
            grid = (case["latent_h"] // 2, case["latent_w"] // 2)
            close(golden._patches(golden.x_embedder, tensors["latent"][None], grid)[0], tensors["noisy_tokens"], 2e-5)
            close(
                golden._patches(golden.input_x_embedder, tensors["latent"][None], grid)[0],
                tensors["clean_tokens"],
                2e-5,
            )
            close(
                golden._predict(tensors["final_in"][None], tensors["final_t"][None], grid)[0],
                tensors["final_latent"],
                2e-5,
            )
        elif "position" in tensors:
            scaling = (
                {"type": "su", "long_factor": tensors["long_factor"].tolist(), "short_factor": []}
                if "long_factor" in tensors
                else None
            )
            sizes = {
                key: case[key] for key in ("max_position_embeddings", "original_max_position_embeddings") if key in case
            }
            config = VideoGPTConfig(
                hidden_size=case["head_dim"],
                num_attention_heads=1,
                rope_theta=case["rope_theta"],
                rope_scaling=scaling,
                **sizes,
            )
            for ours, name in zip(rotary_tables(config, tensors["position"], torch.float32), ("cos", "sin")):
                close(torch.cat([ours, ours], dim=-1), tensors[name], 2e-5)
        else:
            table = position_table(case["pos_embed_max_size"], case["hidden_size"]).view(
                case["pos_embed_max_size"], -1, case["hidden_size"]
            )
            assert torch.equal(torch.stack([table[row, column] for row, column in case["row_col"]]), tensors["values"])


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("name", SAMPLER_CASES)
def test_recorded_sampler(reference: Path, golden: VideoGPTModel, name: str, cache: bool) -> None:
    recorded = Recorded(reference, name)
    steps = []
    denoiser = denoiser_of(golden, cache)
    out = continue_videos(
        denoiser,
        [recorded.initial],
        sampling(recorded.settings),
        recorded.noise,
        lambda step: steps.append(step.x1_cond[0]),
    )[0]
    close(out, torch.cat([clip["final"] for clip in recorded.clips]), 5e-4)
    for ours, expected in zip(steps, [x1 for clip in recorded.clips for x1 in clip["x1_cond"]], strict=True):
        close(ours, expected, 5e-4)


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("name", MODELS)
def test_the_megatron_model_predicts_the_same(name: str) -> None:
    from megatron_videogpt.model.patches import unpatchify
    from megatron_videogpt.objective.flow_rows import Sequence, assemble
    from megatron_videogpt.sequence.layout import layout, training_shape

    tiny, clips = MODELS[name], [2, 1, 2]
    weights = dense.random_weights(tiny, seed=len(name))
    draw = torch.Generator().manual_seed(3)
    noisy, clean, t = (
        torch.randn(5, 4, 4, 6, generator=draw),
        torch.randn(3, 4, 4, 6, generator=draw),
        torch.rand(5, generator=draw),
    )
    with torch.no_grad():
        ours = model_of(tiny, weights)(noisy[None], t[None], clean[None], clips).sample[0]
        inputs = assemble(
            [Sequence(layout(training_shape(tuple(clips), (2, 3))), noisy, clean, t, None)], 2, tiny.table, 1
        )
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
def test_cached_equals_uncached(
    grouped, parts: list[int], new: int, batch: int, height: int, width: int, at_once: int, forget: int
) -> None:
    """However the history is cut into passes, and after part of it is forgotten and encoded anew."""
    draw = torch.Generator().manual_seed(sum(parts) + 10 * new)
    shape = (16, 2 * height, 2 * width)
    history, noisy = (
        torch.randn(batch, sum(parts), *shape, generator=draw),
        torch.randn(batch, new, *shape, generator=draw),
    )
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
    assert (
        caches[1].bytes * 2 == caches[0].bytes == 2 * 2 * 2 * 4 * 6 * 16 * 4
    )  # layers, keys and values, heads, frames, tokens, head size, bytes
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
    for key in (
        "x_embedder.proj.weight",
        "final_layer.linear.weight",
        "final_layer.adaLN_modulation.1.weight",
        "time_token.mlp.0.bias",
    ):
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
