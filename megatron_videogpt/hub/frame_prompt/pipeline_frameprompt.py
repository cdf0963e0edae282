"""`FramePromptPipeline`: continue videos chunk by chunk, with their finished frames as prompt; needs torch,
transformers, diffusers, safetensors, numpy and Pillow only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn

try:
    from ..common.ddpm_solvers import solver_of
    from ..common.frames_videogpt import decode, encode, load_vae, one_line, pixel_multiple
    from ..common.videos_videogpt import to_videos
    from .configuration_frameprompt import FramePromptConfig
    from .memory_frameprompt import memory_of
    from .modeling_frameprompt import FramePromptModel
    from .rules_frameprompt import ROPE, prefix_lengths
    from .sampling_frameprompt import Chunks, Noise, Step, prompt_blur, rollout
except ImportError:  # the folder itself is on sys.path
    from configuration_frameprompt import FramePromptConfig  # type: ignore[no-redef]
    from ddpm_solvers import solver_of  # type: ignore[no-redef]
    from frames_videogpt import decode, encode, load_vae, one_line, pixel_multiple  # type: ignore[no-redef]
    from memory_frameprompt import memory_of  # type: ignore[no-redef]
    from modeling_frameprompt import FramePromptModel  # type: ignore[no-redef]
    from rules_frameprompt import ROPE, prefix_lengths  # type: ignore[no-redef]
    from sampling_frameprompt import Chunks, Noise, Step, prompt_blur, rollout  # type: ignore[no-redef]
    from videos_videogpt import to_videos  # type: ignore[no-redef]

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


class FramePromptPipeline:
    """A model and its VAE."""

    def __init__(self, model: FramePromptModel, vae: nn.Module) -> None:
        self.model, self.vae = model.eval(), vae

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, dtype: torch.dtype | None = None, vae: nn.Module | None = None
    ) -> FramePromptPipeline:
        """Of a local folder: the model at its root, the VAE in `vae/`.

        Args:
            dtype: of the model, None for float32; vae: one to use instead of the folder's.

        Raises:
            ValueError: one line: what is missing, or does not load.
        """
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise ValueError(f"{folder}: no folder with a config.json; pass one that holds a model")
        try:
            options = {"use_safetensors": True, "local_files_only": True, "output_loading_info": True}
            model, report = FramePromptModel.from_pretrained(folder, **options)
        except (OSError, RuntimeError, TypeError, KeyError, SafetensorError) as error:
            raise ValueError(
                f"{folder}: its weights do not load into the model of its config.json ({one_line(error)})"
            ) from error
        wrong = sorted([*report["missing_keys"], *report["unexpected_keys"]])
        if wrong:
            # transformers fills what is missing with random numbers, and only warns.
            raise ValueError(
                f"{folder}: weights of another variant than its config.json: {len(wrong)} differ, {wrong[0]}"
            )
        return cls(model.to(dtype or torch.float32), load_vae(folder / "vae", None) if vae is None else vae)

    def to(self, device: torch.device | str) -> FramePromptPipeline:
        """Both to a device."""
        self.model.to(device)
        self.vae.to(device)
        return self

    @torch.no_grad()
    def __call__(
        self,
        video: Any,
        chunks: int = 1,
        given: int | None = None,
        window: int | None = None,
        num_inference_steps: int = 100,
        solver: str = "ddpm",
        eta: float = 0.0,
        prompt_noise: int = 50,
        guidance_scale: float = 1.0,
        prompt_embeds: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        cache: bool = True,
        generator: torch.Generator | None = None,
        output_type: str = "pil",
        observer: Callable[[Step], None] | None = None,
    ) -> list[Any]:
        """Continue one video or several.

        Args:
            video: PIL images, an array or tensor ``[F, H, W, 3]`` (uint8, or any floating dtype in [0, 1]), a single
                picture, or a list of videos with equally many frames; scaled and cropped to the model's size.
            chunks: how many, of `config.chunk` frames each.
            given: frames of the video's end that are the first prompt; None for as many as the longest prompt of
                training that they make up.
            window: most frames of prompt; None for as many as the table of positions has room for beside a chunk.
            num_inference_steps: of the 1000 of the schedule; solver: ddpm, or ddim with `eta` of its noise.
            prompt_noise: step of the noise in the prompt, 0 for none; released models were trained with 100 and sampled
                with 50.
            guidance_scale: of a text, 1 for none.
            prompt_embeds: features of texts ``[B, N, channels]``, of models with text; prompt_mask: ``[B, N]``, not 0
                where they are real.
            cache: keep keys and values of finished frames: several times as fast.  Once the window moves, they still
                carry what their frames saw of frames that are gone, and the result differs.
            generator: of all noise, on the CPU.
            output_type: "pil", "np" (uint8 ``[F, H, W, 3]``), "pt" (float32 ``[F, 3, H, W]`` in [0, 1]) or "latent".

        Returns:
            The new frames of each video.

        Raises:
            ValueError: one line, before anything is computed where it can be known.
        """
        config, device = self.model.config, self.model.device
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type={output_type!r}: choose {', '.join(OUTPUT_TYPES)}")
        steps = solver_of(solver, num_inference_steps, eta)
        blur = prompt_blur(steps.schedule, prompt_noise)
        settings = Chunks(config.chunk, chunks, checked_window(config, window), guidance_scale)
        history = self._latents(video).to(device)
        history = history[:, -_given(config, history.shape[1], settings.window, given) :]
        settings.check(history.shape[1])
        text, mask = (None if value is None else value.to(device) for value in (prompt_embeds, prompt_mask))
        if text is not None and len(text) != len(history):
            raise ValueError(f"prompt_embeds: {len(text)} texts for {len(history)} videos; pass one a video")
        memory = memory_of(self.model, settings.window, cache, text, mask, guidance_scale != 1)
        made = rollout(memory, history, settings, steps, _noise(generator), blur, observer)
        latents = torch.cat(list(made), 1)
        if output_type == "latent":
            return list(latents)
        return [shown(decode(self.vae, *pair), output_type) for pair in zip(history, latents)]

    def _latents(self, video: Any) -> Tensor:
        """``[B, F, C, h, w]``, of the mean of the VAE's posterior."""
        config, multiple = self.model.config, pixel_multiple(self.vae, 1)
        height, width = (multiple * size for size in config.input_size)
        latents = [encode(self.vae, fitted(frames, height, width)) for frames in to_videos(video)]
        counts = {len(frames) for frames in latents}
        if len(counts) > 1:
            raise ValueError(f"video: videos of {sorted(counts)} latent frames; pass videos of equally many")
        return torch.stack(latents)


def checked_window(config: FramePromptConfig, window: int | None) -> int:
    """Frames of prompt; ValueError where cyclic positions would not tell all frames apart."""
    room = config.max_tpe_len - config.chunk
    if config.relative_tpe_mode != ROPE and room < (window or 1):
        raise ValueError(
            f"window={window}: {config.max_tpe_len} positions have room for {max(room, 0)} frames of prompt beside a "
            f"chunk of {config.chunk}"
        )
    return room if window is None else window


def _given(config: FramePromptConfig, frames: int, window: int, given: int | None) -> int:
    """Frames of the first prompt."""
    if given is not None and not 1 <= given <= min(frames, window):
        raise ValueError(
            f"given={given}: the video has {frames} frames, and the window {window}; expected 1 to the lesser"
        )
    return prefix_lengths(1, config.chunk, min(frames, window) + 1)[-1] if given is None else given


def _noise(generator: torch.Generator | None) -> Noise:
    return lambda video, chunk, purpose, shape: torch.randn(shape, generator=generator)


def fitted(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """``[F, H, W, 3]`` in 0 to 255, scaled bilinearly until they cover a size and cropped to its centre, float32."""
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float()
    scale = max(height / pixels.shape[2], width / pixels.shape[3])
    size = [math.ceil(round(side * scale, 6)) for side in pixels.shape[2:]]
    if size != list(pixels.shape[2:]):
        pixels = F.interpolate(pixels, size, mode="bilinear", align_corners=False)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return pixels[:, :, top : top + height, left : left + width].permute(0, 2, 3, 1).numpy()


def shown(pixels: Tensor, output_type: str) -> Any:
    """``[F, 3, H, W]`` in [0, 1] as the user asked for them."""
    if output_type == "pt":
        return pixels.cpu()
    values = (pixels.permute(0, 2, 3, 1).cpu().numpy() * 255).round().astype(np.uint8)
    return values if output_type == "np" else [Image.fromarray(frame) for frame in values]
