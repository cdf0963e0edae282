"""megatron-core's core attention, with the mask as intervals instead of a matrix (DESIGN section 3)."""

from __future__ import annotations

import math
from typing import Any

from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from ..attention import attend


class IntervalAttention(MegatronModule):
    """Drop-in for `DotProductAttention`; megatron-core's `attention_mask` argument carries int32 intervals ``[L, 4]``.

    The configuration's `interval_backend` names the kernel.
    """

    def __init__(
        self,
        config: Any,
        layer_number: int,
        attn_mask_type: Any,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: Any = None,
        **later_releases: Any,
    ) -> None:
        super().__init__(config=config)
        assert config.context_parallel_size == 1 and not config.attention_dropout and not attention_dropout
        self.backend = config.interval_backend
        self.scale = softmax_scale if softmax_scale is not None else 1.0 / math.sqrt(config.kv_channels)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **unused: Any) -> Tensor:
        """query ``[L, 1, H, d]``, key and value ``[L, 1, Hkv, d]`` of this tensor parallel rank -> ``[L, 1, H*d]``."""
        out = attend(self.backend, query[:, 0], key[:, 0], value[:, 0], attention_mask, self.scale)
        return out.reshape(out.shape[0], 1, -1)
