"""Two ranks, of which one alone fails at something: what each of them raises, as JSON in a folder.  `together_worker.py
FOLDER`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_videogpt.errors import UserError
from megatron_videogpt.platforms import activate

RANK = int(os.environ["RANK"])


def fail(*errors: Exception | None) -> Callable[..., int]:
    """A function that raises its rank's error, or returns its rank."""

    def action(*_: Any, **__: Any) -> int:
        error = errors[RANK]
        if error is not None:
            raise error
        return RANK

    return action


def reading() -> None:
    """An input that one process of a shared model cannot read."""
    from megatron_videogpt.sample.job import _alike
    from megatron_videogpt.sample.prompts import Prompt, Source

    prompt = Prompt("a", np.zeros((1, 2, 2, 3), np.uint8), None, 1.0)
    _alike(Source("a", Path("a.mp4")), lambda: (None, "a.mp4: no such file") if RANK else (prompt, ""))


def encoding() -> None:
    """Latents, where one process does not see the videos."""
    from megatron_videogpt.data.prepare import encode_cli

    encode_cli.prepare = fail(None, UserError("/videos: no such folder"))  # type: ignore[assignment]
    encode_cli.encode(argparse.Namespace(), RANK, 2)


def attention() -> None:
    """A kernel that one rank has not installed."""
    from megatron_videogpt.attention import agreed as kernels
    from megatron_videogpt.config.schema import Config

    kernels.candidates = fail(None, UserError("flash_attn is not installed"))  # type: ignore[assignment]
    kernels.choose_attention(Config(), activate("cpu"))


def cases() -> dict[str, Callable[[], Any]]:
    from megatron_videogpt.platforms.together import gather_results

    missing, fault = UserError("no such folder"), KeyError("x")
    return {
        "well": lambda: gather_results(fail(None, None), None, "reading"),
        "a user's": lambda: gather_results(fail(None, missing), None, "reading"),
        "a user's on both": lambda: gather_results(fail(missing, missing), None, "reading"),
        "a fault": lambda: gather_results(fail(None, fault), None, "reading"),
        "a fault on both": lambda: gather_results(fail(fault, fault), None, "reading"),
        "a fault and a user's": lambda: gather_results(fail(missing, fault), None, "reading"),
        "reading": reading,
        "encoding": encoding,
        "attention": attention,
        "well again": lambda: gather_results(fail(None, None), None, "reading"),
    }


def main() -> None:
    activate("cpu")
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    found: dict[str, Any] = {}
    for name, case in cases().items():
        try:
            found[name] = ["", case()]
        except Exception as error:  # noqa: BLE001
            found[name] = [type(error).__name__, str(error)]
    Path(sys.argv[1], f"{RANK}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
