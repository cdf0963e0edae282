"""Options of what a sample is given beside the frames that it is to show."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.sections import option

IDS = "ids"
ENCODERS = ("clip", "t5", "words", IDS)
"""Text encoders that there are; see `build.build_encoder`."""
CAPTION, LABEL = "caption", "label"


@dataclass(frozen=True)
class ConditionConfig:
    """What tells the model which video to make: a class or a text, placed before the video, and frames given."""

    kind: str = option(
        "none",
        "what stands before a video: none, class (one learned token, chosen by the data's label) or text (tokens of a "
        "frozen encoder for the data's caption)",
    )
    classes: tuple[str, ...] = option(
        (),
        "names of the classes, numbered in this order; a label belongs to the class of its name, or of its leading "
        'parts: "bounce/left/fast" to "bounce/left" or "bounce"',
    )
    encoder: str = option(
        "clip",
        "text encoder: clip (a transformers CLIPTextModel), t5 (a T5EncoderModel), words (built in: a fixed vector "
        "for each word, for small tests) or ids (those of a tokenizer, for objectives with a vocabulary)",
        choices=ENCODERS,
    )
    encoder_path: str = option(
        "",
        "local folder of the text encoder and its tokenizer (config.json and safetensors; of ids tokenizer.json); "
        "unused by words",
        path=True,
    )
    width: int = option(
        0,
        "width of the text features, of ids how many there are; 0 asks the encoder's folder, which need not be there "
        "when features were computed in advance (megatron-videogpt data encode-text)",
    )
    max_tokens: int = option(77, "most tokens of a text; longer ones are cut")
    dropout: float = option(
        0.1, "share of the samples that are trained without their condition, for classifier-free guidance"
    )
    frames: tuple[int, int] = option(
        (0, 0),
        "smallest and largest number of latent frames at a sample's start that are given and not predicted, drawn "
        "uniformly; of data.frames",
    )

    tokens: int = option(8, "tokens of every text of the encoder ids: longer ones are cut, shorter ones padded")
    text_from: str = option(
        CAPTION,
        "what a text is: caption, or label (the name of the class folder as words, where there is one: "
        '"ApplyEyeMakeup" is "apply eye makeup")',
        choices=(CAPTION, LABEL),
    )

    @property
    def text_tokens(self) -> int:
        """Tokens of the longest text."""
        return self.tokens if self.encoder == IDS else self.max_tokens

    @property
    def most_tokens(self) -> int:
        """Tokens of the longest condition that a sample may have before its video."""
        return {"class": 1, "text": self.text_tokens}.get(self.kind, 0)


NONE = ConditionConfig()
"""Of runs and models without a condition."""
