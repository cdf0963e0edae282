"""Parameters, sequence lengths, FLOPs and memory of a configuration, before anything is built.

Parameters are counted from the same table that names and initialises them (`convert.mapping`), so they are exact.  Sequence lengths, attended
pairs and FLOPs are exact for given clips, and exact expectations over the random clip split.  Memory is a rough guide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .schema import CodecConfig, Config, ModelConfig

if TYPE_CHECKING:
    from ..data.codec import CodecGeometry

PUBLISHED_GEOMETRY = {"autoencoder_kl": (4, 8, 1), "autoencoder_kl_wan": (16, 8, 4)}
"""(latent channels, spatial stride, temporal stride) of SDXL's and Wan 2.1's VAE: what a configuration is checked with before its VAE is there."""


def geometry(codec: CodecConfig) -> CodecGeometry:
    """Latent channels and strides of a codec, without loading it; the published ones where its folder is not there yet."""
    # Imported here because only this function needs torch, and reading a configuration should not wait for it.
    from ..data.codec import CodecGeometry, codec_geometry

    if codec.name in PUBLISHED_GEOMETRY and not (codec.path and Path(codec.path).is_dir()):
        return CodecGeometry(*PUBLISHED_GEOMETRY[codec.name])
    return codec_geometry(codec)


def dp_size(config: Config, world_size: int) -> int:
    """Data parallel ranks in a world of `world_size` processes."""
    return world_size // config.parallel.model_size


def stage_layers(config: Config) -> tuple[int, ...]:
    """Decoder layers of each pipeline stage, PP x VPP numbers in order: stage ``vpp_rank * PP + pp_rank``.

    `parallel.pipeline_layers` where it is given.  Otherwise an even spread, in which the layers that are left over go to the middle stages, the later
    ones first: the first and last stage carry the embedding and the head, and earlier ranks hold more micro-batches in flight.
    """
    layout = config.parallel
    if layout.pipeline_layers:
        return layout.pipeline_layers
    each, rest = divmod(config.model.num_layers, layout.stages)
    favoured = [*range(layout.stages - 2, 0, -1), layout.stages - 1, 0][:rest]
    return tuple(each + (stage in favoured) for stage in range(layout.stages))


def frame_side(config: Config) -> int:
    """Longer side of a training frame in pixels."""
    return config.data.physics.size if config.data.source == "physics" else config.data.longest_side


def typical_frame(config: Config) -> tuple[int, int]:
    """(height, width) in pixels: the physics frame, or a 16:9 video after resizing and cropping."""
    if config.data.source == "physics":
        return config.data.physics.size, config.data.physics.size
    multiple, side = config.data.size_multiple, config.data.longest_side
    return side * 9 // 16 // multiple * multiple, side // multiple * multiple


def component_parameters(model: ModelConfig, channels: int) -> dict[str, int]:
    """Component -> number of parameters of the whole model; the fixed position table is not one."""
    from ..convert.mapping import hf_shape, parameters

    counts: dict[str, int] = {}
    for parameter in parameters(model):
        component = component_of(parameter.name)
        counts[component] = counts.get(component, 0) + math.prod(hf_shape(parameter, model, channels))
    return counts


def component_of(name: str) -> str:
    """The part of the model that a parameter belongs to: embedding.noisy_patch, ..., decoder.layers, decoder.final_layernorm, head.linear, ..."""
    return ".".join(name.split(".")[:2])


def rank_parameters(config: Config, channels: int) -> int:
    """Parameters on the rank that holds most: tensor parallel shards, and the largest pipeline stage."""
    from ..convert.mapping import hf_shape, parameters

    model, layout = config.model, config.parallel
    stages = [0] * layout.pipeline
    for parameter in parameters(model):
        part, *rest = parameter.name.split(".")
        layer = rest[0] == "layers"
        stage = int(rest[1]) * layout.pipeline // model.num_layers if layer else 0 if part == "embedding" else layout.pipeline - 1
        shards = layout.tensor if parameter.rule.split is not None else 1
        stages[stage] += math.prod(hf_shape(parameter, model, channels)) // shards
    return max(stages)


@dataclass(frozen=True)
class Work:
    """What one training sequence asks for; expectations when the clip split is random.

    noisy, clean: frames of either kind; patches: per frame (P); pairs: (query, key) pairs that attend.
    """

    noisy: float
    clean: float
    patches: int
    pairs: float

    @property
    def tokens(self) -> float:
        """Tokens of the sequence: P + 2 per frame of either kind."""
        return (self.noisy + self.clean) * (self.patches + 2)


def clip_work(clips: Sequence[int], patches: int) -> Work:
    """The work of a training sequence with these frames per clip (closed form of the mask in DESIGN section 2)."""
    frames = sum(clips)
    return _work(frames, clips[-1], sum(n * n for n in clips), (frames - clips[-1]) ** 2, patches)


def _work(frames: int, last: float, squares: float, kept_squared: float, patches: int) -> Work:
    """last: frames of the last clip; squares: sum of n*n over the clips; kept_squared: square of the frames with a clean copy."""
    block, kept = patches + 2, frames - last
    # A clean frame sees all earlier clean frames (block tokens each way) and itself by roles: 1 + P(P+1) + B pairs.
    clean = block * block * (kept_squared - kept) / 2 + kept * (1 + patches * (patches + 1) + block)
    # A noisy clip of n frames sees its history, and itself by roles: n*n, n*2n and nP*nB pairs.
    noisy = block * block * (frames * frames - squares) / 2 + squares * (3 + patches * block)
    return Work(frames, kept, patches, clean + noisy)


def expected_work(frames: int, clips: tuple[int, int], patches: int) -> Work:
    """Mean work over K uniform in `clips` and K - 1 distinct uniform cut points.

    Every clip of such a split has the same distribution: P(n) = C(N-n-1, K-2) / C(N-1, K-1).
    """
    last = squares = kept_squared = 0.0
    counts = range(clips[0], clips[1] + 1)
    for k in counts:
        for n in range(1, frames - k + 2):
            chance = float(n == frames) if k == 1 else math.comb(frames - n - 1, k - 2) / math.comb(frames - 1, k - 1)
            last += chance * n / len(counts)
            squares += chance * k * n * n / len(counts)
            kept_squared += chance * (frames - n) ** 2 / len(counts)
    return _work(frames, last, squares, kept_squared, patches)


def training_flops(model: ModelConfig, channels: int, tokens: float, pairs: float) -> float:
    """Model FLOPs of one forward and backward pass: 6 per weight and token, 12 per attended pair, attention channel and layer.

    Every token counts the decoder, one patch projection and, as every other token is noisy, half of the output projection; the networks that
    run once per frame are left out (together under 1 %).  Recomputed activations, norms, softmax and the optimizer do not count, as is usual for MFU.
    """
    counts = component_parameters(model, channels)
    weights = counts["decoder.layers"] + counts["embedding.noisy_patch"] + counts["head.linear"] / 2
    return 6 * weights * tokens + 12 * pairs * model.num_attention_heads * model.head_dim * model.num_layers


@dataclass(frozen=True)
class Memory:
    """Bytes on the fullest rank."""

    parameters: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        """All of it; kernels' workspaces and the framework itself come on top."""
        return self.parameters + self.gradients + self.optimizer + self.activations


def rank_memory(config: Config, channels: int, world_size: int, tokens: float) -> Memory:
    """Rough bytes on the fullest rank while training micro-batches of `tokens` tokens.

    Gradients are float32.  bf16 adds a float32 main copy to Adam's two moments; the distributed optimizer shards these three.
    Activations: two residual inputs and two norm outputs per layer, queries, keys, values, the attention output and the feed-forward's three;
    full recompute keeps one input per layer and the rest for one layer only.  The first pipeline stage holds one micro-batch per stage.
    """
    model, layout = config.model, config.parallel
    count, bf16 = rank_parameters(config, channels), config.train.precision == "bf16"
    width = 2 if bf16 else 4
    heads, groups = model.num_attention_heads * model.head_dim, model.kv_heads * model.head_dim
    shards = layout.tensor if layout.sequence else 1
    layer = width * tokens * (4 * model.hidden_size / shards + (2 * heads + 2 * groups + 3 * model.ffn_hidden_size) / layout.tensor)
    kept = width * tokens * model.hidden_size / shards
    layers = model.num_layers // layout.pipeline
    activations = layer + layout.pipeline * layers * kept if layout.recompute == "full" else layout.pipeline * layers * layer
    sharded = dp_size(config, world_size)
    return Memory(width * count, 4 * count, (12 if bf16 else 8) * count / sharded, activations)
