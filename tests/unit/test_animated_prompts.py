"""Prompts that move (GIF, WebP, PNG, AVIF) against files built byte by byte."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from megatron_videogpt.config.schema import SampleConfig
from megatron_videogpt.config.schema_data import DataConfig
from megatron_videogpt.data.bad import BadVideo
from megatron_videogpt.data.video.container import Limits
from megatron_videogpt.data.video.pictures import write_video
from megatron_videogpt.sample.pictures import IMAGES, count_pictures, is_picture, read_pictures
from megatron_videogpt.sample.prompts import Source, read_prompt
from tests.fakes import CONFIG, Joining, Unshuffle, plain

SETTINGS = SampleConfig(clips=(3, 2), window=9, history=4, steps=2, guidance=1.0)
MOVING = replace(CONFIG, sample=SETTINGS)
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
NAMES = {RED: "R", GREEN: "G", BLUE: "B", WHITE: "."}
ENDINGS = ["gif", "webp", "png", *(["avif"] if ".avif" in IMAGES else [])]


def save(path: Path, frames: Sequence[np.ndarray], durations: Sequence[float] | float = 40, **options: object) -> Path:
    """Write an animation with Pillow, without loss where the format can."""
    images = [Image.fromarray(frame) for frame in frames]
    how = {"webp": {"lossless": True}, "avif": {"quality": 100}, "gif": {"optimize": False}}.get(path.suffix[1:], {})
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations, **how, **options)
    return path


def greys(count: int) -> list[np.ndarray]:
    return [plain(10 * number, 1, 32, 32)[0] for number in range(count)]


def quarters(frame: np.ndarray) -> str:
    """The colours of the four quarters, in reading order, with a slash between the rows."""
    height, width = frame.shape[:2]
    letters = [
        NAMES[tuple(int(value > 127) * 255 for value in frame[int(y * height), int(x * width)])]
        for y in (0.25, 0.75)
        for x in (0.25, 0.75)
    ]
    return "".join(letters[:2]) + "/" + "".join(letters[2:])


def shown_frames(path: Path) -> tuple[list[str], float]:
    frames, rate = read_pictures(path, range(count_pictures(path, Limits())), 32, 16, Limits())
    assert frames.shape[1:] == (32, 32, 3) and frames.dtype == np.uint8
    return [quarters(frame) for frame in frames], rate


def lzw(indices: Sequence[int]) -> bytes:
    """GIF's compression of colours 0..3, without any: a clear code after every second pixel keeps codes at 3 bits."""
    codes = [code for place, index in enumerate(indices) for code in ([4, index] if place % 2 == 0 else [index])] + [5]
    bits = sum(code << (3 * place) for place, code in enumerate(codes))
    data = bits.to_bytes(-(-3 * len(codes) // 8), "little")
    blocks = [data[start : start + 255] for start in range(0, len(data), 255)]
    return b"\2" + b"".join(bytes([len(block)]) + block for block in blocks) + b"\0"


def gif(*frames: tuple[int, int, int, int, int, int], side: int = 32, transparent: bool = True) -> bytes:
    """A GIF of the colours red, green, blue and none.

    frames: (x, y, width and height, colour, what becomes of it afterwards (GIF's number), hundredths of a second).
    """
    palette = bytes([*RED, *GREEN, *BLUE, 9, 9, 9])
    data = b"GIF89a" + struct.pack("<HHBBB", side, side, 0x91, 0, 0) + palette
    for x, y, size, colour, disposal, delay in frames:
        data += b"!\xf9\4" + struct.pack("<BHB", disposal << 2 | transparent, delay, 3) + b"\0"
        data += b"," + struct.pack("<HHHHB", x, y, size, size, 0) + lzw([colour] * size * size)
    return data + b";"


def test_a_gif_is_composed_as_browsers_do(tmp_path: Path) -> None:
    path = tmp_path / "x.gif"
    path.write_bytes(
        gif(
            (0, 0, 32, 0, 1, 4),  # red everywhere
            (16, 0, 16, 1, 1, 4),  # green at the top right, which stays
            (0, 16, 16, 2, 3, 4),  # blue at the bottom left, until the next one
            (16, 16, 16, 1, 2, 4),  # green at the bottom right, and nothing there afterwards
            (0, 0, 16, 3, 1, 4),  # nothing changes
        )
    )
    assert shown_frames(path) == (["RR/RR", "RG/RR", "RG/BR", "RG/RG", "RG/R."], 25.0)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def apng(
    *frames: tuple[int, int, int, tuple[int, ...], int, int], claimed: int = 0, default: tuple[int, ...] = ()
) -> bytes:
    """A PNG of 32 x 32 pixels that moves.

    frames: (x, y, width and height, red green blue alpha, what becomes of it afterwards, whether it is laid over).
    claimed: number of frames in its header, 0 for the true one; default: colour of a picture for others' eyes.
    """

    def pixels(size: int, colour: tuple[int, ...]) -> bytes:
        return zlib.compress((b"\0" + bytes(colour) * size) * size)

    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 32, 32, 8, 6, 0, 0, 0))
    data += chunk(b"acTL", struct.pack(">II", claimed or len(frames), 0))
    if default:
        data += chunk(b"IDAT", pixels(32, default))
    number = 0
    for x, y, size, colour, disposal, blend in frames:
        data += chunk(b"fcTL", struct.pack(">IIIIIHHBB", number, size, size, x, y, 1, 5, disposal, blend))
        if number or default:
            number += 1
            data += chunk(b"fdAT", struct.pack(">I", number) + pixels(size, colour))
        else:
            data += chunk(b"IDAT", pixels(size, colour))
        number += 1
    return data + chunk(b"IEND", b"")


def test_a_png_is_composed_as_browsers_do(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    frames = (
        (0, 0, 32, (*RED, 255), 0, 0),
        (16, 0, 16, (*GREEN, 255), 0, 0),
        (0, 16, 16, (*BLUE, 255), 2, 1),  # back to red afterwards
        (16, 16, 16, (*GREEN, 255), 1, 1),  # nothing there afterwards
        (0, 0, 16, (*BLUE, 0), 0, 1),  # laid over as nothing
        (0, 0, 16, (*BLUE, 0), 0, 0),  # put in place: nothing there
    )
    path.write_bytes(apng(*frames))
    assert shown_frames(path) == (["RR/RR", "RG/RR", "RG/BR", "RG/RG", "RG/R.", ".G/R."], 5.0)
    # What shows to readers that know no such PNG is no part of it.
    path.write_bytes(apng(*frames[:2], default=(*BLUE, 255)))
    assert shown_frames(path)[0] == ["RR/RR", "RG/RR"]
    path.write_bytes(apng(*frames[:1], default=(*BLUE, 255)))
    assert shown_frames(path)[0] == ["RR/RR"]


def test_transparent_parts_are_white(tmp_path: Path) -> None:
    """Half of red over white is (255, 127, 127); one picture and several, whatever colour is stored under them."""
    layer = np.zeros((32, 32, 4), np.uint8)
    layer[:, 16:] = (255, 0, 0, 128)
    for ending in ("webp", "png"):
        for count in (1, 2):
            moved = [layer if number == 0 else layer[::-1, ::-1] for number in range(count)]
            path = save(tmp_path / f"{count}.{ending}", moved)
            assert count_pictures(path, Limits()) == count
            frame = read_pictures(path, [0], 32, 16, Limits())[0][0].astype(int)
            assert np.abs(frame[4, 4] - 255).max() == 0 and np.abs(frame[4, 28] - (255, 127, 127)).max() <= 1, ending
    Image.fromarray(layer).convert("P").save(tmp_path / "p.gif", transparency=0)
    assert (read_pictures(tmp_path / "p.gif", [0], 32, 16, Limits())[0][0, 4, 4] == 255).all()


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_moves_is_cut_and_thinned_as_a_video(tmp_path: Path, ending: str) -> None:
    source = Source("x", save(tmp_path / f"x.{ending}", greys(20)))
    near = 4 if ending == "avif" else 0

    def values(prompt) -> tuple[np.ndarray, int]:
        frames = prompt.condition if prompt.truth is None else np.concatenate([prompt.condition, prompt.truth])
        return frames.mean((1, 2, 3)), len(prompt.condition)

    # The last five are true, the four before them given.
    shown, given = values(read_prompt(source, MOVING, Unshuffle()))
    assert given == 4 and np.abs(shown - 10 * np.arange(11, 20)).max() <= near
    thinned = read_prompt(source, MOVING, Unshuffle(), None, 2)
    shown, given = values(thinned)
    assert given == 4 and np.abs(shown - 20 * np.arange(1, 10)).max() <= near and thinned.fps == pytest.approx(12.5)
    shown, given = values(read_prompt(source, MOVING, Unshuffle(), 18))
    assert given == 18 and np.abs(shown - 10 * np.arange(20)).max() <= near
    joined = read_prompt(source, MOVING, Joining(), 2)
    assert len(joined.condition) == 5 and joined.condition.shape[1:] == (32, 32, 3)
    with pytest.raises(ValueError, match=rf"x\.{ending}: --history 11 needs 11 frames, the video has 10 at this"):
        read_prompt(source, MOVING, Unshuffle(), 11, 2)


@pytest.mark.parametrize("ending", ["gif", "webp", "png"])
def test_the_rate_is_the_mean_of_what_browsers_show(tmp_path: Path, ending: str) -> None:
    cases = [([50] * 4, 20.0), ([20, 30, 60, 90], 20.0), ([0, 10, 100, 200], 8.0)]
    if ending != "gif":  # which counts hundredths of a second
        cases.append(([11, 29, 20, 20], 50.0))
    for durations, rate in cases:
        path = save(tmp_path / f"x.{ending}", greys(4), durations)
        assert read_pictures(path, [0], 32, 16, Limits())[1] == pytest.approx(rate)
    path = tmp_path / "x.gif"
    path.write_bytes(gif((0, 0, 32, 0, 1, 0), (0, 0, 32, 1, 1, 1)))
    assert shown_frames(path) == (["RR/RR", "GG/GG"], 10.0)


def test_one_frame_is_a_picture(tmp_path: Path) -> None:
    """So are the pages of a TIFF and the two views of a JPEG: only their first one counts."""
    pages = [Image.fromarray(frame) for frame in greys(3)]
    for ending in ("gif", "webp", "png"):
        pages[2].save(tmp_path / f"one.{ending}")
    pages[2].save(tmp_path / "pages.tiff", save_all=True, append_images=pages[:1])
    pages[2].save(tmp_path / "views.jpg", format="MPO", save_all=True, append_images=pages[:1])
    for path in tmp_path.iterdir():
        prompt = read_prompt(Source("x", path), MOVING, Unshuffle(), 7, 3)
        assert prompt.condition.shape == (1, 32, 32, 3) and prompt.truth is None and prompt.fps == 8, path
        assert abs(float(prompt.condition.mean()) - 20) <= 1
    path = tmp_path / "default.png"
    path.write_bytes(apng((0, 0, 32, (*GREEN, 255), 0, 0), default=(*BLUE, 255)))
    assert quarters(read_prompt(Source("x", path), MOVING, Unshuffle()).condition[0]) == "GG/GG"


def test_a_gif_that_is_an_mp4_is_read_as_one(tmp_path: Path) -> None:
    write_video(tmp_path / "x.mp4", np.stack(greys(12)), 24)
    path = (tmp_path / "x.mp4").rename(tmp_path / "x.gif")
    assert not is_picture(path)
    prompt = read_prompt(Source("x", path), MOVING, Unshuffle())
    assert len(prompt.condition) == 4 and prompt.truth is not None and prompt.fps == pytest.approx(24)
    path = save(tmp_path / "y.webp", greys(9)).rename(tmp_path / "y.gif")
    assert is_picture(path) and len(read_prompt(Source("y", path), MOVING, Unshuffle()).condition) == 4


@pytest.mark.parametrize("ending", ENDINGS)
def test_limits_hold_before_anything_is_decoded(tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / f"x.{ending}", greys(12))
    monkeypatch.setattr(Image.Image, "getexif", lambda image: pytest.fail("decoded"))
    for option, message in (
        ({"max_video_frames": 11}, "12 frames or more, data.max_video_frames=11"),
        ({"max_megapixels": 0.001}, "32x32 pixels, more than data.max_megapixels=0.001"),
        ({"max_video_mb": 1e-6}, "MB, more than data.max_video_mb=1e-06"),
    ):
        config = replace(MOVING, data=DataConfig(longest_side=32, **option))
        with pytest.raises(ValueError, match=f"^{path}: .*{message}$") as caught:
            read_prompt(Source("x", path), config, Unshuffle())
        assert "\n" not in str(caught.value)


def refused(path: Path) -> BadVideo:
    with pytest.raises(BadVideo) as caught:
        read_pictures(path, range(count_pictures(path, Limits())), 32, 16, Limits(pixels=4000))
    assert "\n" not in str(caught.value) and str(caught.value).startswith(f"{path}: ")
    return caught.value


def test_files_that_lie_or_grow_are_one_line(tmp_path: Path) -> None:
    red, green = (0, 0, 32, (*RED, 255), 0, 0), (0, 0, 32, (*GREEN, 255), 0, 0)
    path = tmp_path / "x.png"
    path.write_bytes(apng(red, green, claimed=2_000_000_000))
    assert refused(path).kind == "too_large"
    path.write_bytes(apng(red, green, claimed=4))
    assert "truncated" in str(refused(path)).lower()
    path = tmp_path / "x.gif"
    path.write_bytes(gif((0, 0, 32, 0, 1, 4), (16, 0, 100, 1, 1, 4)))
    assert refused(path).kind == "too_large"  # 116 x 100 pixels
    path.write_bytes(gif((0, 0, 32, 0, 1, 4), (16, 0, 32, 1, 1, 4)))
    assert "different sizes" in refused(path).reason
    thin = plain(9, 1, 8, 400)[0]
    assert refused(save(tmp_path / "thin.png", [thin, thin[:, ::-1] + 1])).kind == "too_elongated"


@pytest.mark.parametrize("ending", ENDINGS)
def test_damage_is_one_line(tmp_path: Path, ending: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    path = save(tmp_path / f"x.{ending}", list(noise))
    whole = path.read_bytes()
    draw = np.random.default_rng(1)
    outcomes = {"read": 0, "refused": 0}
    for case in range(60):
        data = bytearray(whole)
        if case % 2:
            data = data[: int(draw.integers(1, len(data)))]
        else:
            for place in draw.integers(6, min(len(data), 400 if case % 4 else len(data)), 3):
                data[place] = int(draw.integers(256))
        path.write_bytes(data)
        try:
            read_prompt(Source("x", path), MOVING, Unshuffle())
            outcomes["read"] += 1
        except ValueError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
            outcomes["refused"] += 1
    assert outcomes["refused"] >= 10, outcomes
