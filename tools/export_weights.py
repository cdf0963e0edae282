"""Write a run's weights, or their moving average, as one safetensors file with the released model's parameter names."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

DESCRIPTION = """\
Write the weights of a run's checkpoint as one safetensors file, in float32 or bf16 as they were trained, with the parameter names of the released
Video-GPT checkpoints.  Whatever layout trained them, one process reads them.  The three hint tokens are a table of three rows; a complete Hugging Face folder
(configuration, text table) is not written here.
"""

EXAMPLES = """\
examples:
  python tools/export_weights.py runs/videogpt/stage4 --output stage4.safetensors
  python tools/export_weights.py runs/videogpt/stage4 --average --output stage4_ema.safetensors
"""


def export(run: Path, step: int | None, average: bool, output: Path) -> int:
    """Write the file; returns the number of parameters."""
    from megatron_videogpt.platforms import activate

    activate("auto")
    from safetensors.torch import save_file

    from megatron_videogpt.model.init import gather_released
    from megatron_videogpt.train import distributed
    from megatron_videogpt.train.inference import load_model

    model, config = load_model(run, step, average=average)
    tensors = {name: value.contiguous().cpu() for name, value in gather_released(model, config.model, lambda parameter: parameter).items()}
    partial = output.with_name(output.name + ".partial")
    save_file(tensors, partial, metadata={"format": "pt", "run": str(run), "weights": "average" if average else "trained"})
    partial.replace(output)
    distributed.stop()
    return sum(value.numel() for value in tensors.values())


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=DESCRIPTION, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a training run (its train.output)")
    parser.add_argument("--step", type=int, metavar="N", help="the checkpoint of this step (default: the newest)")
    parser.add_argument("--average", action="store_true", help="the moving average (optimizer.ema_decay) instead of the trained weights")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.safetensors", help="where to")
    args = parser.parse_args()
    if not args.output.resolve().parent.is_dir():
        print(f"error: --output {args.output}: the folder {args.output.resolve().parent} does not exist; make it first", file=sys.stderr)
        return 2
    try:
        count = export(args.run, args.step, args.average, args.output)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.output}: {count:,} parameters")
    return 0


if __name__ == "__main__":
    sys.exit(main())
