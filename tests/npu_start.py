"""What starting on an NPU does to a process: `python -m tests.npu_start CASE FOLDER`, over stand-ins on the search
path; what it saw goes to stdout as JSON, in the last line.

CASE: JSON of adaptor (null: a command that has no such option), platform ("npu", or "auto"), missing (packages), cuda
(torch says it is a CUDA build), words (of the command line).  Behind `activate` it logs, warns, makes a network and
imports megatron-core.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any


def main() -> None:
    """Entry point."""
    case, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
    for name in case.get("missing", ()):
        sys.modules[name] = None  # type: ignore[assignment]
    import torch

    if case.get("cuda"):
        torch.version.cuda = "12.6"
    sys.argv = ["program", *case.get("words", ())]
    from megatron_videogpt.errors import UserError
    from megatron_videogpt.platforms import activate
    from megatron_videogpt.train.logs import open_log, start_logs

    start_logs(folder, 0)
    open_log()
    log = logging.getLogger("megatron_videogpt.before")
    warnings.filterwarnings("error", message="a mistake")
    seen: dict[str, Any] = {"argv before": sys.argv[:]}
    try:
        platform = activate(case.get("platform", "npu"), case.get("adaptor", "auto"))
        seen.update(name=platform.name, device=str(platform.device), backend=platform.backend)
    except UserError as error:
        seen["error"] = str(error)
    seen["argv after"] = sys.argv[:]
    log.info("still here")
    warnings.warn("seen in the log", UserWarning, stacklevel=1)
    try:
        warnings.warn("a mistake", UserWarning, stacklevel=1)
    except UserWarning:
        seen["filter"] = "held"
    if "torch_npu" in sys.modules and "error" not in seen and seen["name"] == "npu":
        import megatron.core  # noqa: F401
        from torch_npu import events

        events.note("megatron.core")
        seen.update(type=torch.zeros(1).type(), generators=len(torch.cuda.default_generators))
        options = [torch.npu.matmul.allow_hf32, torch.npu.conv.allow_hf32, torch.npu.config.allow_internal_format]
        seen.update(events=events.seen, options=options, autoload=os.environ.get("TORCH_DEVICE_BACKEND_AUTOLOAD"))
    seen["log"] = (folder / "logs" / "rank_00000.log").read_text(encoding="utf-8")
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
