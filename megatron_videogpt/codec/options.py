"""Options of the codecs."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.sections import option


@dataclass(frozen=True)
class CodecConfig:
    """What turns frames into latents and back."""

    name: str = option(
        "tiny",
        "tiny (shipped with the project), autoencoder_kl (diffusers AutoencoderKL), autoencoder_kl_wan "
        "(diffusers AutoencoderKLWan), fsq (tokenizer of next block prediction), tiny_fsq (a small one, shipped "
        "with the project), pixels (frames as they are, for a tokenizer to be trained on) or one of another "
        "distribution",
    )
    path: str = option(
        "", "local folder with the codec's config.json and safetensors; unused by tiny, tiny_fsq and pixels", path=True
    )
    batch_size: int = option(16, "frames per encoder or decoder call; lower it when memory is short")
