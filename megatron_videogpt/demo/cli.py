"""`python -m megatron_videogpt demo`: the options, the model, and the server of the page."""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import socket
import tempfile
import threading
from pathlib import Path
from typing import Any

from ..config import paths
from ..errors import UserError

DESCRIPTION = """\
Open a page on this machine where a trained model continues a clip: drop in a video or an image, or take a physics
scene, choose clips, steps and guidance, and watch and download the result.

The page is for this machine alone unless --host says otherwise; it has no password, loads nothing from the internet and
sends nothing there.  What is uploaded and made lies in a temporary folder, which is deleted when the command ends
(Ctrl+C).
"""

EXAMPLES = """\
examples:
  python -m megatron_videogpt demo --checkpoint runs/quickstart
  python -m megatron_videogpt demo --checkpoint hub/videogpt --port 8080
  from another computer, through SSH:  ssh -L 7860:127.0.0.1:7860 SERVER  and open http://127.0.0.1:7860
"""

LOCAL = ("127.0.0.1", "localhost", "::1")
LARGEST_PORT = 65535


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options and help."""
    parser.description, parser.epilog, parser.formatter_class = (
        DESCRIPTION,
        EXAMPLES,
        argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        type=paths.path,
        metavar="RUN",
        help="folder of a training run (its train.output), or a Hugging Face folder",
    )
    parser.add_argument(
        "--step", type=int, metavar="N", help="use the run's checkpoint of this step (default: the newest)"
    )
    encoder = "folder of the text encoder, where it is not that of the model's configuration"
    parser.add_argument("--text-encoder", type=paths.place, default="", metavar="FOLDER", help=encoder)
    weights = "trained, or average: their moving average, which a run keeps with optimizer.ema_decay (default: trained)"
    parser.add_argument("--weights", choices=("trained", "average"), default="trained", help=weights)
    parser.add_argument("--port", type=int, default=7860, metavar="N", help="of the page (default: 7860)")
    host = (
        "address that the page listens on (default: 127.0.0.1, this machine alone; 0.0.0.0 lets in whoever reaches it)"
    )
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help=host)


def run(args: argparse.Namespace) -> None:
    """Serve the page until the command is interrupted; ValueError in one line for whatever the user can mend."""
    if os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
        raise UserError("demo runs in one process: start it with `python -m megatron_videogpt demo`, without torchrun")
    if importlib.util.find_spec("gradio") is None:
        raise UserError("demo needs Gradio, which is not installed: pip install -e '.[demo]'")
    _check_address(args.host, args.port)
    from ..sample.generate import load

    model = load(
        args.checkpoint, args.step, args.weights == "average", args.text_encoder, texts=bool(args.text_encoder)
    )
    signal.signal(signal.SIGTERM, _interrupt)
    with tempfile.TemporaryDirectory(prefix="megatron_videogpt_demo_") as folder:
        # Before Gradio is imported, which reads them then: uploads go into our folder, and nothing is reported to
        # anybody.
        os.environ.update(
            GRADIO_TEMP_DIR=folder,
            GRADIO_ANALYTICS_ENABLED="False",
            GRADIO_RUN_HISTORY="False",
            HF_HUB_DISABLE_TELEMETRY="1",
        )
        from .page import build, launch

        page = build(model, args.checkpoint, Path(folder))
        launch(page, args.host, args.port)
        if args.host not in LOCAL:
            print(f"--host {args.host}: whoever reaches this machine can use the page; it has no password", flush=True)
        print(f"open http://{args.host}:{args.port} (Ctrl+C ends it)", flush=True)
        try:
            threading.Event().wait()
        finally:
            page.close(verbose=False)


def _interrupt(*_: Any) -> None:
    """A polite kill cleans up as Ctrl+C does."""
    raise KeyboardInterrupt


def _check_address(host: str, port: int) -> None:
    """Before the model is loaded, which takes long."""
    if not 1 <= port <= LARGEST_PORT:
        raise UserError(f"--port {port}: must be from 1 to {LARGEST_PORT}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            # As the server itself does: connections of an earlier one that are closing are no obstacle.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise UserError(
            f"--host {host} --port {port}: cannot listen there ({error.strerror or error}); choose another "
            "--port or --host"
        ) from error
