"""Parameters, sequence lengths and FLOPs of a configuration, before anything is built; `memory`, `communication` and `planner` go on from here.

Parameters are counted from the same table that names and initialises them (`model.parameters`), so they are exact.  Sequence lengths, attended
pairs and FLOPs are exact for given clips, and exact expectations over the random clip split.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from ..codec.geometry import expected_geometry
from ..config.derived import dp_size, frame_side, recomputed_layers, scores_rows_only, stage_layers, typical_frame
from ..config.schema import CodecConfig, Config, ModelConfig
from ..model.parameters import hf_shape, parameters


def component_parameters(model: ModelConfig, channels: int) -> dict[str, int]:
    """Component -> number of parameters of the whole model; the fixed position table is not one."""
    counts: dict[str, int] = {}
    for parameter in parameters(model):
        component = component_of(parameter.name)
        counts[component] = counts.get(component, 0) + math.prod(hf_shape(parameter, model, channels))
    return counts


def component_of(name: str) -> str:
    """The part of the model that a parameter belongs to: embedding.noisy_patch, ..., decoder.layers, decoder.final_layernorm, head.linear, ..."""
    return ".".join(name.split(".")[:2])


def pipeline_parameters(config: Config, channels: int) -> tuple[int, ...]:
    """Parameters held by each pipeline rank: tensor parallel shards of the layers of its stages, and the embedding or the head at the ends."""
    model, layout = config.model, config.parallel
    layer, first, last = _sharded_parameters(model, channels, layout.tensor)
    counts = [0] * layout.pipeline
    for stage, layers in enumerate(stage_layers(config)):
        counts[stage % layout.pipeline] += layers * layer
    counts[0] += first
    counts[-1] += last
    return tuple(counts)


def _sharded_parameters(model: ModelConfig, channels: int, tensor: int) -> tuple[int, int, int]:
    """Parameters on one of `tensor` ranks of: a layer, what comes before the layers, what comes after them."""
    return _shapes(model.hidden_size, model.ffn_hidden_size, model.num_attention_heads, model.num_query_groups, model.patch_size, channels, tensor)


# A planner asks for the same few shapes thousands of times.
@lru_cache(maxsize=256)
def _shapes(width: int, inner: int, heads: int, groups: int, patch: int, channels: int, tensor: int) -> tuple[int, int, int]:
    model = ModelConfig(num_layers=1, hidden_size=width, ffn_hidden_size=inner, num_attention_heads=heads, num_query_groups=groups, patch_size=patch)
    layer = first = last = 0
    for parameter in parameters(model):
        count = math.prod(hf_shape(parameter, model, channels)) // (tensor if parameter.rule.split is not None else 1)
        if ".layers." in parameter.name:
            layer += count
        elif parameter.name.startswith("embedding."):
            first += count
        else:
            last += count
    return layer, first, last


def layer_parameters(model: ModelConfig, channels: int) -> int:
    """Parameters of one decoder layer."""
    return _sharded_parameters(model, channels, 1)[0]


def rank_parameters(config: Config, channels: int) -> int:
    """Parameters on the rank that holds most."""
    return max(pipeline_parameters(config, channels))


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
    """The work of a training sequence with these frames per clip (closed form of the mask)."""
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


def longest_work(frames: int, clips: tuple[int, int], patches: int) -> Work:
    """The longest sequence that the split can give: a last clip of one frame (of all frames where there is one clip only)."""
    return clip_work((frames - 1, 1) if clips[1] > 1 else (frames,), patches)


def patches_of(config: Config, frame: tuple[int, int]) -> int:
    """Patches of a frame of (height, width) pixels."""
    cell = expected_geometry(config.codec).spatial_stride * config.model.patch_size
    return (frame[0] // cell) * (frame[1] // cell)


def longest_row(config: Config, frame: tuple[int, int] | None = None) -> Work:
    """The longest micro-batch that a run can meet: `micro_batch_size` samples of the longest split, of `frame` pixels (None: square frames); with
    `data.pack_tokens` a full row of them."""
    one = longest_work(config.data.frames, config.data.clips, patches_of(config, frame or (frame_side(config),) * 2))
    return packed(one, config.data.pack_tokens / one.tokens if config.data.pack_tokens else config.train.micro_batch_size)


def mean_row(config: Config, world_size: int, work: Work) -> Work:
    """A mean micro-batch of samples of this mean work."""
    if not config.data.pack_tokens:
        return packed(work, config.train.micro_batch_size)
    return packed(work, config.train.global_batch_size / dp_size(config, world_size) / packed_rows(config, world_size))


def packed_rows(config: Config, world_size: int) -> int:
    """Micro-batches of one data parallel rank in a step with `data.pack_tokens`, for samples of mean length and typical frames."""
    layout, tokens = config.parallel, _typical_tokens(config.codec, config.model.patch_size, typical_frame(config), config.data.frames, config.data.clips)
    rows = math.ceil(config.train.global_batch_size / dp_size(config, world_size) * tokens / config.data.pack_tokens)
    step = layout.pipeline if layout.virtual_pipeline > 1 else 1
    return math.ceil(rows / step) * step


@lru_cache(maxsize=64)
def _typical_tokens(codec: CodecConfig, patch: int, frame: tuple[int, int], frames: int, clips: tuple[int, int]) -> float:
    cell = expected_geometry(codec).spatial_stride * patch
    return expected_work(frames, clips, (frame[0] // cell) * (frame[1] // cell)).tokens


def packed(work: Work, samples: float) -> Work:
    """`samples` alike in one row."""
    return Work(work.noisy * samples, work.clean * samples, work.patches, work.pairs * samples)


def linear_flops(model: ModelConfig, channels: int, tokens: float) -> float:
    """FLOPs of one forward and backward pass through weights: 6 per weight and token.

    Every token counts the decoder, one patch projection and, as every other token is noisy, half of the output projection; the networks that
    run once per frame are left out (together under 1 %).
    """
    patch = model.patch_size**2 * channels
    ends = (patch + 1) * model.hidden_size + (model.hidden_size + 1) * patch / 2
    return 6 * (model.num_layers * layer_parameters(model, channels) + ends) * tokens


def attention_flops(model: ModelConfig, pairs: float) -> float:
    """FLOPs of one forward and backward pass through attention: 12 per attended pair, channel and layer; pairs that the mask rules out do not count."""
    return 12 * pairs * model.num_attention_heads * model.head_dim * model.num_layers


def unscored_flops(model: ModelConfig, channels: int, tokens: float, pairs: float) -> float:
    """FLOPs of one forward and backward pass that the last layer does not need on `tokens` rows which no head reads: of these rows, which attend `pairs`
    pairs, only keys and values matter."""
    keys_values = model.hidden_size * (1 + 2 * model.kv_heads * model.head_dim)
    return 6 * (layer_parameters(model, channels) - keys_values) * tokens + attention_flops(model, pairs) / model.num_layers


def training_flops(model: ModelConfig, channels: int, tokens: float, pairs: float, unscored: tuple[float, float] = (0.0, 0.0)) -> float:
    """Model FLOPs of one forward and backward pass: `linear_flops` and `attention_flops`, less `unscored_flops` of the (tokens, pairs) of rows that no head
    reads, where they are known.

    Recomputed activations, norms, softmax and the optimizer do not count, as is usual for MFU.
    """
    return linear_flops(model, channels, tokens) + attention_flops(model, pairs) - unscored_flops(model, channels, *unscored)


def hardware_flops(config: Config, channels: int, tokens: float, pairs: float, unscored: tuple[float, float] = (0.0, 0.0)) -> float:
    """FLOPs that devices execute for one forward and backward pass: `training_flops`, what of it the last layer computes in vain, and what activation
    recomputation repeats.

    `full` repeats a layer's forward pass with its attention, `mlp` the products of its feed-forward, `selective` nothing that counts.  The scores that
    attention kernels compute again in their own backward pass do not count: they are part of the algorithm (Dao et al. 2022), not a choice of the run,
    and utilisation stays comparable with published figures.  Nor do pairs that a kernel computes in vain in tiles that attend in part.
    Raises ValueError where `parallel.recompute` is still `auto`.
    """
    # `memory` builds on this module.

    model, layout = config.model, config.parallel
    if layout.recompute == "auto":
        raise ValueError("parallel.recompute=auto has no FLOPs yet: resolve it with memory.resolve_recompute first")
    ranks = [stage_layers(config)[rank :: layout.pipeline] for rank in range(layout.pipeline)]
    again = [recomputed_layers(layout, layers) for layers in ranks]
    total = training_flops(model, channels, tokens, pairs)
    repeated, skipped = _repeated(config, channels, tokens, pairs, unscored)
    total += repeated * sum(map(sum, again))
    if scores_rows_only(layout):
        # Queries of all rows are projected together with keys and values.
        queries = 6 * model.hidden_size * model.num_attention_heads * model.head_dim * unscored[0]
        total -= unscored_flops(model, channels, *unscored) - queries
        total -= skipped if again[-1][-1] == ranks[-1][-1] else 0.0
    return total


def _repeated(config: Config, channels: int, tokens: float, pairs: float, unscored: tuple[float, float]) -> tuple[float, float]:
    """FLOPs that the backward pass repeats for one layer that recomputes, and how many fewer these are in a last layer that drops its unscored rows."""
    model = config.model
    products = 2 * 3 * model.hidden_size * model.ffn_hidden_size
    if config.parallel.recompute != "full":
        return products * tokens, products * unscored[0]
    forward = 2 * layer_parameters(model, channels) * tokens + attention_flops(model, pairs) / model.num_layers / 3
    queries = 2 * model.hidden_size * model.num_attention_heads * model.head_dim * unscored[0]
    return forward, unscored_flops(model, channels, *unscored) / 3 - queries
