"""`python -m megatron_videogpt scaling plan`: its options; what it does is imported when it runs."""

from __future__ import annotations

import argparse

from .arguments import add_ladder

DESCRIPTION = """\
Plan a ladder for a scaling law: models of several sizes with several numbers of tokens, by rules that are printed, and
what they take: parameters, tokens, steps, FLOPs on attended pairs and by 6 N D, the codec, devices, memory, time.

LADDER.toml is a recipe (base = "..." and what differs from it) with a section [ladder]: two of sizes, multiples (of
tokens) and budgets (of FLOPs), the rules, and the devices.  The plan, and a configuration for each run, are written
into ladder.output; nothing is trained.
"""

EXAMPLES = """\
examples:
  python -m megatron_videogpt scaling plan examples/scaling/cpu.toml
  python -m megatron_videogpt scaling plan examples/scaling/h100.toml --gpus 64 --budget 2000h
  python -m megatron_videogpt scaling plan LADDER.toml ladder.lr=1e-3 data.path=/videos --json

See docs/scaling.md.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options and help."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    add_ladder(parser)
    parser.add_argument("--json", action="store_true", help="print the plan as JSON instead of tables")


def run(args: argparse.Namespace) -> None:
    """Plan, write and print; UserError, one line, when that cannot be done."""
    import json

    from ..write import finite
    from .folder import ladder_folder
    from .made import described, make_plan, record
    from .plan_report import console_of, print_plan

    plan = make_plan(args)
    with ladder_folder(plan.output):
        record(plan)
    if args.json:
        print(json.dumps(finite(described(plan)), indent=2, allow_nan=False))
        return
    print_plan(plan, console_of())
