"""How a run is spread over processes."""

from __future__ import annotations

from dataclasses import dataclass

from .sections import option


@dataclass(frozen=True)
class ParallelConfig:
    """How the model is spread over processes; data parallelism takes what is left of the world."""

    tensor: int = option(1, "tensor parallel size (TP)")
    sequence: bool = option(False, "sequence parallelism within the tensor parallel group (SP)")
    context: int = option(
        1,
        "context parallel size (CP, Ulysses): tokens are split, heads are exchanged for attention; TP x CP "
        "divides the query heads",
    )
    pipeline: int = option(1, "pipeline parallel size (PP)")
    virtual_pipeline: int = option(1, "model chunks per pipeline rank (VPP); above 1 runs the interleaved schedule")
    pipeline_layers: tuple[int, ...] = option(
        (), "decoder layers of each stage, pipeline x virtual_pipeline numbers in order; [] spreads them, ends lighter"
    )
    recompute: str = option(
        "none",
        "activations computed again in the backward pass: none, selective (norms and SwiGLU products), mlp "
        "(selective, and whole feed-forwards), "
        "full (whole layers) or auto (the least of these that fits the memory, by the estimator)",
        choices=("none", "selective", "mlp", "full", "auto"),
    )
    recompute_layers: int = option(
        0, "layers of each pipeline rank whose feed-forward (mlp) or all (full) is recomputed; 0 means every layer"
    )
    memory_gb: float = option(
        0.0, "memory of one device in GB (10^9 bytes) that recompute=auto may fill; 0 asks the device"
    )
    overlap_grad_reduce: bool = option(
        True, "reduce gradients over data parallel ranks while the backward pass goes on"
    )
    overlap_param_gather: bool = option(
        True, "gather updated parameters while the next forward pass goes on; needs overlap_grad_reduce"
    )
    gradient_accumulation_fusion: str = option(
        "auto",
        "whether NVIDIA Apex's kernel adds weight gradients to those in fp32: on, off, auto (bf16, GPUs, one network)",
        choices=("auto", "on", "off"),
    )
    bucket_size: int = option(
        0, "parameters that are reduced and gathered together; 0 leaves it to megatron-core (40 million or more)"
    )

    @property
    def model_size(self) -> int:
        """Processes that share one replica of the model and of a sample: TP x CP x PP."""
        return self.tensor * self.context * self.pipeline

    @property
    def row_multiple(self) -> int:
        """Rows are padded to a multiple of this: context and sequence parallelism cut them into equal parts."""
        return self.tensor * self.context

    @property
    def stages(self) -> int:
        """Pieces that the decoder is cut into: PP x VPP."""
        return self.pipeline * self.virtual_pipeline
