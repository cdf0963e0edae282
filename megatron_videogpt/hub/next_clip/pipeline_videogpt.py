"""`VideoGPTPipeline`: continue a video clip by clip, or make one of a class or a text, in the manner of diffusers;
needs torch, transformers and diffusers only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn

try:
    from ..common.frames_videogpt import (
        decode,
        encode,
        load_vae,
        one_line,
        pixel_multiple,
        write_code,
    )
    from ..common.sampling_videogpt import Noise, Settings, Step, rollout, sigmas
    from ..common.videos_videogpt import resize_frames, to_videos
    from .conditions_videogpt import conditions_of, nothing, spread_over
    from .denoiser_videogpt import denoiser_of
    from .modeling_videogpt import VideoGPTModel
except ImportError:  # the folder itself is on sys.path
    from conditions_videogpt import conditions_of, nothing, spread_over  # type: ignore[no-redef]
    from denoiser_videogpt import denoiser_of  # type: ignore[no-redef]
    from frames_videogpt import decode, encode, load_vae, one_line, pixel_multiple, write_code  # type: ignore[no-redef]
    from modeling_videogpt import VideoGPTModel  # type: ignore[no-redef]
    from sampling_videogpt import Noise, Settings, Step, rollout, sigmas  # type: ignore[no-redef]
    from videos_videogpt import resize_frames, to_videos  # type: ignore[no-redef]

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass
class VideoGPTPipelineOutput(BaseOutput):
    """frames: per video its new frames, without those that were given: a list of PIL images ("pil"), float32 arrays
    ``[F, H, W, 3]`` ("np") or tensors ``[F, 3, H, W]`` ("pt") in [0, 1], or scaled latents ``[f, C, h, w]`` ("latent").
    """

    frames: list[Any]


class VideoGPTPipeline(DiffusionPipeline):
    """A `VideoGPTModel` and the VAE whose latents it was trained on."""

    # The VAE comes last: its small weights stay while clips are made, and the model leaves before their pixels are.
    model_cpu_offload_seq = "model->vae"
    _optional_components = ["model", "vae"]

    # Without types, which diffusers below 0.37 cannot read as this file has them: it then lacks the component.
    def __init__(self, model=None, vae=None) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.register_modules(model=model, vae=vae)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        dtype: torch.dtype | None = None,
        vae_dtype: torch.dtype | None = None,
        vae: nn.Module | None = None,
    ) -> VideoGPTPipeline:
        """The pipeline of a local folder: the model at its root, the VAE in `vae/`.

        Args:
            pretrained_model_name_or_path: the folder (nothing is downloaded: `huggingface_hub.snapshot_download` does
                that).
            dtype: of the model; None for that of the file.
            vae_dtype: of the VAE; None for float32.
            vae: one to use instead of the folder's.

        Raises:
            ValueError: no such folder, a weight that is missing, or a VAE that cannot be read.
        """
        folder = Path(pretrained_model_name_or_path)
        if not (folder / "config.json").is_file():
            raise ValueError(
                f"{folder}: no folder with a config.json; a repository of the Hub: pass what "
                "huggingface_hub.snapshot_download returns"
            )
        codec = load_vae(folder / "vae", vae_dtype) if vae is None else vae
        try:
            options = {
                "dtype": dtype or "auto",
                "use_safetensors": True,
                "local_files_only": True,
                "output_loading_info": True,
            }
            model, report = VideoGPTModel.from_pretrained(folder, **options)
        except (OSError, RuntimeError, TypeError, KeyError, SafetensorError) as error:
            raise ValueError(
                f"{folder}: its weights do not load into the model of its config.json ({one_line(error)})"
            ) from error
        if report["missing_keys"]:
            # transformers fills them with random numbers and only warns.
            missing = sorted(report["missing_keys"])
            raise ValueError(f"{folder}: {len(missing)} weights are missing, {missing[0]} for one")
        return cls(model.eval(), codec)

    def save_pretrained(self, save_directory: str | Path, max_shard_size: int | str = "5GB") -> None:
        """Write a folder that `from_pretrained`, and AutoModel, read: weights, settings, the VAE and
        the Python files.
        """
        model, vae, folder = *self._parts(), Path(save_directory)
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        vae.save_pretrained(folder / "vae")
        write_code(folder, type(vae).__name__, Path(__file__).parent)

    def enable_sequential_cpu_offload(
        self, gpu_id: int | None = None, device: torch.device | str | None = None
    ) -> None:
        """Not supported: raises ValueError."""
        raise ValueError(
            "enable_sequential_cpu_offload is not supported (the model reads single weights outside of its "
            "layers' calls): "
            "use enable_model_cpu_offload, which needs room for the model alone, and cache_offload=True"
        )

    @torch.no_grad()
    def __call__(
        self,
        video: Any = None,
        clips: Sequence[int] = (8,),
        num_inference_steps: int = 50,
        guidance_scale: float = 3.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        guidance_schedule: Sequence[tuple[float, float]] = (),
        history_noise: float = 0.0,
        time_shift: float = 1.0,
        window: int = 80,
        longest_side: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        cache: bool = True,
        cache_dtype: torch.dtype | None = None,
        cache_offload: bool = False,
        callback_on_step_end: Callable[[Any, int, float, dict[str, list[Tensor]]], Any] | None = None,
        class_labels: str | int | Sequence[str | int] | None = None,
        prompt_embeds: Tensor | Sequence[Tensor] | None = None,
        height: int | None = None,
        width: int | None = None,
    ) -> VideoGPTPipelineOutput | tuple[list[Any]]:
        """Continue one video or several, or make them from nothing.

        Args:
            video: None for videos from nothing, as many as there are `class_labels` or `prompt_embeds`; or PIL images,
                an array or tensor ``[F, H, W, 3]`` (uint8, or any floating dtype in [0, 1]), a single picture, or a
                list of videos.
            clips: frames of each new clip, in order (latent frames, for a VAE with temporal stride).
            num_inference_steps: Euler steps per clip.
            guidance_scale: classifier-free guidance by history and condition together, 1 for none.
            generator: one for all videos, or one a video, whose result then does not depend on the others.
            guidance_schedule: (t, scale) pairs in ascending order of t: other scales from noise level t on, t from 0
                (noise) to 1 (data).
            history_noise: share of noise mixed into the history from the second clip on.
            time_shift: time shifting factor of the noise levels, 1 leaves them even.
            window: most frames, history and clip together, that the model sees at once; above the longest clip.
            longest_side: pixels that the longer side is resized to; None for that of the model's config.json.
            output_type: "pil", "np", "pt" or "latent"; see `VideoGPTPipelineOutput`.
            return_dict: False for a plain tuple.
            cache: keep keys and values of the history; without, the result is the same and takes several times as long.
            cache_dtype: of the cache, None for that of the weights; cache_offload: keep it in host memory.
            callback_on_step_end: called as ``callback(pipeline, step, t, {"latents": [...]})`` after every step, with
                steps counted over all clips; it may look, or raise; latents that it replaces are not taken over.
            class_labels: of models that were trained with classes: their names or numbers, one for all videos, or one
                a video.
            prompt_embeds: of models that were trained with texts: features ``[T, E]`` of a text by the encoder that
                they were trained with, real tokens only, one for all videos, or one a video.
            height, width: of videos from nothing, in pixels; None for a square of `longest_side`.

        Raises:
            ValueError: one line, before anything is computed where it can be known.
        """
        model, vae = self._parts()
        settings = Settings(
            tuple(clips),
            window,
            num_inference_steps,
            guidance_scale,
            tuple(guidance_schedule),
            history_noise,
            time_shift,
        )
        settings.check()
        if not cache and (cache_dtype is not None or cache_offload):
            raise ValueError(
                f"cache=False with cache_dtype={cache_dtype}, cache_offload={cache_offload}: there is no "
                "cache; leave them out"
            )
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type={output_type!r}: choose {', '.join(OUTPUT_TYPES)}")
        multiple = pixel_multiple(vae, model.config.patch_size)
        side = longest_side or model.config.longest_side
        shown = conditions_of(model.config, class_labels, prompt_embeds)
        videos = [] if video is None else [resize_frames(frames, side, multiple) for frames in to_videos(video)]
        count = len(shown) if video is None else len(videos)
        conditions = spread_over(shown, count)
        empty = None if videos else nothing(model.config, multiple, height or side, width or side)
        if isinstance(generator, (list, tuple)) and len(generator) != count:
            raise ValueError(
                f"generator: {len(generator)} generators for {count} videos; pass one for all, or one a video"
            )
        device = self._execution_device
        histories = [encode(vae, frames).to(device) for frames in videos]
        histories = histories if empty is None else [empty.to(device)] * count
        told = [None if condition is None else condition.to(device) for condition in conditions]
        denoiser = denoiser_of(model, cache, cache_dtype, cache_offload)
        new: list[list[Tensor]] = []
        with self.progress_bar(total=len(settings.clips) * settings.steps) as bar:
            watch = _Watch(self, bar, settings, callback_on_step_end)
            for clip in rollout(denoiser, histories, settings, _noise(generator, device), watch.step, told):
                watch.finish(clip)
                new.append(clip)
        latents = [torch.cat(parts) for parts in zip(*new)]
        frames = (
            latents
            if output_type == "latent"
            else [_shown(decode(vae, *pair), output_type) for pair in zip(histories, latents)]
        )
        self.maybe_free_model_hooks()
        return VideoGPTPipelineOutput(frames) if return_dict else (frames,)

    def _parts(self) -> tuple[Any, Any]:
        if self.model is None or self.vae is None:
            raise ValueError(
                "this pipeline has no model or no VAE: load it with VideoGPTPipeline.from_pretrained, or "
                "pass model=... and vae=..."
            )
        return self.model, self.vae


class _Watch:
    """Turns the sampler's reports, made before each step, into reports made after each step."""

    def __init__(
        self, pipeline: VideoGPTPipeline, bar: Any, settings: Settings, callback: Callable[..., Any] | None
    ) -> None:
        self.pipeline, self.bar, self.callback = pipeline, bar, callback
        self.levels, self.done = sigmas(settings.steps, settings.time_shift), 0

    def step(self, step: Step) -> None:
        """The latents before a step are those after the one before it."""
        if step.number:
            self.finish(step.z)

    def finish(self, latents: list[Tensor]) -> None:
        """A step is over."""
        if self.callback is not None:
            self.callback(
                self.pipeline, self.done, float(self.levels[self.done % (len(self.levels) - 1)]), {"latents": latents}
            )
        self.done += 1
        self.bar.update()


def _noise(generator: torch.Generator | list[torch.Generator] | None, device: torch.device) -> Noise:
    def noise(video: int, clip: int, purpose: str, shape: tuple[int, ...]) -> Tensor:
        own = generator[video] if isinstance(generator, (list, tuple)) else generator
        return randn_tensor(shape, generator=own, device=device, dtype=torch.float32)

    return noise


def _shown(pixels: Tensor, output_type: str) -> Any:
    """``[F, 3, H, W]`` in [0, 1] -> what the user asked for."""
    if output_type == "pt":
        return pixels
    values = pixels.permute(0, 2, 3, 1).cpu().numpy()
    return (
        values if output_type == "np" else [Image.fromarray(frame) for frame in (values * 255).round().astype(np.uint8)]
    )
