"""torchcodec gives the same frames as PyAV: run for real, against the FFmpeg libraries inside PyAV's wheel."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_videogpt.codec.geometry import codec_geometry
from megatron_videogpt.codec.options import CodecConfig
from megatron_videogpt.config.schema_data import DataConfig
from megatron_videogpt.data.sources.open import open_source
from tests.clips import BIRD, CINEPAK, SMALL, SOUND, TRAILER
from tests.numbered import encode
from tests.unit.test_display import MATRICES, quarters, video, with_matrix
from tests.unit.test_odd_files import ODD

WORKER = """
import json, sys
import numpy as np
from megatron_videogpt.data.bad import BadVideo
from megatron_videogpt.data.decode import probe, read_clip
from megatron_videogpt.data.video.container import Blob, Limits
found = {}
for path in sys.argv[1:]:
    frames = probe(path).frames
    asked = [1, 2, 6, frames // 2, frames - 1]
    ours, theirs = (read_clip(path, asked, 128, 16, decoder=name) for name in ("pyav", "torchcodec"))
    blob = read_clip(Blob("blob", open(path, "rb").read()), asked, 128, 16, decoder="torchcodec")
    mean, largest = np.abs(ours.astype(int) - theirs).mean(), np.abs(blob.astype(int) - theirs).max()
    found[path] = [theirs.shape == ours.shape, float(mean), int(largest)]
kinds = {}
for name, video, asked, limits in (
    ("short", path, [frames], Limits()),
    ("pixels", path, [0], Limits(pixels=100)),
    ("bytes", path, [0], Limits(bytes=100)),
    ("frames", path, [0], Limits(frames=10)),
    ("gone", path + ".gone", [0], Limits()),
    ("noise", Blob("noise", b"no video" * 500), [0], Limits()),
):
    try:
        read_clip(video, asked, 128, 16, limits, decoder="torchcodec")
    except BadVideo as error:
        kinds[name] = error.kind
print(json.dumps([found, kinds]))
"""


def libraries(folder: Path) -> str:
    """A search path on which torchcodec finds FFmpeg: PyAV's own copies, under the names that it looks for."""
    spec = importlib.util.find_spec("av")
    assert spec is not None and spec.origin is not None
    bundled = Path(spec.origin).parent.parent / "av.libs"
    if sys.platform != "linux" or not bundled.is_dir():
        pytest.skip("this PyAV does not bring FFmpeg's shared libraries")
    for file in bundled.iterdir():
        match = re.fullmatch(r"(lib(?:av|sw)[a-z]+)-[0-9a-f]+\.so\.(\d+)\..*", file.name)
        if match:
            (folder / f"{match[1]}.so.{match[2]}").symlink_to(file)
    return f"{folder}:{bundled}"


def test_frames_equal_those_of_pyav(videos: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("torchcodec") is None:
        pytest.skip("torchcodec is not installed: pip install torchcodec")
    odd = [str(ODD / name) for name in ("xvid_b.avi", "paff.ts", "cut_open.mkv", "cut_hevc.mp4")]
    (tmp_path / "open.ts").write_bytes(
        encode("mpegts", "libx264", range(60), between=3, options={"x264-params": "open-gop=1"})
    )
    (tmp_path / "mirrored.mp4").write_bytes(with_matrix(video([quarters()] * 20), MATRICES["mirrored"][0]))
    odd += [str(tmp_path / "open.ts"), str(tmp_path / "mirrored.mp4")]
    asked = odd + [str(videos / name) for name in (TRAILER, CINEPAK, SOUND, BIRD, SMALL)]
    environment = {**os.environ, "LD_LIBRARY_PATH": libraries(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", WORKER, *asked],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found, kinds = json.loads(done.stdout.splitlines()[-1])
    assert list(found) == asked
    for path, (same_shape, difference, from_bytes) in found.items():
        assert same_shape and from_bytes == 0, path
        assert difference == 0.0, path
    assert kinds == {
        "short": "too_short",
        "pixels": "too_large",
        "bytes": "too_large",
        "frames": "too_large",
        "gone": "missing",
        "noise": "unreadable",
    }


def test_a_torchcodec_that_does_not_load_is_one_line_before_anything_is_built(
    monkeypatch: pytest.MonkeyPatch, videos: Path
) -> None:
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    config = DataConfig(source="videos", path=str(videos), decoder="torchcodec")
    with pytest.raises(
        ValueError, match="data.decoder=torchcodec: torchcodec does not load .* or use data.decoder=pyav"
    ) as caught:
        open_source(config, codec_geometry(CodecConfig()))
    assert "\n" not in str(caught.value)
