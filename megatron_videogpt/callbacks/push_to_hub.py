"""The finished model to the Hugging Face Hub."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ..config.schema import Config
from ..errors import UserError
from .base import ASKED, FAILED, Callback, Context


class PushToHub(Callback):
    """At the end of a run, uploads its last checkpoint as `convert to-hf --push` would.

    The repository is made, or found, before the first step, so that a token that is missing or may not write costs no
    training.  Where a signal or a failure ends the run early, nothing is pushed.  The same command, given again when
    the run is finished, pushes again.  Tokens are huggingface_hub's: HF_TOKEN, or `hf auth login`.

    Args:
        repo: NAME, or ORGANISATION/NAME.
        private: whether a new repository is; one that is there stays as it is.
        weights: ``trained``, or ``average`` (`optimizer.ema_decay`).
        dtype: of the tensors: ``keep``, ``bf16`` or ``fp32``.
    """

    def __init__(self, repo: str, private: bool = True, weights: str = "trained", dtype: str = "keep") -> None:
        from ..convert.exported import DTYPES, WEIGHTS
        from ..convert.push import check_name

        check_name(repo)
        for name, value, known in (("weights", weights, WEIGHTS), ("dtype", dtype, DTYPES)):
            if value not in known:
                raise UserError(f"{name} = {value!r} must be one of {', '.join(known)}")
        self.repo, self.private, self.weights, self.dtype = repo, private, weights, dtype

    def check(self, config: Config) -> None:
        """The run's model can be exported."""
        from ..convert.exported import check_exportable

        check_exportable(config, self.weights == "average")

    def on_train_begin(self, context: Context) -> None:
        """Find out whether pushing will be possible."""
        if context.is_rank_zero:
            from ..convert.push import open_repository

            print(f"the model will be pushed to {open_repository(self.repo, self.private)}", flush=True)

    def on_train_end(self, context: Context) -> None:
        """Export and upload, on one rank; the others wait."""
        if not context.is_rank_zero or context.ending in (ASKED, FAILED):
            return
        from ..convert.exported import export
        from ..convert.push import pushed

        # Beside the checkpoints, where there is room for another.
        with tempfile.TemporaryDirectory(prefix=".push-", dir=context.output) as place:
            folder = Path(place) / context.output.resolve().name
            with pushed(folder, self.repo, self.private, "the run is whole, its command pushes again"):
                export(context.output, folder, self.weights, self.dtype)
