"""Attention of a row's tokens to a text beside the row."""

from __future__ import annotations

import copy
from typing import Any

from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from ..attention import attend


class TextAttention(MegatronModule):
    """Queries of tokens, keys and values of texts, biases in all maps; each tensor parallel rank has some of the heads.

    A module of megatron-core, because a checkpoint takes the parameters of any other for whole ones.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        width = config.hidden_size
        options = {"bias": True, "init_method": config.init_method, "skip_bias_add": False}
        self.backend, self.deterministic = config.interval_backend, config.interval_deterministic
        self.head = config.kv_channels
        self.query = ColumnParallelLinear(width, width, config=config, gather_output=False, **options)
        # The text is whole on every rank under sequence parallelism too, where a rank's share of its gradient is added
        # to the others' with the parameters' (`Ends.sides`).
        whole = copy.copy(config)
        whole.sequence_parallel = False
        self.key_value = ColumnParallelLinear(
            width,
            2 * width,
            config=whole,
            gather_output=False,
            disable_grad_reduce=config.sequence_parallel,
            **options,
        )
        self.proj = RowParallelLinear(width, width, config=config, input_is_parallel=True, **options)

    def forward(self, hidden: Tensor, text: Tensor, seen: Tensor, plan: Any = None) -> Tensor:
        """hidden ``[l, 1, D]`` (a part of them under sequence parallelism), text ``[n, D]``, intervals int32 ``[l, 4]``
        of all l tokens in it -> the shape of hidden.  plan: of these intervals, see `attention.plan_ahead`.
        """
        query = self.query(hidden)[0].squeeze(1).unflatten(-1, (-1, self.head))
        key, value = self.key_value(text.unsqueeze(1))[0].squeeze(1).unflatten(-1, (-1, 2, self.head)).unbind(2)
        out = attend(self.backend, query, key, value, seen, self.head**-0.5, self.deterministic, plan=plan)
        return self.proj(out.flatten(1).unsqueeze(1))[0]
