"""What a command does not import: one cold process per command, because this one has imported everything."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
COMPILER = {"torch._dynamo", "torch._inductor", "torch.onnx", "networkx"}
LATE = {
    "matplotlib",
    "gradio",
    "transformers",
    "diffusers",
    "scipy",
    "torchmetrics",
    "torchvision",
    "pyarrow",
    "pandas",
    "cv2",
    "scenedetect",
}

TRAIN = """
from megatron_videogpt.platforms import activate
activate("cpu")
import megatron_videogpt.train.trainer
import torch
weight = torch.nn.Parameter(torch.tensor([2.0, -3.0]))
optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.5, eps=0.0)
optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))]})
weight.grad = torch.tensor([4.0, -0.25])
optimizer.step()
print(*weight.tolist(), torch.is_grad_enabled())
optimizer.load_state_dict(optimizer.state_dict())
optimizer.zero_grad()
@torch.compile(dynamic=True)
@torch.compiler.disable(recursive=False)
@torch.compile
def double(x):
    return 2 * x
print(double(21))
"""


def imported(*arguments: str) -> tuple[set[str], str]:
    """Names of all modules that `python <arguments>` imports, and what it prints."""
    command = [sys.executable, "-X", "importtime", *arguments]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    lines = [line for line in result.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines}, result.stdout


@pytest.mark.parametrize(
    "command",
    [
        ("check", "examples/videogpt/quickstart.toml"),
        ("check", "examples/videogpt/stage4.toml", "--gpus", "320"),
        ("options",),
        ("sample", "--help"),
        ("demo", "--help"),
        ("scaling", "fit", "--help"),
    ],
    ids=" ".join,
)
def test_commands_that_compute_nothing_do_without_pytorch(command: tuple[str, ...]) -> None:
    names, _ = imported("-m", "megatron_videogpt", *command)
    assert "argparse" in names
    assert names & ({"torch", "numpy", "av", "PIL"} | LATE) == set()


def test_training_on_a_cpu_imports_no_compiler_and_steps_as_torch_does() -> None:
    names, printed = imported("-c", TRAIN)
    assert {"torch", "megatron.core", "torch.optim"} <= names
    # The checkpoints of torch 2.7 import its compiler themselves; those of newer ones do not.
    own = imported("-c", "import torch.distributed.checkpoint")[0] if version("torch").startswith("2.7.") else set()
    assert names & (COMPILER | LATE) <= own & COMPILER
    # AdamW's first step: decay by 1 - lr * weight_decay, then lr against the sign of the gradient.
    *values, gradients = printed.splitlines()[0].split()
    assert [float(value) for value in values] == pytest.approx([2 * 0.95 - 0.1, -3 * 0.95 + 0.1], rel=1e-6)
    assert gradients == "True" and printed.splitlines()[1] == "42"
