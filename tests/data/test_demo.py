"""The demo's page in a real headless Chromium: a clip goes in, settings are changed, and the video that comes out is
the one that was asked for.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from megatron_videogpt.config.schema import ModelConfig
from megatron_videogpt.convert.table import EMBED_TOKENS, parameters
from megatron_videogpt.data.decode import probe

from ..parallel.launch import REPOSITORY

pytestmark = pytest.mark.long
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def browser(downloads: Path) -> Iterator[Any]:
    """Debian's Chromium without a window."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium drives the browser: pip install -e '.[dev]'")
    if CHROMIUM is None or DRIVER is None:
        pytest.skip(
            "no browser: the test needs chromium and chromedriver (Debian: apt-get install chromium chromium-driver)"
        )
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1400"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def checkpoint(folder: Path) -> Path:
    """A Hugging Face folder of a tiny model with random weights, for pictures of 32 pixels."""
    model = ModelConfig(
        num_layers=2,
        hidden_size=16,
        ffn_hidden_size=24,
        num_attention_heads=2,
        num_query_groups=1,
        position_table_size=8,
    )
    shapes = {entry.hf: entry.shape(model, 16) for entry in parameters(model)} | {
        EMBED_TOKENS: (4, 16),
        "pos_embed": (1, 64, 16),
    }
    generator = torch.Generator().manual_seed(0)
    (folder / "vae").mkdir(parents=True)
    save_file(
        {key: 0.1 * torch.randn(shape, generator=generator) for key, shape in shapes.items()},
        folder / "model.safetensors",
    )
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 24,
        "vocab_size": 4,
    }
    rope = {"rms_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_scaling": None, "max_position_embeddings": 4096}
    ours = {
        "patch_size": 2,
        "in_channels": 16,
        "pos_embed_max_size": 8,
        "diffusion_token_id": 1,
        "img_start_token_id": 2,
        "img_end_token_id": 3,
    }
    (folder / "config.json").write_text(json.dumps({"model_type": "videogpt", **sizes, **rope, **ours}))
    (folder / "vae" / "config.json").write_text('{"_class_name": "TinyAutoencoder"}')
    shutil.copy(
        REPOSITORY / "megatron_videogpt" / "codec" / "tiny_codec.safetensors",
        folder / "vae" / "diffusion_pytorch_model.safetensors",
    )
    data, sample = (
        "longest_side = 32\nframe_interval = [2, 3]\nphysics.size = 32",
        "history = 2\nclips = [2]\nwindow = 4\nsteps = 2\nguidance = 1.0",
    )
    (folder / "videogpt_config.toml").write_text(f"[data]\n{data}\n[sample]\n{sample}\n")
    return folder


@pytest.fixture(scope="module")
def page(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the command's page."""
    folder = tmp_path_factory.mktemp("demo")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    temporary = folder / "temporary"
    temporary.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)}
    command = [
        sys.executable,
        "-m",
        "megatron_videogpt",
        "demo",
        "--checkpoint",
        str(checkpoint(folder / "model")),
        "--port",
        str(port),
    ]
    with (
        open(folder / "log", "w") as log,
        subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log) as server,
    ):
        try:
            address = f"http://127.0.0.1:{port}"
            wait(lambda: address in (folder / "log").read_text() or server.poll() is not None, 300)
            assert server.poll() is None, (folder / "log").read_text()
            yield address
        finally:
            server.send_signal(signal.SIGTERM)
            ended = server.wait(180)
    assert ended == 130 and not list(temporary.glob("megatron_videogpt_demo_*")), "a polite kill leaves nothing behind"


def wait(condition: Callable[[], Any], seconds: float = 120) -> Any:
    """What `condition` returns as soon as it is true."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)
    return value


def find(browser: Any, selector: str) -> list[Any]:
    return browser.find_elements("css selector", selector)


def open_page(browser: Any, address: str) -> None:
    browser.get(address)
    wait(lambda: find(browser, "#file input[type=file]") and find(browser, "#continue"))


def fill(browser: Any, field: str, value: int) -> None:
    """Type a number."""
    from selenium.webdriver.common.keys import Keys

    box = find(browser, f"#{field} input[type=number]")[0]
    box.send_keys(Keys.CONTROL, "a")
    box.send_keys(str(value), Keys.TAB)


def press(browser: Any) -> None:
    wait(lambda: find(browser, "#continue")[0].is_enabled())
    find(browser, "#continue")[0].click()


def test_a_dropped_clip_is_continued_and_the_video_plays_and_downloads(
    browser: Any, page: str, videos: Path, tmp_path: Path, downloads: Path
) -> None:
    open_page(browser, page)
    find(browser, "#file input[type=file]")[0].send_keys(str(videos / "bbb_trailer_cuts.mp4"))
    wait(lambda: "bbb_trailer_cuts" in find(browser, "#file")[0].text)
    for field, value in [("clips", 3), ("frames", 2), ("steps", 4), ("given", 2)]:
        fill(browser, field, value)
    press(browser)
    source = wait(
        lambda: [video.get_attribute("src") for video in find(browser, "#video video") if video.get_attribute("src")]
    )[0]
    assert source.startswith(page), "from this machine"
    # Chromium itself could decode it: its metadata has the size.
    width = wait(lambda: browser.execute_script("return document.querySelector('#video video').videoWidth"))
    (tmp_path / "out.mp4").write_bytes(urllib.request.urlopen(source, timeout=30).read())
    info = probe(tmp_path / "out.mp4")
    # Frames of 32x16, enlarged by 8, with outlines of 4 and a caption of 24: truth and prediction side by side, 6
    # pixels apart.
    assert (info.frames, info.width, info.height) == (
        2 + 3 * 2,
        2 * (256 + 8) + 6,
        24 + 128 + 8,
    ) and width == info.width
    result = wait(lambda: browser.execute_script("return document.querySelector('#result textarea').value"))
    assert result.startswith("2 frames given, 6 generated") and "against the 6 true frames" in result
    find(browser, "#download")[0].click()
    saved = wait(lambda: list(downloads.glob("*.mp4")))[0]
    assert saved.name == "bbb_trailer_cuts_continued.mp4" and saved.read_bytes() == (tmp_path / "out.mp4").read_bytes()
    loaded = browser.execute_script(
        "return performance.getEntriesByType('resource').map(e => e.name).filter(n => !/^(blob|data):/.test(n))"
    )
    assert loaded and all(name.startswith(page) for name in loaded), "nothing is loaded from the internet"


def test_a_file_that_is_no_video_is_told_in_one_line_and_the_page_works_on(
    browser: Any, page: str, tmp_path: Path
) -> None:
    open_page(browser, page)
    (tmp_path / "notes.mp4").write_text("not a video")
    find(browser, "#file input[type=file]")[0].send_keys(str(tmp_path / "notes.mp4"))
    wait(lambda: "notes" in find(browser, "#file")[0].text)
    press(browser)
    message = wait(lambda: [part.text for part in find(browser, ".toast-message-text") if part.text])
    assert len(message) == 1 and message[0].startswith("notes.mp4: not a readable video") and "\n" not in message[0]
    assert not find(browser, "#video video")
    open_page(browser, page)
    press(browser)
    wait(lambda: [video.get_attribute("src") for video in find(browser, "#video video") if video.get_attribute("src")])
