"""Whether this PyAV shows pictures as they are: one of another release may stand in an environment of many packages."""

from __future__ import annotations

import io
import struct
from functools import lru_cache

import av
import numpy as np

from ...errors import UserError

OLDEST = (17, 0)
"""PyAV 12.3, 13.1, 14.0, 15.1, 16.0 and 16.1 convert BT.709 and BT.2020 as if they were BT.601: up to 26 levels off."""
TESTED = frozenset(("17.0.0", "18.1.0"))
WEIGHTS = {5: (0.299, 0.114), 6: (0.299, 0.114), 1: (0.2126, 0.0722), 9: (0.2627, 0.0593)}
"""Of red and blue in luma, by FFmpeg's number of the matrix: BT.601 (twice), BT.709, BT.2020 (ITU-R)."""
COLOUR = (250, 240, 20)
OFF = 3.0  # levels that rounding and FFmpeg's fast conversion may take


@lru_cache(maxsize=1)
def check_pyav() -> None:
    """Raise ValueError, one line, where PyAV is too old, or one of a release that is not known gives other colours or
    another orientation than it should.
    """
    try:
        release = tuple(int(part) for part in av.__version__.split(".")[:2])
    except ValueError:
        release = OLDEST
    if release < OLDEST:
        raise UserError(
            f"av (PyAV) {av.__version__}: gives wrong colours for HD video; this project needs "
            f"{'.'.join(map(str, OLDEST))} or newer: pip install -U 'av>={OLDEST[0]}'"
        )
    if av.__version__ in TESTED:
        return
    wrong = [
        f"colours of matrix {matrix}, range {full + 1}" for matrix in WEIGHTS for full in (0, 1) if _off(matrix, full)
    ]
    if _display_matrix() != [0, 65536, 0, -65536, 0]:
        wrong.append("display matrices")
    if wrong:
        raise UserError(
            f"av (PyAV) {av.__version__}: reads {', '.join(wrong)} wrong; take one that was tested: "
            f"{', '.join(sorted(TESTED))}"
        )


def _off(matrix: int, full: int) -> bool:
    """Whether a colour comes back more than `OFF` levels away."""
    red, green, blue = (level / 255 for level in COLOUR)
    of_red, of_blue = WEIGHTS[matrix]
    luma = of_red * red + (1 - of_red - of_blue) * green + of_blue * blue
    chroma = (blue - luma) / 2 / (1 - of_blue), (red - luma) / 2 / (1 - of_red)
    scales = (255, 0, 255) if full else (219, 16, 224)
    values = [scales[0] * luma + scales[1], *(scales[2] * value + 128 for value in chroma)]
    planes = np.round(values).astype(np.uint8)[:, None, None].repeat(16, 1).repeat(16, 2)
    frame = av.VideoFrame.from_ndarray(planes, format="yuv444p")
    frame.colorspace, frame.color_range = matrix, 2 if full else 1
    return bool(np.abs(frame.to_ndarray(format="rgb24").reshape(-1, 3).mean(0) - COLOUR).max() > OFF)


def _display_matrix() -> list[int]:
    """The first five numbers of the matrix that is read from an mp4 file turned by 90 degrees."""
    from .display import matrix_numbers

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    data = bytearray(file.getvalue())
    # ISO/IEC 14496-12, 8.3.2: the matrix is 40 bytes behind the flags of version 0.
    place = data.index(b"tkhd") + 8 + 36
    data[place : place + 20] = struct.pack(">5i", 0, 65536, 0, -65536, 0)
    with av.open(io.BytesIO(data)) as container:
        return matrix_numbers(next(container.decode(container.streams.video[0])))
