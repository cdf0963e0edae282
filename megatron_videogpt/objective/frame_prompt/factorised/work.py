"""What a video asks of the factorised network: attended pairs of all masks in closed form, for numbers and for arrays
of videos alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ....codec.geometry import Geometry
from ....config.schema import Config, ModelConfig
from ....model.flops import attention_flops, linear_flops
from ...work import Number, Work, expectation
from .activations import Activations, activations
from .variant import FULL, PARTIAL, Variant

if TYPE_CHECKING:
    import numpy as np

    from ....data.plans import Plans


def pairs_of(variant: Variant, frames: Number, prompt: Number, patches: Number, words: Number | int = 0) -> Number:
    """(query, key) pairs that attend in one layer: in space, in time, to the prompt and to `words` tokens of a text.

    With 1 < prompt < `enhance_frames` a frame counts as often as it is listed.
    """
    total = frames * patches * patches + patches * _in_time(variant, frames, prompt)
    if variant.text_width:
        total = total + frames * patches * words
    if variant.enhance == "none":
        return total
    return total + patches * patches * _to_prompt(variant, frames, prompt)


def _in_time(variant: Variant, frames: Number, prompt: Number) -> Number:
    """Pairs of frames."""
    if variant.time == FULL:
        return frames * frames
    if variant.time == PARTIAL:
        return prompt * (prompt + 1) // 2 + (frames - prompt) * frames
    return frames * (frames + 1) // 2


def _to_prompt(variant: Variant, frames: Number, prompt: Number) -> Number:
    """Pairs of frames: given ones attend one, others `enhance_frames`, or the only one that there is."""
    if variant.enhance == "first_frame":
        return frames
    more = variant.enhance_frames - 1
    return frames + (frames - prompt) * more * (prompt > 1)


@dataclass(frozen=True)
class FactorisedWork:
    """`ObjectiveWork` of the factorised network: tokens are patches, and a text adds pairs alone.

    cell: pixels per side of a patch; frames: latent frames of a sample; prompts, chunk: as in the objective; weights:
    FLOPs of a token and of an attended pair; run: the configuration, None where nothing asks for memory.  Expectations
    take every text to be the longest.
    """

    variant: Variant
    cell: int
    frames: int
    prompts: tuple[int, ...]
    chunk: int
    weights: tuple[float, float]
    run: Config | None = None

    @property
    def blank(self) -> int:
        """See `ObjectiveWork`: one patch."""
        return 1

    @property
    def fingerprint(self) -> str:
        """See `ObjectiveWork`: beside its plan, how prompts are drawn."""
        return f"factorised {self.cell}/{','.join(map(str, self.prompts))}/{self.chunk}"

    def _patches(self, height: Number, width: Number) -> Number:
        return (height // self.cell) * (width // self.cell)

    def _work(self, prompt: Number, frames: Number, patches: Number, words: Number) -> Work[Number]:
        chunk = frames - prompt
        chunk = chunk - (chunk - self.chunk) * (chunk > self.chunk)
        cut = prompt + chunk
        return Work(cut * patches, pairs_of(self.variant, cut, prompt, patches, words), chunk * patches)

    def of(self, plans: Plans) -> Work[np.ndarray]:
        """See `ObjectiveWork`."""
        from ..prompts import prompt_lengths

        prompt = prompt_lengths(plans.key, plans.count, self.prompts)
        # One stands for no text.
        words = plans.prefix + (plans.prefix == 0)
        return self._work(prompt, plans.count, self._patches(plans.height, plans.width), words)

    def longest(self, frames: np.ndarray, sizes: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """See `ObjectiveWork`."""
        return self._longest(frames, self._patches(*sizes)).tokens

    def positions(self, frames: Number, sizes: tuple[Number, Number]) -> Number:
        """See `ObjectiveWork`: tokens have no positions of their own."""
        return 1 + 0 * frames

    def expected(self, frame: tuple[int, int]) -> Work[float]:
        """See `ObjectiveWork`."""
        lengths = [prompt for prompt in self.prompts if prompt < self.frames] or [0]
        words, patches = self.variant.text_tokens, self._patches(*frame)
        found = [self._work(prompt, self.frames, patches, words) for prompt in lengths]
        return expectation([(one, 1 / len(found)) for one in found])

    def largest(self, frame: tuple[int, int]) -> Work[float]:
        """See `ObjectiveWork`."""
        return self._longest(self.frames, self._patches(*frame))

    def _longest(self, frames: Number, patches: Number) -> Work[Number]:
        """Of the longest sequence: the longest prompt below the number of frames."""
        prompt = 0 * frames
        for length in self.prompts:
            # Ascending; arithmetic, as frames may be an array.
            prompt = prompt + (length - prompt) * (length < frames)
        return self._work(prompt, frames, patches, self.variant.text_tokens + 0 * frames)

    def facts(self, expected: tuple[int, int], largest: tuple[int, int]) -> list[tuple[str, str, str]]:
        """See `ObjectiveWork`."""
        lengths = [prompt for prompt in self.prompts if prompt < self.frames] or [0]
        facts = [
            ("prompt frames", f"{sum(lengths) / len(lengths):.1f}", f"{lengths[-1]:.1f}"),
            ("patches per frame", str(self._patches(*expected)), str(self._patches(*largest))),
        ]
        words = str(self.variant.text_tokens)
        if self.variant.text_width:
            facts.append(("text tokens", words, words))
        if self.run is not None and self.run.parallel.recompute != "auto":
            found = self.activations(largest)
            facts.append(("activations of a rank, these layers", "", f"{found.kept / 1e9:.3g} GB"))
            facts.append(("  and for moments", "", f"{found.working / 1e9:.3g} GB"))
        return facts

    def activations(self, frame: tuple[int, int]) -> Activations:
        """Of a rank in the longest micro-batch, which the estimates of a decoder's layers do not tell; the
        configuration's `parallel.recompute` must be resolved.
        """
        assert self.run is not None
        one, run = self.largest(frame), self.run
        samples = run.data.pack_tokens / one.tokens if run.data.pack_tokens else run.train.micro_batch_size
        units = samples * one.tokens / self._patches(*frame), samples * self.variant.text_tokens
        return activations(run, self.variant, one.times(samples), units)


def work_of(config: Config, codec: Geometry) -> FactorisedWork:
    """`FactorisedWork` of a run."""
    from .options import variant_of_run

    model, options = config.model, config.objective
    variant = variant_of_run(config)
    extra = _extra_weights(variant, model, codec.channels)
    return FactorisedWork(
        variant,
        codec.spatial_stride * model.patch_size,
        config.data.frames,
        options.prompts,
        options.chunk,
        (linear_flops(model, extra, 1), attention_flops(model, 1)),
        config,
    )


def _extra_weights(variant: Variant, model: ModelConfig, channels: int) -> float:
    """Weights that a token meets beside those of a plain decoder's layers: the other attentions, embedding and head.
    What is computed once a frame or a text token is left out.
    """
    width, values = model.hidden_size, channels * model.patch_size**2
    square = width * width
    per_layer = 4 * square * (1 + (variant.enhance != "none")) + 2 * square * (variant.text_width > 0)
    merge = width * (width + 1) * variant.mask_channel
    return model.num_layers * per_layer + merge + 3 * values * width
