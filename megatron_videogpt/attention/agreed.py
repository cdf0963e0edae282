"""The attention backend of a run: the same on every rank, and compared with the dense oracle before the first step."""

from __future__ import annotations

import torch

from ..config.schema import Config
from ..errors import RunError, UserError
from ..platforms import Platform
from ..platforms.together import fail_together
from .choice import WrongHere, candidates, choose


def choose_attention(config: Config, platform: Platform) -> tuple[str, str]:
    """(backend, why), agreed by all ranks; a collective.  See `attention.choice.choose`.

    Raises RunError where no rank can go on, and WrongHere on the ranks whose device computed something wrong.
    """

    def worst(outcome: int) -> int:
        value = torch.tensor(outcome, device=platform.device)
        torch.distributed.all_reduce(value, op=torch.distributed.ReduceOp.MAX)
        return int(value)

    model = config.model
    dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    heads = model.num_attention_heads // model.kv_heads
    with fail_together(None, "choosing an attention backend"):
        # What a rank has installed it alone knows.
        candidates(
            config.attention.backend,
            platform.device.type,
            dtype,
            model.head_dim,
            deterministic=config.attention.deterministic,
        )
    try:
        return choose(
            config.attention.backend,
            platform.device,
            dtype,
            model.head_dim,
            heads,
            config.attention.deterministic,
            worst,
        )
    except WrongHere:
        raise
    except UserError as error:
        raise RunError(str(error)) from None
