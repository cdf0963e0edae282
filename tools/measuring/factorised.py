"""Attention of the factorised network on one packed row, against batched SDPA over [frames, patches]: seconds of a
forward and backward pass, and the largest difference.

Every kind of attention by itself: in space, to the prompt, in time.  `groups` is what training runs: the row's mask, of
which equal groups are one batched call; `intervals` the same mask without that hint; `batched` torch's SDPA on views of
the same tensors, which knows one video of one size.  float32, one process; the ways take turns, and the fastest run of
each counts.

    # 25 and 8 frames of 256 patches, 16 heads of 72
    python tools/benchmark_attention.py factorised
    python tools/benchmark_attention.py factorised --prompt 4 --chunk 2 --patches 16 --heads 2 --head-dim 8 --repeat 1
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_videogpt.attention import BACKENDS
from megatron_videogpt.errors import UserError
from megatron_videogpt.objective.frame_prompt.factorised.masks import Extent, masks_of
from megatron_videogpt.objective.frame_prompt.factorised.variant import Variant
from megatron_videogpt.sequence.row import Mask
from tools.measuring.clock import in_turns, seconds
from tools.measuring.report import heading, markdown

KINDS = ("in space", "in time", "to the prompt")
WAYS = ("groups", "intervals", "batched")
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""q, k and v ``[L, H, d]`` -> ``[L, H, d]``."""


def arguments(words: list[str]) -> argparse.Namespace:
    """The command line behind `factorised`."""
    parser = argparse.ArgumentParser(
        prog="benchmark_attention.py factorised",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    number = {"type": int, "metavar": "N"}
    parser.add_argument("--prompt", default=25, help="given frames (default: %(default)s)", **number)
    parser.add_argument("--chunk", default=8, help="noisy frames (default: %(default)s)", **number)
    parser.add_argument("--patches", default=256, help="of a frame (default: %(default)s)", **number)
    parser.add_argument("--enhance", default=3, help="prompt frames that are attended (default: %(default)s)", **number)
    parser.add_argument("--heads", default=16, help="(default: %(default)s)", **number)
    parser.add_argument("--head-dim", default=72, help="(default: %(default)s)", **number)
    parser.add_argument("--backend", default="ranged", choices=BACKENDS, help="(default: %(default)s)")
    parser.add_argument("--threads", default=1, help="CPU threads (default: %(default)s)", **number)
    parser.add_argument("--repeat", default=3, help="runs of each (default: %(default)s)", **number)
    return parser.parse_args(words)


def by_mask(mask: Mask, backend: str, scale: float) -> Attention:
    """What the network's layers run, the order of attention in time included."""
    # megatron-core looks for its device as it is imported.
    from megatron_videogpt.platforms import activate

    activate("cpu")
    from megatron_videogpt.model.core_attention import attend_in_order
    from megatron_videogpt.model.inputs import ordered

    found = ordered(mask, cached=False)
    return lambda q, k, v: attend_in_order(backend, q, k, v, found, scale)


def batched(kind: int, extent: Extent, enhance: int, scale: float) -> Attention:
    """torch's SDPA on ``[frames, H, patches, d]`` or ``[patches, H, frames, d]``."""
    frames, prompt, patches = extent

    def over(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)

    def in_space(*qkv: Tensor) -> Tensor:
        q, k, v = (x.unflatten(0, (frames, patches)).transpose(1, 2) for x in qkv)
        return over(q, k, v).transpose(1, 2).flatten(0, 1)

    def in_time(*qkv: Tensor) -> Tensor:
        q, k, v = (x.unflatten(0, (frames, patches)).permute(1, 2, 0, 3) for x in qkv)
        return over(q, k, v, causal=True).permute(2, 0, 1, 3).flatten(0, 1)

    def to_prompt(*qkv: Tensor) -> Tensor:
        q, k, v = (x.unflatten(0, (frames, patches)).transpose(1, 2) for x in qkv)
        own = over(*(x[:prompt] for x in (q, k, v))).transpose(1, 2).flatten(0, 1)
        last = [x[prompt - enhance : prompt].transpose(0, 1).flatten(1, 2)[None] for x in (k, v)]
        noisy = over(q[prompt:].transpose(0, 1).flatten(1, 2)[None], *last)
        return torch.cat([own, noisy[0].transpose(0, 1)])

    return (in_space, in_time, to_prompt)[kind]


def timed(attention: Attention, leaves: tuple[Tensor, ...], upstream: Tensor) -> tuple[float, list[Tensor]]:
    """(seconds of a forward and backward pass, the output and the gradients)."""
    for leaf in leaves:
        leaf.grad = None
    output: list[Tensor] = []

    def both() -> None:
        output.append(attention(*leaves))
        output[0].backward(upstream)

    took = seconds(both, "cpu")
    return took, [output[0].detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def difference(found: list[Tensor], wanted: list[Tensor]) -> float:
    """Largest, as a fraction of the largest value."""
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, wanted))


def check(args: argparse.Namespace) -> None:
    """UserError for sizes that nothing can be measured with."""
    for name in ("chunk", "patches", "enhance", "heads", "head_dim", "threads", "repeat"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}: must be at least 1")
    if args.prompt < args.enhance:
        raise UserError(f"--prompt {args.prompt}: must be at least --enhance {args.enhance}")


def run(words: list[str]) -> None:
    """Measure and print."""
    args = arguments(words)
    check(args)
    torch.set_num_threads(args.threads)
    extent, scale = Extent(args.prompt + args.chunk, args.prompt, args.patches), args.head_dim**-0.5
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(extent.tokens, args.heads, args.head_dim, generator=generator) for _ in range(4)]
    leaves, upstream = tuple(x.requires_grad_() for x in drawn[:3]), drawn[3]
    print(f"{heading('cpu', args.threads)}\n")
    print(f"{extent.frames} frames of {args.patches} patches, {args.heads} heads of {args.head_dim}, {args.backend}\n")
    rows, totals = [], dict.fromkeys(WAYS, 0.0)
    masks = masks_of([extent], extent.tokens, Variant(enhance_frames=args.enhance))
    for kind, (name, mask) in enumerate(zip(KINDS, masks)):
        ways: dict[str, Attention] = {
            "groups": by_mask(mask, args.backend, scale),
            "intervals": by_mask(Mask(mask.intervals, mask.order), args.backend, scale),
            "batched": batched(kind, extent, args.enhance, scale),
        }
        best, found = dict.fromkeys(WAYS, float("inf")), {}
        runs = {way: partial(timed, attention, leaves, upstream) for way, attention in ways.items()}
        for way, (took, found[way]) in in_turns(runs, args.repeat):
            best[way] = min(best[way], took)
        error = max(difference(found[way], found["batched"]) for way in WAYS)
        totals = {way: totals[way] + best[way] for way in WAYS}
        rows.append(_row(name, best, f"{error:.0e}"))
    columns = ["attention", *(f"{way}, s" for way in WAYS), "groups / batched", "largest difference"]
    print(markdown(columns, [*rows, _row("all three", totals, "")]))


def _row(name: str, took: dict[str, float], error: str) -> list[str]:
    return [name, *(f"{took[way]:.3f}" for way in WAYS), f"**{took['groups'] / took['batched']:.2f}**", error]
