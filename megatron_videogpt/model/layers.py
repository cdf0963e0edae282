"""The decoder as a megatron-core spec: Transformer Engine's layers on CUDA where it is installed, the local ones
otherwise.

The former are those of megatron-core's TESpecProvider.  They have run over a stand-in of the package on a CPU
(tests/nvidia), with megatron-core 0.16.1 and 0.19.2; no GPU has run them yet.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.backends import BackendSpecProvider, LocalSpecProvider
from megatron.core.transformer import ModuleSpec, TransformerConfig
from megatron.core.transformer.attention import SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import Tensor, nn

from ..config.derived import recomputed_layers, stage_layers
from ..config.schema import Config, ModelConfig
from . import fused
from .accumulation import fuses
from .core_attention import IntervalAttention
from .recompute import FeedForward, megatron_options
from .rope import attention_factor
from .self_attention import RotaryAttention, add_to_scored


def has_transformer_engine(platform: str) -> bool:
    """Whether Transformer Engine's layers can be used: installed, and on an NVIDIA GPU."""
    return platform == "cuda" and importlib.util.find_spec("transformer_engine") is not None


def describe_kernels(platform: str, model: ModelConfig) -> str:
    """What computes norms, activations and rotary positions on a platform, and why, for the log."""
    kernels, reason = fused.select(platform)
    engine = has_transformer_engine(platform)
    first = "Transformer Engine for norms and linear layers, " if engine else ""
    ours = [] if engine or model.norm != "rms" else ["norms"]
    ours += ["SwiGLU"] if model.activation == "swiglu" else []
    theirs = ([] if engine or model.norm == "rms" else ["LayerNorm"]) + ([] if model.gated else ["GELU"])
    theirs += ["biases"] if model.biases else []
    own = f"{', '.join(ours)}{' and ' if ours else ''}rotary positions ({reason})"
    return f"{first}{kernels} for {own}" + (f", torch for {' and '.join(theirs)}" if theirs else "")


class RMSNorm(nn.Module):
    """RMSNorm with float32 statistics; unlike megatron-core's `WrappedTorchNorm` it works under sequence parallelism,
    where the weight's gradient is partial and the mark makes megatron-core sum it over the tensor parallel group.
    """

    def __init__(self, config: VideoGPTConfig, hidden_size: int, eps: float = 1e-5, **unused: object) -> None:
        super().__init__()
        self.eps, self.kernels = eps, config.kernels
        self.weight = nn.Parameter(
            torch.ones(hidden_size, dtype=config.params_dtype, device=torch.cuda.current_device())
        )
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        """``[..., D]`` -> same shape and dtype."""
        return fused.rms_norm(x, self.weight, self.eps, self.kernels)


class LayerNorm(nn.Module):
    """LayerNorm with float32 statistics; its weight and its bias carry the mark as RMSNorm's weight does."""

    def __init__(self, config: VideoGPTConfig, hidden_size: int, eps: float = 1e-5, **unused: object) -> None:
        super().__init__()
        self.eps = eps
        like = {"dtype": config.params_dtype, "device": torch.cuda.current_device()}
        self.weight, self.bias = (
            nn.Parameter(torch.ones(hidden_size, **like)),
            nn.Parameter(torch.zeros(hidden_size, **like)),
        )
        for parameter in (self.weight, self.bias):
            parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        """``[..., D]`` -> same shape and dtype."""
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)


NORMS = {"rms": RMSNorm, "layer": LayerNorm}
"""`model.norm` -> the class without Transformer Engine."""


@dataclass
class VideoGPTConfig(TransformerConfig):
    """megatron-core's configuration and what our own modules read from it."""

    interval_backend: str = "reference"
    """Attention backend, resolved by `attention.choice`."""
    interval_deterministic: bool = False
    """Whether it adds up gradients in a fixed order."""
    kernels: str = "torch"
    """What computes RMSNorm (without Transformer Engine), SwiGLU and rotary positions: `fused.select`."""
    column_linear: Any = None
    row_linear: Any = None
    """Classes of the layers' linear maps."""
    norm: Any = RMSNorm
    """Class of their norms: never fused into the linear maps, so that parameter names are the same with and without
    Transformer Engine.
    """
    activation: str = "swiglu"
    """Of their feed-forwards: `model.activation`."""
    dropout: float = 0.0
    """`model.dropout`: ours, which megatron-core's `hidden_dropout` knows nothing of."""
    recompute_activation: bool = False
    """Whether feed-forwards drop the product of their activation."""
    recompute_mlp: int = 0
    """Leading layers of this chunk whose feed-forward keeps its input only."""
    first_layer: int = 0
    """Layers of the whole model before this chunk."""


def _stage_table(config: Config) -> list[list[str]] | None:
    """megatron-core's pipeline layout: what every stage holds, in order; None without pipeline parallelism."""
    if config.parallel.pipeline == 1:
        return None
    table = [["decoder"] * count for count in stage_layers(config)]
    table[0].insert(0, "embedding")
    table[-1].append("loss")
    return table


def transformer_config(config: Config, platform: str, backend: str, stage: int = 0) -> VideoGPTConfig:
    """megatron-core's configuration of one chunk of our decoder.  stage: of `stage_layers`, chunk * PP
    + pipeline rank.
    """
    model, parallel = config.model, config.parallel
    assert config.train.precision != "auto", "resolved before anything is built"
    dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    layers, interleaved = stage_layers(config), parallel.virtual_pipeline > 1
    rank, chunk = stage % parallel.pipeline, stage // parallel.pipeline
    recomputed = recomputed_layers(parallel, layers[rank :: parallel.pipeline])[chunk]
    provider = _provider(platform)
    return VideoGPTConfig(
        interval_backend=backend,
        interval_deterministic=config.attention.deterministic,
        kernels=fused.select(platform)[0],
        column_linear=provider.column_parallel_linear(),
        row_linear=provider.row_parallel_linear(),
        norm=provider.layer_norm(rms_norm=model.norm == "rms")
        if has_transformer_engine(platform)
        else NORMS[model.norm],
        activation=model.activation,
        dropout=model.dropout,
        recompute_activation=parallel.recompute in ("selective", "mlp"),
        recompute_mlp=recomputed if parallel.recompute == "mlp" else 0,
        first_layer=sum(layers[:stage]),
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_hidden_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.kv_heads,
        kv_channels=model.head_dim,
        softmax_scale=attention_factor(model) ** 2 / model.head_dim**0.5,
        normalization={"rms": "RMSNorm", "layer": "LayerNorm"}[model.norm],
        layernorm_epsilon=model.norm_epsilon,
        add_bias_linear=model.biases,
        gated_linear_unit=model.gated,
        activation_func=F.silu if model.gated else F.gelu,
        # Drawn from megatron-core's generators, whose masks differ between layouts.
        hidden_dropout=0.0,
        attention_dropout=0.0,
        # megatron-core's fusions compile for every row length; ours (`kernels`) do not.
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        apply_rope_fusion=False,
        gradient_accumulation_fusion=fuses(config, platform),
        persist_layer_norm=has_transformer_engine(platform),
        # Parameters are set from their names after construction (model/init.py).
        perform_initialization=False,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype is torch.bfloat16,
        tensor_model_parallel_size=parallel.tensor,
        context_parallel_size=parallel.context,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline if interleaved else None,
        pipeline_model_parallel_layout=_stage_table(config),
        sequence_parallel=parallel.sequence,
        **megatron_options(parallel.recompute, recomputed),
        calculate_per_token_loss=True,
        # Rows differ in length, and megatron-core 0.16 ties variable lengths to this dispatcher, experts or not.
        variable_seq_lengths=parallel.pipeline > 1,
        moe_token_dispatcher_type="alltoall",
        # The defaults abort or hang with variable lengths in the interleaved schedule.
        overlap_p2p_comm=interleaved,
        batch_p2p_comm=not interleaved,
    )


def _provider(platform: str) -> BackendSpecProvider:
    if not has_transformer_engine(platform):
        return LocalSpecProvider()
    from megatron.core.extensions.transformer_engine_spec_provider import TESpecProvider

    return TESpecProvider()


def attention_spec(config: VideoGPTConfig, mask: int, last: bool) -> ModuleSpec:
    """Self-attention under a mask of the row, by number; last: see `LayerKind`."""
    return ModuleSpec(
        module=RotaryAttention,
        params={"attn_mask_type": AttnMaskType.arbitrary, "mask": mask, "last": last},
        submodules=SelfAttentionSubmodules(
            linear_qkv=config.column_linear, core_attention=IntervalAttention, linear_proj=config.row_linear
        ),
    )


def decoder_layer(config: VideoGPTConfig, mask: int, last: bool) -> ModuleSpec:
    """One pre-norm layer with interval attention; arguments as in `attention_spec`."""
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=config.norm,
            self_attention=attention_spec(config, mask, last),
            self_attn_bda=add_to_scored if last else get_bias_dropout_add,
            pre_mlp_layernorm=config.norm,
            mlp=FeedForward,
            mlp_bda=get_bias_dropout_add,
        ),
    )


@dataclass(frozen=True)
class LayerKind:
    """What a decoder layer is.

    mask: number of the row's mask that its self-attention goes by.  spec: `spec(config, mask, last)` -> megatron-core's
    spec of the layer, whose module gets `LayerInputs` as `packed_seq_params`; last: whether this is the model's last
    layer and goes on, behind its attention, with the rows of `LayerInputs.scored` alone wherever that is not None.
    scores_rows: whether this kind can do that, and so is asked to.
    """

    mask: int = 0
    spec: Callable[[VideoGPTConfig, int, bool], ModuleSpec] = decoder_layer
    scores_rows: bool = True


def decoder_spec(
    config: VideoGPTConfig, kinds: Sequence[LayerKind], last: bool, final_norm: bool = True
) -> TransformerBlockSubmodules:
    """The layers of one chunk.  last: whether it ends with the model's last layer, which is to compute scored rows
    only; final_norm: see `videogpt.Ends`.
    """
    return TransformerBlockSubmodules(
        layer_specs=[kind.spec(config, kind.mask, last and n == len(kinds) - 1) for n, kind in enumerate(kinds)],
        layer_norm=config.norm if final_norm else None,
    )
