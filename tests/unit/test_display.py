"""Pictures as a player shows them: pixel shape, turns and mirrors, and cropping by the container, against what was put
in; colours against the formulas of their standards.
"""

from __future__ import annotations

import io
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from megatron_videogpt.data.bad import BadVideo
from megatron_videogpt.data.decode import probe, read_clip, read_frames
from megatron_videogpt.data.video import release
from megatron_videogpt.data.video.container import Blob
from megatron_videogpt.data.video.ebml import track_crops
from megatron_videogpt.data.video.pictures import resize_frames
from megatron_videogpt.errors import UserError
from tests.numbered import encode

WIDTH, HEIGHT = 96, 64
COLOURS = {"R": (200, 30, 30), "G": (30, 200, 30), "B": (30, 30, 200), "W": (220, 220, 220)}
ONE = 65536
MATRICES = {
    "identity": ((ONE, 0, 0, ONE), "RG/BW"),
    "turned right": ((0, ONE, -ONE, 0), "BR/WG"),
    "upside down": ((-ONE, 0, 0, -ONE), "WB/GR"),
    "turned left": ((0, -ONE, ONE, 0), "GW/RB"),
    "mirrored": ((-ONE, 0, 0, ONE), "GR/WB"),
    "flipped": ((ONE, 0, 0, -ONE), "BW/RG"),
    "transposed": ((0, ONE, ONE, 0), "RB/GW"),
    "transposed the other way": ((0, -ONE, -ONE, 0), "WG/BR"),
}
"""(a, b, c, d) of the matrix of `tkhd`, and what becomes of red, green over blue, white: worked out by hand from
x' = a x + c y, y' = b x + d y."""


def quarters(width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Red and green over blue and white."""
    picture = np.empty((height, width, 3), np.uint8)
    for name, rows, columns in zip("RGBW", (0, 0, 1, 1), (0, 1, 0, 1)):
        picture[rows * height // 2 : (rows + 1) * height // 2, columns * width // 2 : (columns + 1) * width // 2] = (
            COLOURS[name]
        )
    return picture


def corners(picture: np.ndarray) -> str:
    """The names of the four quarters' colours, row by row."""
    height, width = picture.shape[:2]
    found = [picture[y * height // 4, x * width // 4].astype(int) for y in (1, 3) for x in (1, 3)]
    names = [min(COLOURS, key=lambda name: np.abs(pixel - COLOURS[name]).sum()) for pixel in found]
    return f"{names[0]}{names[1]}/{names[2]}{names[3]}"


def video(pictures: list[np.ndarray], container: str = "mp4", aspect: Fraction | None = None) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream("libx264", rate=10, options={"crf": "5"})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv444p"
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        for picture in pictures:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(stream.encode(None))
    return file.getvalue()


def with_matrix(data: bytes, matrix: tuple[int, int, int, int]) -> bytes:
    """Another matrix in the header of an mp4 file's track (ISO/IEC 14496-12, 8.3.2)."""
    a, b, c, d = matrix
    place = data.index(b"tkhd") + 44
    return data[:place] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[place + 36 :]


@pytest.mark.parametrize("name", MATRICES)
def test_all_eight_ways_to_lay_a_picture_down(name: str) -> None:
    matrix, wanted = MATRICES[name]
    blob = Blob("a.mp4", with_matrix(video([quarters()] * 3), matrix))
    frames = read_frames(blob, [1])
    assert corners(frames[0]) == wanted
    size = (WIDTH, HEIGHT) if matrix[0] else (HEIGHT, WIDTH)
    info = probe(blob)
    assert (info.width, info.height) == size == frames.shape[2:0:-1]
    np.testing.assert_array_equal(read_clip(blob, [1], 32, 16), resize_frames(frames, 32, 16))


def circle(width: int, height: int) -> np.ndarray:
    """White on black, as wide as high when the picture is shown as a square."""
    y, x = np.mgrid[:height, :width]
    inside = ((x + 0.5) / width - 0.5) ** 2 + ((y + 0.5) / height - 0.5) ** 2 < 0.3**2
    return np.where(inside, 235, 16).astype(np.uint8)[..., None].repeat(3, 2)


@pytest.mark.parametrize(
    ("aspect", "size", "shown"),
    [
        (Fraction(64, 45), (72, 102), (102, 102)),
        (Fraction(4, 3), (96, 128), (128, 128)),
        (Fraction(3, 4), (128, 96), (128, 128)),
    ],
)
@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts"])
def test_a_circle_is_a_circle(container: str, aspect: Fraction, size: tuple[int, int], shown: tuple[int, int]) -> None:
    blob = Blob("a", video([circle(*size)] * 3, container, aspect))
    info = probe(blob)
    assert (info.width, info.height) == shown
    for frame in (read_frames(blob, [1])[0], read_clip(blob, [1], 96, 16)[0]):
        y, x = np.nonzero(frame.mean(-1) > 120)
        assert abs((np.ptp(x) + 1) / (np.ptp(y) + 1) - 1) < 0.05


def test_pixels_as_long_as_a_bar_are_refused() -> None:
    blob = Blob("a.mkv", video([quarters(160, 64)] * 2, "matroska", Fraction(60)))
    with pytest.raises(BadVideo, match="shown as 9600x64 pixels") as caught:
        probe(blob)
    assert caught.value.kind == "too_elongated"


@pytest.mark.parametrize(
    ("element", "wanted"),
    [("54dd", (0, 80, 0, 64)), ("54cc", (16, 96, 0, 64)), ("54bb", (0, 96, 16, 64)), ("54aa", (0, 96, 0, 48))],
)
def test_cropping_of_matroska(element: str, wanted: tuple[int, int, int, int]) -> None:
    """16 pixels cut off at one side: PixelCropRight, Left, Top, Bottom in place of DisplayUnit, which is as long."""
    rng = np.random.default_rng(0)
    data = video([rng.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)] * 2, "matroska")
    place = data.index(bytes.fromhex("54b28104"))
    cropped = data[:place] + bytes.fromhex(element) + b"\x81\x10" + data[place + 4 :]
    left, right, top, bottom = wanted
    whole = read_frames(Blob("a.mkv", data), [1])[0]
    part = read_frames(Blob("a.mkv", cropped), [1])[0]
    np.testing.assert_array_equal(part, whole[top:bottom, left:right])
    info = probe(Blob("a.mkv", cropped))
    assert (info.width, info.height) == (right - left, bottom - top)


@pytest.mark.parametrize("size", ["01fffffffffffffe", "01ffffffffffffff", "08ffffffff", "00", ""])
def test_a_matroska_file_whose_sizes_are_damaged_wants_no_crop(tmp_path: Path, size: str) -> None:
    """Sizes far behind the file's end, of no known length, and cut short: a file and its bytes give the same."""
    data = bytes.fromhex("1a45dfa384ffffffff" + "ec" + size)
    (tmp_path / "a.mkv").write_bytes(data)
    with open(tmp_path / "a.mkv", "rb") as file:
        assert track_crops(file) == track_crops(io.BytesIO(data)) == []


def inserted(data: bytes, path: tuple[bytes, ...], box: bytes) -> bytes:
    """A box put at the end of the one at a path; only for files whose pictures come before their tables."""
    places, begin, end = [], 0, len(data)
    for name in path:
        while data[begin + 4 : begin + 8] != name:
            begin += int.from_bytes(data[begin : begin + 4], "big")
        places.append(begin)
        end = begin + int.from_bytes(data[begin : begin + 4], "big")
        begin += {b"stsd": 16, b"avc1": 86}.get(name, 8)
    out = bytearray(data[:end] + box + data[end:])
    for place in places:
        out[place : place + 4] = (int.from_bytes(out[place : place + 4], "big") + len(box)).to_bytes(4, "big")
    return bytes(out)


def test_clean_aperture_of_mp4() -> None:
    """64 x 32 of 96 x 64 pixels, their centre 8 right of and 4 above the picture's."""
    rng = np.random.default_rng(0)
    data = video([rng.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)] * 2)
    assert data.index(b"mdat") < data.index(b"moov")
    clap = struct.pack(">I4s8i", 40, b"clap", 64, 1, 32, 1, 8, 1, -4, 1)
    cropped = inserted(data, (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1"), clap)
    whole, part = (read_frames(Blob("a.mp4", bytes_), [1])[0] for bytes_ in (data, cropped))
    np.testing.assert_array_equal(part, whole[12:44, 24:88])
    outside = clap.replace(struct.pack(">2i", 8, 1), struct.pack(">2i", 40, 1))
    reaching = inserted(data, (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1"), outside)
    np.testing.assert_array_equal(read_frames(Blob("a.mp4", reaching), [1])[0], whole)


def test_latents_and_shards_see_the_same_shape(tmp_path: Path) -> None:
    """What preparation notes is what reading gives."""
    from megatron_videogpt.data.prepare.listings import list_rows
    from megatron_videogpt.data.prepare.video import Options, read_row

    data = with_matrix(video([circle(72, 102)] * 20, "mp4", Fraction(64, 45)), MATRICES["turned left"][0])
    (tmp_path / "a.mp4").write_bytes(data)
    options = Options((str(tmp_path),), min_side=16)
    (ready,) = read_row(next(iter(list_rows(options.sources, options.listing))), options)
    assert (ready.meta["width"], ready.meta["height"]) == (102, 102)
    assert read_frames(Blob("a", ready.data.tobytes()), [3]).shape[1:3] == (102, 102)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(("matrix", "red", "blue"), [(6, 0.299, 0.114), (1, 0.2126, 0.0722), (9, 0.2627, 0.0593)])
def test_colours_of_each_standard(matrix: int, red: float, blue: float, full: bool) -> None:
    """BT.601, BT.709 and BT.2020, limited and full range, through an encoder without loss."""
    colour = (250, 240, 20)
    r, g, b = (level / 255 for level in colour)
    luma = red * r + (1 - red - blue) * g + blue * b
    chroma = ((b - luma) / 2 / (1 - blue), (r - luma) / 2 / (1 - red))
    levels = (
        [255 * luma, *(255 * c + 128 for c in chroma)] if full else [219 * luma + 16, *(224 * c + 128 for c in chroma)]
    )
    planes = np.round(levels).astype(np.uint8)[:, None, None].repeat(64, 1).repeat(64, 2)
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as output:
        stream = output.add_stream("libx264", rate=10, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv444p"
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, 2 if full else 1
        for _ in range(2):
            frame = av.VideoFrame.from_ndarray(planes, format="yuv444p")
            frame.colorspace, frame.color_range = matrix, 2 if full else 1
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    found = read_frames(Blob("a.mkv", file.getvalue()), [1])[0].reshape(-1, 3).mean(0)
    assert np.abs(found - colour).max() <= 2


def test_a_pyav_with_wrong_colours_or_matrices_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Releases below the bound by their number, others by what they do."""
    release.check_pyav.cache_clear()
    try:
        release.check_pyav()
        monkeypatch.setattr(av, "__version__", "16.1.0")
        release.check_pyav.cache_clear()
        with pytest.raises(UserError, match=r"av \(PyAV\) 16\.1\.0: .* 17\.0 or newer: pip install -U 'av>=17'"):
            read_frames(Blob("a", encode("mp4", "libx264", range(3))), [0])
        monkeypatch.setattr(av, "__version__", "99.0.0")
        release.check_pyav.cache_clear()
        release.check_pyav()
        monkeypatch.setitem(release.WEIGHTS, 1, (0.299, 0.114))
        release.check_pyav.cache_clear()
        with pytest.raises(UserError, match="99.0.0: reads colours of matrix 1, range 1, .* wrong"):
            release.check_pyav()
        monkeypatch.setitem(release.WEIGHTS, 1, (0.2126, 0.0722))
        monkeypatch.setattr("megatron_videogpt.data.video.display.matrix_numbers", lambda frame: [])
        release.check_pyav.cache_clear()
        with pytest.raises(UserError, match="reads display matrices wrong"):
            release.check_pyav()
    finally:
        release.check_pyav.cache_clear()


def test_the_requirements_ask_for_the_oldest_release_that_is_taken() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert f'"av>={release.OLDEST[0]}"' in text and release.OLDEST[1] == 0
