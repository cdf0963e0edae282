"""Next block prediction in blocks of several sizes, and its cache of keys and values.

First the same model draws the same number of tokens in blocks of each size, with the published filters: seconds in the
transformer with its head, for noise, for filters and draws, and for the tokenizer, which encodes the given frames and
decodes all.  Then one more latent frame after each number of given ones, with a cache of keys and values and without;
largest difference of the logits beside it.  The tokenizer has random weights as well.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from megatron_videogpt.errors import UserError
from tools.measuring.clock import in_turns
from tools.measuring.report import markdown

TOP_K, TOP_P = 16_000, 0.9
LEVELS = (8, 8, 8, 5, 5, 5)
DEFAULTS: dict[str, Any] = {"layers": 12, "hidden": 512, "heads": 8, "repeat": 1}
QUICK: dict[str, Any] = {
    **{"layers": 2, "hidden": 32, "heads": 2, "side": 4, "frames": (1, 1), "blocks": (4, 1), "histories": (1, 2)},
    **{"tokenizer_width": 4},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this objective."""
    parser.add_argument("--side", type=int, default=16, help="tokens in a row and in a column of a latent frame")
    parser.add_argument("--frames", type=int, nargs=2, default=(2, 3), metavar=("GIVEN", "NEW"), help="latent frames")
    parser.add_argument("--blocks", type=int, nargs="+", default=(16, 1), help="sizes of a block")
    parser.add_argument(
        "--histories", type=int, nargs="*", default=(1, 2, 4, 8), help="given frames of the second table"
    )
    parser.add_argument("--tokenizer-width", type=int, default=32, help="channels; the published one has 128")


def check(options: argparse.Namespace) -> None:
    """UserError for sizes that nothing can be measured with."""
    for name in ("side", "tokenizer_width"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name)}: must be at least 1")
    for name in ("frames", "blocks", "histories"):
        if min(getattr(options, name), default=1) < 1:
            raise UserError(f"--{name} {' '.join(map(str, getattr(options, name)))}: must be at least 1")
    for block in options.blocks:
        if options.side**2 % block:
            raise UserError(f"--blocks {block}: must divide the {options.side**2} tokens of a latent frame (--side)")


def describe(options: argparse.Namespace) -> str:
    """What is measured, in a sentence."""
    given, new = options.frames
    return (
        f"{options.layers} layers of {options.hidden}, {options.heads} heads, 64,000 words, float32; latent frames of "
        f"{options.side}x{options.side} tokens, {given} given and {new} drawn, batch 1; top-k {TOP_K}, top-p {TOP_P}; "
        f"tokenizer of width {options.tokenizer_width}"
    )


class Timed:
    """A model of the sampler whose time is taken."""

    def __init__(self, network: Any) -> None:
        self.network, self.seconds, self.steps = network, 0.0, 0

    def logits(self, inputs: Any, rows: Any, guided: bool) -> Any:
        """See `Model.logits`."""
        began = time.perf_counter()
        found = self.network.logits(inputs, rows, guided)
        self.seconds, self.steps = self.seconds + time.perf_counter() - began, self.steps + 1
        return found


class Bench:
    """One transformer, whose blocks may have any size, and one tokenizer."""

    def __init__(self, options: argparse.Namespace) -> None:
        import torch

        from megatron_videogpt.config.schema import Config, ModelConfig, TrainConfig
        from megatron_videogpt.hub.common.fsq_tokenizer import FSQShape, FSQTokenizer
        from megatron_videogpt.objective.next_block.ends import ends_of
        from megatron_videogpt.objective.next_block.vocabulary import UNCONDITIONAL, Vocabulary
        from tools.measuring.networks import network

        cells = options.side**2
        model = ModelConfig(
            num_layers=options.layers,
            hidden_size=options.hidden,
            ffn_hidden_size=4 * options.hidden,
            num_attention_heads=options.heads,
            max_position_embeddings=cells * (1 + max(sum(options.frames), *options.histories, 0)),
            patch_size=1,
            norm="layer",
            activation="gelu",
            biases=True,
            positions="learned",
        )
        self.config = Config(model=model, train=TrainConfig(precision="fp32", platform="cpu"))
        self.vocabulary = Vocabulary(UNCONDITIONAL, 1, 64_000)
        self.model = network(self.config, 0, ends_of(self.vocabulary))
        groups = max(1, options.tokenizer_width // 4)
        self.tokenizer = FSQTokenizer(FSQShape(options.tokenizer_width, groups, 4, LEVELS)).eval()
        self.side, self.cells, self.device = options.side, cells, torch.device("cpu")

    def draw(self, block: int, given: Any, total: int, cache: bool = True, filters: bool = True) -> dict[str, Any]:
        """Seconds by part, and the logits, of drawing all tokens behind the given ones.  filters: and noise; else the
        likeliest tokens.
        """
        import torch

        from megatron_videogpt.config.schema import SampleConfig
        from megatron_videogpt.hub.next_block.sampling_nextblock import UNKNOWN, Drawing, Drawn, Video, draw_tokens
        from megatron_videogpt.objective.next_block.network import Network, Place
        from megatron_videogpt.objective.noise import exponential

        config, vocabulary = (
            replace(self.config, sample=SampleConfig(cache=cache)),
            replace(self.vocabulary, block=block),
        )
        network = Timed(Network([self.model], config, self.device, vocabulary, [Place(0, False, total - block)]))
        tokens = torch.cat([given, torch.full((total - len(given),), UNKNOWN)])
        video, logits, spent = Video(torch.zeros(0).long(), tokens, block, False), [], 0.0

        def noise(number: int, place: int, count: int) -> Any:
            nonlocal spent
            began = time.perf_counter()
            drawn = [exponential(0, f"{token}", vocabulary.size) for token in range(place, place + count)]
            spent += time.perf_counter() - began
            return torch.stack(drawn)

        def keep(step: list[Drawn]) -> None:
            if not filters:
                logits.append(step[0].logits)

        how = Drawing(1.0, TOP_K, TOP_P) if filters else Drawing(0.0)
        began = time.perf_counter()
        with torch.no_grad():
            draw_tokens(network, [video], how, noise, keep)
        whole = time.perf_counter() - began
        parts = {"passes": network.seconds, "steps": network.steps, "noise": spent}
        return {**parts, "drawing": whole - network.seconds - spent, "tokens": video.tokens, "logits": logits}


def whole_video(bench: Bench, frames: tuple[int, int], block: int) -> dict[str, Any]:
    """Given frames of pixels to all frames of pixels: seconds of each part."""
    import torch

    from megatron_videogpt.hub.common.fsq_codes import codes_of, ids_of

    given, side = frames[0], bench.side
    noise = torch.Generator().manual_seed(0)
    video = torch.rand(1, 3, 4 * given - 3, 8 * side, 8 * side, generator=noise)
    with torch.no_grad():
        began = time.perf_counter()
        ids = ids_of(bench.tokenizer.to_codes(video), LEVELS).flatten()
        encoding = time.perf_counter() - began
        found = bench.draw(block, ids, sum(frames) * bench.cells)
        began = time.perf_counter()
        codes = codes_of(found.pop("tokens").view(1, sum(frames), side, side), LEVELS)
        bench.tokenizer.to_video(codes)
        found |= {"block": block, "encoding": encoding, "decoding": time.perf_counter() - began}
    found.pop("logits")
    return found | {"whole": sum(found[part] for part in ("encoding", "passes", "noise", "drawing", "decoding"))}


def one_more_frame(bench: Bench, history: int, options: argparse.Namespace) -> dict[str, Any]:
    """One more frame after `history` given ones, with a cache and without."""
    import torch

    given = torch.randint(64_000, (history * bench.cells,), generator=torch.Generator().manual_seed(history))
    whole = (history + 1) * bench.cells
    runs = {cache: partial(bench.draw, options.blocks[0], given, whole, cache, False) for cache in (True, False)}
    best: dict[bool, float] = {}
    logits: dict[bool, Any] = {}
    for cache, found in in_turns(runs, options.repeat):
        logits[cache] = torch.cat(found["logits"])
        best[cache] = min(best.get(cache, found["passes"]), found["passes"])
    error = float((logits[True] - logits[False]).abs().max() / logits[False].abs().max())
    return {"history": history, "with": best[True], "without": best[False], "error": error}


def measure(options: argparse.Namespace, bar: Any, save: Callable[[dict[str, Any]], None]) -> str:
    """Both tables -> Markdown.  bar: `rich`'s; save: what there is so far."""
    import torch

    bench = Bench(options)
    # The first call of everything loads and allocates.
    bench.draw(options.blocks[0], torch.zeros(bench.cells).long(), 2 * bench.cells)
    best: dict[int, dict[str, Any]] = {}
    lengths: list[dict[str, Any]] = []
    task = bar.add_task("blocks", total=len(options.blocks) * options.repeat + len(options.histories))
    runs = {block: partial(whole_video, bench, tuple(options.frames), block) for block in options.blocks}
    for block, found in in_turns(runs, options.repeat):
        best[block] = min(best.get(block, found), found, key=lambda one: one["passes"])
        save({"blocks": list(best.values()), "lengths": lengths})
        bar.update(task, advance=1)
    for history in options.histories:
        bar.update(task, description=f"{history} frames given")
        lengths.append(one_more_frame(bench, history, options))
        save({"blocks": list(best.values()), "lengths": lengths})
        bar.update(task, advance=1)
    return tables(list(best.values()), lengths)


def tables(blocks: list[dict[str, Any]], lengths: list[dict[str, Any]]) -> str:
    """Markdown."""
    slowest = max(blocks, key=lambda one: one["passes"])
    columns = ["block", "steps", "passes s", "ms a step", "noise s", "filters, draws s", "encoding s", "decoding s"]
    rows = []
    for one in blocks:
        shown = [f"{one[key]:.2f}" for key in ("noise", "drawing", "encoding", "decoding", "whole")]
        ratios = [f"**{slowest[key] / one[key]:.2f}**" for key in ("passes", "whole")]
        passes = [f"{one['passes']:.2f}", f"{1e3 * one['passes'] / one['steps']:.1f}"]
        rows.append([f"{one['block']}", f"{one['steps']}", *passes, *shown, *ratios])
    text = markdown([*columns, "whole s", "passes, times as fast", "whole, times as fast"], rows)
    if not lengths:
        return text
    rows = [
        [
            *(f"{one['history']}", f"{one['with']:.2f}", f"{one['without']:.2f}"),
            *(f"**{one['without'] / one['with']:.2f}**", f"{one['error']:.0e}"),
        ]
        for one in lengths
    ]
    columns = ["frames given", "with a cache s", "without s", "times as fast", "difference of logits"]
    return f"{text}\n\n{markdown(columns, rows)}"
