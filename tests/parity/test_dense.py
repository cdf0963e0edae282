"""The megatron-core model against the dense implementation in tests/dense.py: forward, loss, every gradient, and
weights after training with AdamW.
"""

from __future__ import annotations

import pytest
import torch

from megatron_videogpt.condition.options import NONE, ConditionConfig
from tests import dense

CASES = {
    "multi-head": (dense.Tiny(), [[2, 3, 1], [1, 1, 1]]),
    "grouped-query": (dense.Tiny(groups=2), [[1, 2]]),
    "single clip": (dense.Tiny(), [[3]]),
    "long RoPE": (dense.Tiny(long_factor=tuple(1 + 0.3 * i for i in range(8)), longest=131072), [[2, 2], [1, 3, 1]]),
    "sixteen channels": (dense.Tiny(channels=16, width=96, heads=2, groups=1, ffn=80), [[1, 1, 2]]),
    "LayerNorm": (dense.Tiny(norm="layer"), [[1, 2], [2]]),
    "GELU": (dense.Tiny(activation="gelu"), [[1, 2], [2]]),
    "GELU by tanh": (dense.Tiny(activation="gelu_tanh"), [[1, 2], [2]]),
    "biases": (dense.Tiny(biases=True, groups=2), [[1, 2], [2]]),
    "learned positions": (dense.Tiny(positions="learned", longest=24), [[1, 2], [2]]),
    "no positions": (dense.Tiny(positions="none"), [[1, 2], [2]]),
    "dropout": (dense.Tiny(dropout=0.3), [[1, 2], [2]]),
    "like GPT-2": (
        dense.Tiny(norm="layer", activation="gelu", biases=True, positions="learned", longest=24, dropout=0.1),
        [[1, 2], [2]],
    ),
}


pytestmark = pytest.mark.usefixtures("processes")


def build(  # type: ignore[no-untyped-def]
    tiny: dense.Tiny,
    weights: dict[str, torch.Tensor],
    recompute: str = "none",
    backend: str = "reference",
    condition: ConditionConfig = NONE,
):
    """(our model with these weights, its configuration)."""
    from megatron_videogpt.config.schema import Config, ModelConfig, ParallelConfig, TrainConfig
    from megatron_videogpt.model.init import load_released
    from megatron_videogpt.objective.build import build_network
    from megatron_videogpt.platforms import activate

    model = ModelConfig(
        num_layers=tiny.layers,
        hidden_size=tiny.width,
        ffn_hidden_size=tiny.ffn,
        num_attention_heads=tiny.heads,
        num_query_groups=tiny.groups,
        position_table_size=tiny.table,
        rope_scaling={"type": "longrope", "long_factor": list(tiny.long_factor), "short_factor": list(tiny.long_factor)}
        if tiny.long_factor
        else {},
        max_position_embeddings=tiny.longest,
        original_max_position_embeddings=tiny.original,
        norm=tiny.norm,
        activation=tiny.activation,
        biases=tiny.biases,
        positions=tiny.positions,
        dropout=tiny.dropout,
    )
    parallel = ParallelConfig(recompute=recompute)
    config = Config(model=model, train=TrainConfig(precision="fp32"), parallel=parallel, condition=condition)
    built = build_network(config, tiny.channels, activate("cpu"), backend)
    load_released(built, model, lambda entry: weights[entry.hf])
    return built, config


@pytest.mark.parametrize("recompute", ["none", "selective", "mlp", "full"])
@pytest.mark.parametrize("name", CASES)
def test_forward_and_gradients(name: str, recompute: str) -> None:
    from megatron_videogpt.model.init import gather_released
    from megatron_videogpt.model.patches import unpatchify
    from megatron_videogpt.objective.flow_rows import Sequence, assemble
    from megatron_videogpt.objective.next_clip.objective import NextClipDiffusion
    from megatron_videogpt.sequence.layout import layout, training_shape

    tiny, batch = CASES[name]
    weights = {key: value.requires_grad_() for key, value in dense.random_weights(tiny, seed=len(name)).items()}
    model, config = build(tiny, weights, recompute, "ranged")
    draw = torch.Generator().manual_seed(7)
    sequences, expected, losses = [], [], []
    for blocks in batch:
        frames, kept = sum(blocks), sum(blocks[:-1])
        noisy, target = (torch.randn(frames, tiny.channels, 4, 6, generator=draw) for _ in range(2))
        clean = torch.randn(kept, tiny.channels, 4, 6, generator=draw)
        # Different timesteps inside a clip: each frame has its own token and modulation.
        t = torch.rand(frames, generator=draw)
        key = 2**62 + 1234567 * len(expected)
        prediction = dense.forward(weights, tiny, blocks, noisy, clean, t, key)
        expected.append(prediction)
        losses += [(prediction - target).square().mean(dim=(1, 2, 3))]
        sequences.append(Sequence(layout(training_shape(tuple(blocks), (2, 3))), noisy, clean, t, target, key=key))
    row = assemble(sequences, 2, tiny.table, 8)
    output = model(row)
    (total, per_frame), count = NextClipDiffusion(2, tiny.table).loss(output, row), row.count
    (total / count).backward()
    torch.cat(losses).mean().backward()

    parts = output.split([item.noisy.shape[0] * 6 for item in sequences])
    for part, prediction in zip(parts, [item.detach() for item in expected]):
        ours = unpatchify(part.detach(), prediction.shape[0], (2, 3), 2)
        assert float((ours - prediction).abs().max() / prediction.abs().max()) < 1e-5
    assert torch.allclose(per_frame, torch.cat(losses), rtol=1e-5)
    assert count == sum(map(sum, batch))
    gradients = gather_released(model, config.model, lambda parameter: parameter.grad)
    assert gradients.keys() == weights.keys()
    for key, ours in gradients.items():
        theirs = weights[key].grad if weights[key].grad is not None else torch.zeros_like(ours)
        scale = max(float(theirs.abs().max()), 1e-12)
        assert float((ours - theirs).abs().max()) / scale < 1e-5 or not theirs.any() and not ours.any(), key


def random_step(tiny: dense.Tiny, batch: list[list[int]], seed: int) -> list[tuple[torch.Tensor, ...]]:
    """Noisy, target and clean latents and timesteps of samples of these clips."""
    draw = torch.Generator().manual_seed(seed)
    samples = []
    for blocks in batch:
        frames, kept = sum(blocks), sum(blocks[:-1])
        noisy, target = (torch.randn(frames, tiny.channels, 4, 6, generator=draw) for _ in range(2))
        samples.append(
            (noisy, target, torch.randn(kept, tiny.channels, 4, 6, generator=draw), torch.rand(frames, generator=draw))
        )
    return samples


@pytest.mark.parametrize("decay", ["matrices", "all"])
def test_five_steps_of_training(decay: str) -> None:
    """The trainer's steps against the dense twin's with torch's AdamW, its clipping and its own idea of what is a
    matrix.
    """
    from dataclasses import replace

    from megatron_videogpt.model.init import gather_released
    from megatron_videogpt.objective.build import build_objective
    from megatron_videogpt.objective.flow_rows import Sequence, assemble
    from megatron_videogpt.sequence.layout import layout, training_shape
    from megatron_videogpt.train.optimizer import build_optimizer, set_learning_rate, wrap
    from megatron_videogpt.train.step import train_step

    tiny, batch = CASES["grouped-query"][0], [[1, 2], [2, 1, 1]]
    weights = {key: value.requires_grad_() for key, value in dense.random_weights(tiny, seed=3).items()}
    model, config = build(tiny, weights, backend="ranged")
    config = replace(
        config,
        optimizer=replace(config.optimizer, weight_decay=0.3, decay=decay, betas=(0.8, 0.9), eps=1e-3, clip_grad=0.5),
    )
    chunks = wrap(config, [model])
    optimizer, objective = build_optimizer(config, chunks), build_objective(config)
    spared = [
        value for name, value in weights.items() if decay == "matrices" and (name.endswith(".bias") or "norm" in name)
    ]
    adam = torch.optim.AdamW(
        [
            {"params": [w for w in weights.values() if all(w is not s for s in spared)], "weight_decay": 0.3},
            {"params": spared, "weight_decay": 0.0},
        ],
        betas=(0.8, 0.9),
        eps=1e-3,
    )
    for step in range(5):
        samples, rate = random_step(tiny, batch, step), 1e-2 / (1 + step)
        adam.zero_grad()
        predictions = [
            dense.forward(weights, tiny, blocks, noisy, clean, t)
            for blocks, (noisy, _, clean, t) in zip(batch, samples)
        ]
        errors = [(ours - target).square().mean(dim=(1, 2, 3)) for ours, (_, target, _, _) in zip(predictions, samples)]
        torch.cat(errors).mean().backward()
        norm = torch.nn.utils.clip_grad_norm_(weights.values(), 0.5)
        for group in adam.param_groups:
            group["lr"] = rate
        adam.step()
        # Each sample is a micro-batch of its own.
        shapes = [training_shape(tuple(blocks), (2, 3)) for blocks in batch]
        rows = [
            assemble([Sequence(layout(shape), noisy, clean, t, target)], 2, tiny.table, 8)
            for shape, (noisy, target, clean, t) in zip(shapes, samples)
        ]
        set_learning_rate(optimizer, rate)
        done = train_step(chunks, optimizer, objective, rows, 0.5)
        assert float(done.norm) == pytest.approx(float(norm), rel=1e-5) and norm > 0.5
    start = dense.random_weights(tiny, seed=3)
    for chunk in chunks:
        chunk.start_param_sync(force_sync=True)
    for key, ours in gather_released(model, config.model, lambda parameter: parameter.data).items():
        theirs = weights[key].detach()
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-5, key
        assert float((theirs - start[key]).norm() / theirs.norm()) > 1e-3, key
