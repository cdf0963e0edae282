"""What users of frame as prompt get wrong is one line that says the value, what was expected, and how to mend it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_videogpt.config.check import find_problems
from megatron_videogpt.config.load import ConfigError, load_config
from megatron_videogpt.config.schema import Config, SampleConfig
from megatron_videogpt.data.plans import Sample
from megatron_videogpt.errors import UserError
from megatron_videogpt.objective.frame_prompt.factorised.objective import FactorisedPrompt
from megatron_videogpt.objective.frame_prompt.factorised.rows import Text, assemble
from megatron_videogpt.objective.frame_prompt.sampler import FrameSampler
from tests import factorised_prompt as small

pytestmark = pytest.mark.usefixtures("platform")

RECIPES = Path(__file__).resolve().parents[2] / "examples" / "vidgpt"
DECODER, FACTORISED = ("physics",), ("physics_factorised",)
BOTH = DECODER + FACTORISED
ALIKE = ("objective.prompts=[1,4,8,12]", "objective.chunk=4", "sample.clips=[4,4]", "data.physics.size=64")
"""Of both, so that their lines are the same."""
WORDS = "condition.kind=text condition.encoder=words"
OPTIONS: list[tuple[tuple[str, ...], str, str]] = [
    # A prompt longer than the window, and windows that hold none.
    (BOTH, "sample.history=13", "sample.history = 13: must be at most 12, the prompt that a window of 16 frames holds"),
    (BOTH, "sample.window=17", "sample.window = 17: must be at most 16, the longest prompt of objective.prompts"),
    (BOTH, "sample.window=4", "sample.window = 4: must hold a frame of the prompt beside a chunk of 4 frames"),
    (BOTH, "sample.window=10", "sample.history = 8: must be at most 6, the prompt that a window of 10 frames holds"),
    # Prompts that cannot be, or that training has no frames for.
    (BOTH, "objective.prompts=[]", "objective.prompts = []: must have at least one entry"),
    (BOTH, "objective.prompts=[12,1]", "objective.prompts = [12, 1]: must be in ascending order, each once"),
    (BOTH, "objective.prompts=[-1,12]", "objective.prompts = [-1, 12]: must be at least 0"),
    (BOTH, "objective.prompts=[1,13] objective.factorised.places=17", "must leave a chunk of objective.chunk = 4"),
    (BOTH, "objective.chunk=0", "objective.chunk = 0: must be at least 1"),
    (BOTH, "data.min_frames=1", "data.min_frames = 1: must be 0, or above the shortest prompt"),
    # Of 1 < P < N frames, in training.
    (FACTORISED, "objective.prompts=[1,2,12]", "with 2 the first counts several times; leave out 2"),
    (FACTORISED, "objective.factorised.enhance_frames=5", "with 4 the first counts several times; leave out 4"),
    (FACTORISED, "objective.prompts=[0,12]", "which attends frames of the prompt; leave out 0"),
    # A text, or what stands for one, and nothing to follow.
    (BOTH, "sample.guidance=2", "sample.guidance = 2.0: must be 1 without a condition to follow"),
    (BOTH, "condition.kind=text condition.encoder=t5", 'condition.encoder_path = "": must name a local folder'),
    (BOTH, f"{WORDS} condition.width=5", "condition.width = 5: must be 0 or 64, the width of the encoder words"),
    (BOTH, f"{WORDS} condition.max_tokens=0", "condition.max_tokens = 0: must be at least 1"),
    (FACTORISED, 'condition.kind=class condition.classes=["a"]', 'condition.kind = "class": must be none, or text'),
    # Frames that are no whole patches.
    (FACTORISED, "model.patch_size=3", "data.physics.size = 64: must be a multiple of the codec's stride 8"),
    (
        BOTH,
        "data.source=videos data.path=x data.longest_side=96 data.size_multiple=24 model.patch_size=2",
        "data.size_multiple = 24",
    ),
    (FACTORISED, "data.physics.size=320", "model.position_table_size"),
    (FACTORISED, "sample.clips=[6]", "sample.clips = [6]: must be multiples of objective.chunk = 4"),
]


def cases() -> Iterator[tuple[str, str, str]]:
    for names, overrides, words in OPTIONS:
        # What only the one network has an option for.
        yield from ((name, overrides, words) for name in names)


def recipe(name: str, *given: str) -> Config:
    """A recipe, with `ALIKE` where `given` does not say otherwise."""
    named = {item.partition("=")[0] for item in given}
    rest = [item for item in ALIKE if item.partition("=")[0] not in named]
    return load_config(RECIPES / f"{name}.toml", [*rest, *given])


@pytest.mark.parametrize(("name", "overrides", "words"), list(cases()))
def test_options(name: str, overrides: str, words: str) -> None:
    given = [item for item in overrides.split() if name in FACTORISED or "factorised" not in item]
    try:
        lines = find_problems(recipe(name, *given), 1)
    except ConfigError as error:
        lines = list(error.problems)
    assert len(lines) == 1 and words in lines[0] and "\n" not in lines[0], lines


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("sample.history=56", "sample.history = 56: must be at most 12"),
        ("sample.window=80", "sample.window = 80: must be at most 16"),
        ("sample.guidance=3.0", "sample.guidance = 3.0: must be 1 without a condition to follow"),
    ],
)
def test_what_a_command_is_given_counts_though_it_is_the_default(name: str, option: str, words: str) -> None:
    """In a file it is as good as not said, and what the model has learned stands in its place."""
    config = recipe(name, option)
    assert find_problems(config, 1) == []
    lines = find_problems(config, 1, asked=[option.partition("=")[0]])
    assert len(lines) == 1 and lines[0].startswith(words)


@pytest.mark.parametrize("dropped", [False, True])
def test_a_text_in_training_for_a_model_without(dropped: bool) -> None:
    """From Python, past the options: the row is refused; a network with a text does without one by its table."""
    variant = small.VARIANTS["without"]
    objective = FactorisedPrompt(variant, 2, (1, 4), 2, 100)
    sample = Sample(1, "", torch.zeros(6, 4, 4, 4), None, (6,), condition=torch.zeros(3, 5), dropped=dropped)
    # What training reads for such a run has no condition; one is not looked at.
    assert not objective.prepare([sample], 1).context.keys() & {"words", "absent"}
    video = replace(objective.video(sample), text=Text(torch.zeros(3, 5), dropped=dropped))
    with pytest.raises(UserError, match="the model has no attention to a text; leave it out"):
        assemble([video], 1, variant, 2)


class Ready:
    """A first chunk of the network, as far as it is looked at before anything is computed."""

    def __init__(self, patch: int, channels: int) -> None:
        self.embedding = torch.nn.Module()
        self.embedding.patch = torch.nn.Linear(patch**2 * channels, 8)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((4, 4, 5, 8), "latents of 4 channels and 5x8: this model takes 4 channels and sides that are multiples of"),
        ((4, 4, 8, 7), "4 channels and 8x7"),
        ((4, 16, 8, 8), "latents of 16 channels and 8x8"),
    ],
)
def test_given_frames_of_another_size(shape: tuple[int, ...], words: str) -> None:
    """Among others that fit."""
    from megatron_videogpt.objective.frame_prompt.factorised.sampler import FactorisedSampler

    config = recipe("physics_factorised")
    samplers: list[Any] = [FactorisedSampler([Ready(2, 4)], config, torch.device("cpu"))]
    if shape[1] == 4:
        samplers.append(FrameSampler(None, 4, 16, 2))  # type: ignore[arg-type]
    given = [torch.zeros(4, 4, 8, 8), torch.zeros(*shape)]
    for sampler in samplers:
        with pytest.raises(UserError) as raised:
            next(sampler.rollout(given, replace(SampleConfig(), clips=(4,), window=16), [0, 1], 0))
        line = str(raised.value)
        assert "model.patch_size = 2; encode them with its own codec" in line and "\n" not in line
        assert words in line or isinstance(sampler, FrameSampler)


def test_what_the_factorised_sampler_cannot_do() -> None:
    from megatron_videogpt.objective.frame_prompt.factorised.sampler import FactorisedSampler

    config = recipe("physics_factorised")
    sampler = FactorisedSampler([Ready(2, 4)], config, torch.device("cpu"))
    fitting = replace(config.sample, clips=(4,), guidance=1.0, steps=2)
    for frames, more, words in (
        (4, {"clips": (6,)}, "use multiples of objective.chunk = 4"),
        (13, {}, "needs 1 to 12"),
        (0, {}, "no frames are given, and a model of objective.network = factorised goes on from some"),
        (4, {"steps": 1001}, "1 to 1000"),
    ):
        with pytest.raises(UserError, match=words) as raised:
            next(sampler.rollout([torch.zeros(frames, 4, 8, 8)], replace(fitting, **more), [0], 0))
        assert "\n" not in str(raised.value)
