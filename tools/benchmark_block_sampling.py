"""Sampling of next block prediction, for benchmark_sampling.py --objective next_block_prediction.

    # the protocol of Kinetics-600: 512 tokens given, 768 drawn, in blocks of 16 and of 1, one CPU thread
    python tools/benchmark_sampling.py --objective next_block_prediction
    python tools/benchmark_sampling.py --objective next_block_prediction --quick      # tiny: does it run here?

First the same model draws the same number of tokens in blocks of each size, with the published filters: seconds in the
transformer with its head, for noise, for filters and draws, and for the tokenizer, which encodes the given frames and
decodes all.  Then one more latent frame after each number of given ones, with a cache of keys and values and without;
largest difference of the logits beside it.  Model and tokenizer have random weights: only their shape matters.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import replace
from typing import Any

from megatron_videogpt.config import paths

TOP_K, TOP_P = 16_000, 0.9
LEVELS = (8, 8, 8, 5, 5, 5)


def arguments(words: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objective", default="next_block_prediction")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--side", type=int, default=16, help="tokens in a row and in a column of a latent frame")
    parser.add_argument("--frames", type=int, nargs=2, default=(2, 3), metavar=("GIVEN", "NEW"), help="latent frames")
    parser.add_argument("--blocks", type=int, nargs="+", default=(16, 1), help="sizes of a block")
    parser.add_argument(
        "--histories", type=int, nargs="*", default=(1, 2, 4, 8), help="given frames of the second table"
    )
    parser.add_argument("--tokenizer-width", type=int, default=32, help="channels; the published one has 128")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each, alternating; the fastest counts")
    parser.add_argument("--quick", action="store_true", help="a tiny model, where no option says otherwise")
    parser.add_argument("--json", type=paths.path, help="also write all results into this file")
    if parser.parse_args(words).quick:
        parser.set_defaults(
            layers=2, hidden=32, heads=2, side=4, frames=(1, 1), blocks=(4, 1), histories=(1, 2), tokenizer_width=4
        )
    return parser.parse_args(words)


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
        from megatron_videogpt.platforms import activate

        platform = activate("cpu")
        import torch

        from megatron_videogpt.config.schema import Config, ModelConfig, TrainConfig
        from megatron_videogpt.hub.common.fsq_tokenizer import FSQShape, FSQTokenizer
        from megatron_videogpt.model.init import load_released
        from megatron_videogpt.model.videogpt import VideoGPT
        from megatron_videogpt.objective.next_block.ends import ends_of
        from megatron_videogpt.objective.next_block.vocabulary import UNCONDITIONAL, Vocabulary
        from megatron_videogpt.platforms import world
        from tools.measuring.networks import spread

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
        world.start(platform, self.config.parallel)
        self.vocabulary = Vocabulary(UNCONDITIONAL, 1, 64_000)
        self.model = VideoGPT(self.config, 0, platform, "ranged", ends_of(self.vocabulary))
        load_released(self.model, model, lambda entry: spread(entry, self.config, 0))
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


def protocol(bench: Bench, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Given frames of pixels to all frames of pixels, in blocks of each size."""
    import torch

    from megatron_videogpt.hub.common.fsq_codes import codes_of, ids_of

    given, new = options.frames
    video = torch.rand(
        1, 3, 4 * given - 3, 8 * options.side, 8 * options.side, generator=torch.Generator().manual_seed(0)
    )
    best: dict[int, dict[str, Any]] = {}
    for _ in range(options.repeat):
        for block in options.blocks:
            with torch.no_grad():
                began = time.perf_counter()
                ids = ids_of(bench.tokenizer.to_codes(video), LEVELS).flatten()
                encoding = time.perf_counter() - began
                found = bench.draw(block, ids, (given + new) * bench.cells)
                began = time.perf_counter()
                codes = codes_of(found.pop("tokens").view(1, given + new, options.side, options.side), LEVELS)
                bench.tokenizer.to_video(codes)
                found |= {"block": block, "encoding": encoding, "decoding": time.perf_counter() - began}
            found.pop("logits")
            found["whole"] = sum(found[part] for part in ("encoding", "passes", "noise", "drawing", "decoding"))
            best[block] = min(best.get(block, found), found, key=lambda one: one["passes"])
    return list(best.values())


def against_no_cache(bench: Bench, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One more frame after each number of given ones."""
    import torch

    results = []
    for history in options.histories:
        given = torch.randint(64_000, (history * bench.cells,), generator=torch.Generator().manual_seed(history))
        best: dict[bool, float] = {}
        for _ in range(options.repeat):
            logits = {}
            for cache in (True, False):
                found = bench.draw(options.blocks[0], given, (history + 1) * bench.cells, cache, filters=False)
                logits[cache] = torch.cat(found["logits"])
                best[cache] = min(best.get(cache, found["passes"]), found["passes"])
        error = float((logits[True] - logits[False]).abs().max() / logits[False].abs().max())
        results.append({"history": history, "with": best[True], "without": best[False], "error": error})
    return results


def tables(blocks: list[dict[str, Any]], lengths: list[dict[str, Any]], options: argparse.Namespace) -> str:
    """Markdown."""
    slowest = max(blocks, key=lambda one: one["passes"])
    columns = ["block", "steps", "passes s", "ms a step", "noise s", "filters, draws s", "encoding s", "decoding s"]
    lines = [*columns, "whole s", "passes, times as fast", "whole, times as fast"]
    text = [f"| {' | '.join(lines)} |", "|---" * len(lines) + "|"]
    for one in blocks:
        shown = [f"{one[key]:.2f}" for key in ("noise", "drawing", "encoding", "decoding", "whole")]
        ratios = [f"**{slowest[key] / one[key]:.2f}**" for key in ("passes", "whole")]
        passes = [f"{one['passes']:.2f}", f"{1e3 * one['passes'] / one['steps']:.1f}"]
        text.append(f"| {' | '.join([str(one['block']), str(one['steps']), *passes, *shown, *ratios])} |")
    if lengths:
        text += [
            "",
            "| frames given | with a cache s | without s | times as fast | difference of logits |",
            "|---" * 5 + "|",
        ]
    for one in lengths:
        ratio = one["without"] / one["with"]
        text.append(
            f"| {one['history']} | {one['with']:.2f} | {one['without']:.2f} | **{ratio:.2f}** | {one['error']:.0e} |"
        )
    return "\n".join(text)


def run(words: list[str]) -> None:
    """Measure and print."""
    options = arguments(words)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    import torch

    torch.set_num_threads(options.threads)
    from tools.benchmark_report import machine

    given, new = options.frames
    print(f"`python tools/benchmark_sampling.py {' '.join(words)}`\n\n{machine('cpu', options.threads)}\n")
    print(
        f"{options.layers} layers of {options.hidden}, {options.heads} heads, 64,000 words, float32; latent frames of "
        f"{options.side}x{options.side} tokens, {given} given and {new} drawn, batch 1; top-k {TOP_K}, top-p {TOP_P}; "
        f"tokenizer of width {options.tokenizer_width}\n",
        flush=True,
    )
    bench = Bench(options)
    # The first call of everything loads and allocates.
    bench.draw(options.blocks[0], torch.zeros(bench.cells).long(), 2 * bench.cells)
    blocks, lengths = protocol(bench, options), against_no_cache(bench, options)
    if options.json:
        options.json.write_text(json.dumps({"blocks": blocks, "lengths": lengths}), encoding="utf-8")
    print(tables(blocks, lengths, options))
    sys.stdout.flush()
