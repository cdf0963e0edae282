"""`NextBlockPipeline`: continue a video, or make one of a class or a text, block by block; needs torch, transformers,
safetensors, numpy and Pillow only.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

try:
    from ..common.fsq_tokenizer import FSQTokenizer
    from ..common.text_ids import FILE, FOLDER, reader
    from ..common.videos_videogpt import to_videos
    from .configuration_nextblock import NextBlockConfig
    from .modeling_nextblock import NextBlockCache, NextBlockModel
    from .sampling_nextblock import UNKNOWN, Drawing, Video, draw_tokens
except ImportError:  # the folder itself is on sys.path
    from configuration_nextblock import NextBlockConfig  # type: ignore[no-redef]
    from fsq_tokenizer import FSQTokenizer  # type: ignore[no-redef]
    from modeling_nextblock import NextBlockCache, NextBlockModel  # type: ignore[no-redef]
    from sampling_nextblock import UNKNOWN, Drawing, Video, draw_tokens  # type: ignore[no-redef]
    from text_ids import FILE, FOLDER, reader  # type: ignore[no-redef]
    from videos_videogpt import to_videos  # type: ignore[no-redef]

OUTPUT_TYPES = ("pil", "np", "pt", "ids")
STRIDE = 8  # pixels per side of a token
STEP = 4  # frames of a latent frame, but the first


class CachedModel:
    """A model as the sampler asks it (`sampling_nextblock.Model`): all videos go in step, and what they have been given
    is remembered.
    """

    def __init__(self, model: NextBlockModel, most: int) -> None:
        self.model, self.cache = model, NextBlockCache(most)

    def logits(self, inputs: dict[int, Tensor], rows: dict[int, int], guided: bool) -> dict[int, list[Tensor]]:
        """See `sampling_nextblock.Model`; inputs of one length, each beginning with the one before."""
        (count,) = set(rows.values())
        ids = torch.stack(list(inputs.values()))[:, self.cache.length :].to(self.model.device)
        dropped = None
        if guided:
            dropped = torch.arange(2 * len(ids), device=ids.device) >= len(ids)
            ids = ids.repeat(2, 1)
        logits = self.model(ids, self.cache, dropped, count).logits
        return {number: list(logits[place :: len(inputs)]) for place, number in enumerate(inputs)}


class NextBlockPipeline:
    """A model and its tokenizer.  text: what makes ids of a text, None where only ids can be given."""

    def __init__(
        self, model: NextBlockModel, tokenizer: FSQTokenizer, text: Callable[[str], list[int]] | None = None
    ) -> None:
        self.model, self.tokenizer, self.text = model.eval(), tokenizer, text

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, dtype: torch.dtype | None = None, text_tokenizer: str | Path | None = None
    ) -> NextBlockPipeline:
        """Of an exported folder; dtype: of the model, None for float32; text_tokenizer: a folder with the
        tokenizer.json of its texts, None for the one in it, if any.  ValueError where its tokenizer is not there, or
        has other codes than the model.
        """
        folder = Path(folder)
        if not (folder / "tokenizer" / "config.json").is_file():
            raise ValueError(f"{folder}: no tokenizer in it; pixels need one, put the FSQ tokenizer's folder there")
        model = NextBlockModel.from_pretrained(folder).to(dtype or torch.float32)
        tokenizer = FSQTokenizer.from_pretrained(folder / "tokenizer")
        if tokenizer.shape.codebook_size != model.config.codes:
            raise ValueError(
                f"{folder}: a model of {model.config.codes} codes, and a tokenizer of {tokenizer.shape.codebook_size}; "
                "put the tokenizer there that it was trained with"
            )
        text, beside = None, folder / FOLDER
        if text_tokenizer is not None or (beside / FILE).is_file():
            text = reader(beside if text_tokenizer is None else text_tokenizer, model.config.prefix)
        return cls(model, tokenizer, text)

    def to(self, device: torch.device | str) -> NextBlockPipeline:
        """Both to a device."""
        self.model.to(device)
        self.tokenizer.to(device)
        return self

    @torch.no_grad()
    def __call__(
        self,
        video: Any = None,
        class_labels: str | int | Sequence[str | int] | None = None,
        texts: str | Sequence[int] | Sequence[str | Sequence[int]] | None = None,
        latent: Sequence[int] | None = None,
        temperature: float = 1.0,
        top_k: int = 16000,
        top_p: float = 0.9,
        guidance: float = 0.0,
        growing: bool = False,
        generator: torch.Generator | None = None,
        output_type: str = "pil",
    ) -> list[Any]:
        """Continue one video or several, or make one of each class or text.

        Args:
            video: None for videos from nothing; or PIL images, an array or tensor ``[F, H, W, 3]`` (uint8, or any
                floating dtype in [0, 1]), a single picture, or a list of videos with equally many frames; its last
                frames are taken, 1 + 4n, and cropped and resized.
            class_labels: of models that were trained with classes: names or numbers, one for all videos, or one a
                video.
            texts: likewise, of models that were trained with texts: texts, or the `prefix` ids of each.
            latent: frames, rows and columns of the whole video in tokens; None for those that the model was trained on.
            temperature: 0 takes the likeliest id; top_k, top_p: see `sampling_nextblock.Drawing`; 0 and 1 for none.
            guidance: t in (1 + t) conditional - t unconditional; growing: times the number of the step.
            generator: of the draws, on the CPU.
            output_type: "pil", "np" (uint8 ``[F, H, W, 3]``), "pt" (float32 ``[F, 3, H, W]`` in [0, 1]) or "ids" (codes
                int64 ``[frames, rows, columns]``).

        Returns:
            A whole video each, the given frames as the tokenizer gives them back.

        Raises:
            ValueError: one line, before anything is computed.
        """
        config = self.model.config
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type={output_type!r}: choose {', '.join(OUTPUT_TYPES)}")
        grid = grid_of(config, latent)
        videos = [] if video is None else to_videos(video)
        shown = conditions_of(config, class_labels, texts, self.text)
        conditions = spread_over(shown, len(videos))
        if not videos and config.mode != "hybrid":
            raise ValueError(f"video: a model of mode {config.mode} needs the first frames of a video")
        tokens = torch.full((len(conditions), grid[0], grid[1] * grid[2]), UNKNOWN)
        if videos:
            given = self._codes(videos, grid)
            tokens[:, : given.shape[1]] = given.flatten(2) + config.code_offset
        order = block_order(grid, config)
        work = [
            Video(told, ids.flatten()[order], config.block, config.mode == "hybrid")
            for told, ids in zip(conditions, tokens)
        ]
        how = Drawing(temperature, top_k, top_p, guidance, growing)

        def noise(number: int, place: int, count: int) -> Tensor:
            return torch.empty(count, config.vocab_size).exponential_(generator=generator)

        draw_tokens(CachedModel(self.model, config.prefix + len(order)), work, how, noise)
        codes = torch.empty(len(work), len(order), dtype=torch.int64)
        codes[:, order] = torch.stack([item.tokens for item in work])
        # A drawn id of a condition or a special token is code 0.
        codes = (codes - config.code_offset).clamp(0, config.codes - 1).view(-1, *grid)
        return list(codes) if output_type == "ids" else [self._shown(one, output_type) for one in codes]

    def _codes(self, videos: list[np.ndarray], grid: tuple[int, int, int]) -> Tensor:
        """int64 ``[B, f, h, w]`` of the last frames of videos, at most all latent frames but one."""
        counts = {len(frames) for frames in videos}
        if len(counts) > 1:
            raise ValueError(f"video: videos of {sorted(counts)} frames; pass videos of equally many")
        if grid[0] < 2:
            raise ValueError(f"latent={list(grid)}: nothing is left to predict")
        latent = min((counts.pop() - 1) // STEP + 1, grid[0] - 1)
        kept = [frames[len(frames) - 1 - STEP * (latent - 1) :] for frames in videos]
        pixels = np.stack([fitted(frames, STRIDE * grid[1], STRIDE * grid[2]) for frames in kept])
        ready = torch.from_numpy(pixels).permute(0, 4, 1, 2, 3).float() / 255
        return self.tokenizer.encode(ready.to(self.model.device)).cpu()

    def _shown(self, codes: Tensor, output_type: str) -> Any:
        pixels = self.tokenizer.decode(codes[None].to(self.model.device))[0].transpose(0, 1).cpu()
        if output_type == "pt":
            return pixels
        values = (pixels.permute(0, 2, 3, 1).numpy() * 255).round().astype(np.uint8)
        return values if output_type == "np" else [Image.fromarray(frame) for frame in values]


def grid_of(config: NextBlockConfig, latent: Sequence[int] | None) -> tuple[int, int, int]:
    """Frames, rows and columns of a video in tokens; ValueError where blocks do not divide it, or it has too many."""
    grid = latent if latent is not None else config.latent
    if grid is None or len(grid) != 3 or min(grid) < 1:
        raise ValueError(
            f"latent={grid}: expected frames, rows and columns of the video in tokens, such as [5, 16, 16]"
        )
    frames, rows, columns = grid
    tokens, shape = frames * rows * columns, config.block_shape
    if tokens % config.block or (shape and any(size % part for size, part in zip(grid, shape))):
        raise ValueError(f"latent={list(grid)}: blocks of {shape or config.block} tokens do not divide {tokens} tokens")
    longest = config.prefix + tokens - (0 if config.mode == "hybrid" else config.block)
    if config.positions == "learned" and longest > config.max_positions:
        raise ValueError(
            f"latent={list(grid)}: {longest} tokens; the model has learned {config.max_positions} positions"
        )
    return frames, rows, columns


def conditions_of(
    config: NextBlockConfig,
    class_labels: str | int | Sequence[str | int] | None,
    texts: str | Sequence[int] | Sequence[str | Sequence[int]] | None,
    read: Callable[[str], list[int]] | None,
) -> list[Tensor]:
    """Ids int64 ``[prefix]`` of every class or text; ValueError for what the model was not trained with."""
    kind = config.prefix_kind
    for name, value, wanted, known, what in (
        ("class_labels", class_labels, "label", "classes", "a class; pass its name or number"),
        ("texts", texts, "text", "texts", f"a text; pass it, or its {config.prefix} ids"),
    ):
        if value is not None and kind != wanted:
            raise ValueError(f"{name}={value!r:.60}: this model was not trained with {known}")
        if value is None and kind == wanted:
            raise ValueError(f"{name}: this model makes videos of {what}")
    if class_labels is not None:
        names = config.class_names or [str(number) for number in range(config.text_ids)]
        labels = [class_labels] if isinstance(class_labels, (str, int)) else list(class_labels)
        return [torch.tensor([_number(names, label) + config.condition_offset]) for label in labels]
    if texts is None:
        return [torch.zeros(0, dtype=torch.int64)]
    one = isinstance(texts, str) or all(isinstance(item, int) for item in texts)
    return [_ids(config, text, read) + config.condition_offset for text in ([texts] if one else texts)]


def spread_over(shown: list[Tensor], videos: int) -> list[Tensor]:
    """A condition for each of so many videos, all of them where there are none; ValueError where they do not fit."""
    if videos and len(shown) not in (1, videos):
        raise ValueError(f"{len(shown)} classes or texts for {videos} videos; pass one for all, or one a video")
    return shown if len(shown) >= videos else shown * videos


def _ids(config: NextBlockConfig, text: Any, read: Callable[[str], list[int]] | None) -> Tensor:
    """int64 ``[prefix]``: of a text, or given."""
    if isinstance(text, str):
        if read is None:
            raise ValueError(
                f"texts={text!r:.60}: no {FOLDER}/{FILE} in the folder; give the tokenizer that the "
                "model was trained with, from_pretrained(folder, text_tokenizer=...), or the ids"
            )
        if not text.strip():
            raise ValueError("texts: a text without any word; say what the video is to show")
        text = read(text)
    ids = [int(number) for number in text]
    if len(ids) != config.prefix or not all(0 <= number < config.text_ids for number in ids):
        raise ValueError(f"texts={ids!r:.60}: expected {config.prefix} ids from 0 to {config.text_ids - 1}")
    return torch.tensor(ids)


def _number(names: list[str], label: str | int) -> int:
    if isinstance(label, str) and label in names:
        return names.index(label)
    if not isinstance(label, str) and 0 <= label < len(names):
        return int(label)
    near = difflib.get_close_matches(str(label), names, 3, 0.4) or names[:3]
    raise ValueError(
        f"class {label!r}: expected one of {len(names)} names or its number; the nearest: {', '.join(near)}"
    )


def block_order(grid: tuple[int, int, int], config: NextBlockConfig) -> Tensor:
    """Place in raster order of every token, when blocks of a shape come in raster order, and so do the tokens in each;
    without a shape that order itself.
    """
    cells = torch.arange(grid[0] * grid[1] * grid[2])
    if not config.block_shape:
        return cells
    cut = [size for pair in ((whole // part, part) for whole, part in zip(grid, config.block_shape)) for size in pair]
    return cells.view(cut).permute(0, 2, 4, 1, 3, 5).flatten()


def fitted(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 ``[F, H, W, 3]`` cropped, centred, to the shape of these sides, and resized."""
    tall, wide = frames.shape[1:3]
    if (tall, wide) == (height, width):
        return frames
    scale = max(height / tall, width / wide)
    box_height, box_width = height / scale, width / scale
    left, top = (wide - box_width) / 2, (tall - box_height) / 2
    box = (left, top, left + box_width, top + box_height)
    pictures = [Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC, box) for frame in frames]
    return np.stack([np.asarray(picture) for picture in pictures])
