"""What a training sequence of frame as prompt asks for: closed forms of its layout and mask.  No NumPy at the top:
`check` asks, and importing it would take much of its time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...codec.geometry import Geometry
from ...config.schema import Config
from ...model.flops import attention_flops, linear_flops
from ..flow_parameters import flow_end_weights
from ..work import Number, ObjectiveWork, Work, expectation
from .factorised.options import FACTORISED
from .factorised.work import work_of as factorised_work

if TYPE_CHECKING:
    import numpy as np

    from ...data.plans import Plans


@dataclass(frozen=True)
class FramePromptWork:
    """`ObjectiveWork` of frame as prompt.

    cell: pixels per side of a patch, the codec's stride times `model.patch_size`; frames: latent frames of a sample;
    prompts, chunk: as in the objective; weights: FLOPs of a token and of an attended pair; prefix: most tokens of a
    condition, which expectations take every text to have; dropped: share of samples without a condition.
    """

    cell: int
    frames: int
    prompts: tuple[int, ...]
    chunk: int
    weights: tuple[float, float]
    prefix: int = 0
    dropped: float = 0.0

    @property
    def blank(self) -> int:
        """See `ObjectiveWork.blank`: one noisy frame of one patch."""
        return 3

    @property
    def fingerprint(self) -> str:
        """See `ObjectiveWork`: beside its plan, how prompts are drawn."""
        return f"{self.cell}/{','.join(map(str, self.prompts))}/{self.chunk}"

    def patches(self, height: Number, width: Number) -> Number:
        """Tokens of a frame's picture; height, width: in pixels."""
        return (height // self.cell) * (width // self.cell)

    def of(self, plans: Plans) -> Work[np.ndarray]:
        """See `ObjectiveWork`."""
        from .prompts import prompt_lengths

        prompt = prompt_lengths(plans.key, plans.count, self.prompts)
        chunk = _least(plans.count - prompt, self.chunk)
        patches = self.patches(plans.height, plans.width)
        return frames_work(prompt, chunk, patches, plans.prefix * ~plans.dropped)

    def longest(self, frames: np.ndarray, sizes: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """See `ObjectiveWork`."""
        return self._longest(frames, self.patches(*sizes)).tokens

    def positions(self, frames: Number, sizes: tuple[Number, Number]) -> Number:
        """See `ObjectiveWork`: a token's position is its place."""
        return self._longest(frames, self.patches(*sizes)).tokens

    def expected(self, frame: tuple[int, int]) -> Work[float]:
        """See `ObjectiveWork`."""
        patches, lengths = float(self.patches(*frame)), self._drawn
        parts = []
        for prompt in lengths:
            chunk, share = min(self.chunk, self.frames - prompt), self.dropped if self.prefix else 0.0
            parts.append((frames_work(float(prompt), float(chunk), patches, 0.0), share / len(lengths)))
            kept = frames_work(float(prompt), float(chunk), patches, float(self.prefix))
            parts.append((kept, (1 - share) / len(lengths)))
        return expectation(parts)

    def largest(self, frame: tuple[int, int]) -> Work[float]:
        """See `ObjectiveWork`."""
        return self._longest(self.frames, self.patches(*frame))

    def facts(self, expected: tuple[int, int], largest: tuple[int, int]) -> list[tuple[str, str, str]]:
        """See `ObjectiveWork`."""
        lengths = self._drawn
        mean, chunks = sum(lengths) / len(lengths), [min(self.chunk, self.frames - prompt) for prompt in lengths]
        facts = [
            ("prompt frames", f"{mean:.1f}", f"{lengths[-1]:.1f}"),
            ("noisy frames", f"{sum(chunks) / len(chunks):.1f}", f"{chunks[-1]:.1f}"),
            ("patches per frame", str(self.patches(*expected)), str(self.patches(*largest))),
        ]
        if self.prefix:
            facts.append(("condition tokens", f"{self.prefix * (1 - self.dropped):.1f}", f"{self.prefix:.1f}"))
        return facts

    @property
    def _drawn(self) -> tuple[int, ...]:
        """Lengths of a prompt in samples of all frames."""
        return tuple(length for length in self.prompts if length < self.frames) or (0,)

    def _longest(self, frames: Number, patches: Number) -> Work[Number]:
        """Of the longest sequence: the longest prompt below the number of frames."""
        prompt = 0 * frames
        for length in self.prompts:
            # Ascending; arithmetic, as frames may be an array.
            prompt = prompt + (length - prompt) * (length < frames)
        return frames_work(prompt, _least(frames - prompt, self.chunk), patches, self.prefix + 0 * frames)


def work_of(config: Config, codec: Geometry) -> ObjectiveWork:
    """See `objective.build`."""
    if config.objective.network == FACTORISED:
        return factorised_work(config, codec)
    return decoder_work(config, codec)


def decoder_work(config: Config, codec: Geometry) -> FramePromptWork:
    """`FramePromptWork` of a run."""
    model, options, condition = config.model, config.objective, config.condition
    lengths = [prompt for prompt in options.prompts if prompt < config.data.frames] or [0]
    chunks = [min(options.chunk, config.data.frames - prompt) for prompt in lengths]
    ends = flow_end_weights(model, codec.channels, sum(chunks) / (sum(chunks) + sum(lengths)))
    return FramePromptWork(
        codec.spatial_stride * model.patch_size,
        config.data.frames,
        options.prompts,
        options.chunk,
        (linear_flops(model, ends, 1), attention_flops(model, 1)),
        condition.most_tokens,
        condition.dropout,
    )


def frames_work(prompt: Number, chunk: Number, patches: Number, prefix: Number) -> Work[Number]:
    """Of a sequence with so many frames of each kind, patches of a frame, and tokens of a prefix, which see each other
    and are seen by all.
    """
    block, frames = patches + 2, prompt + chunk
    tokens = prefix + frames * block
    # Frame f of those from 0 sees the prefix and f + 1 frames, each token of it.
    pairs = prefix * prefix + block * (frames * prefix + block * (frames * (frames + 1) // 2))
    seen = chunk * prefix + block * (frames * (frames + 1) - prompt * (prompt + 1)) // 2
    return Work(tokens, pairs, chunk * patches, patches * seen)


def _least(first: Number, second: int) -> Number:
    """The smaller of two, for numbers and arrays alike."""
    return first - (first - second) * (first > second)
