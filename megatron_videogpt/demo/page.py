"""The page: fields, a button, and what came out; Gradio draws and serves it."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import gradio as gr

from ..config.schema_data import SCENES
from ..data.sources.files import EXTENSIONS
from ..errors import UserError
from ..sample.generate import Model
from ..sample.prompts import IMAGES
from .work import (
    GUIDANCE,
    LARGEST_MB,
    MOST_CLIPS,
    MOST_FRAMES,
    MOST_STEPS,
    TEMPERATURE,
    Request,
    continue_one,
    draws_tokens,
    most_frames,
)

MOST_WAITING = 16  # requests in the queue; the next one is turned away
CLEAN_EVERY, KEEP = 600, 3600  # seconds: how often old uploads and results are looked for, and how old they get


def build(model: Model, checkpoint: Path, folder: Path) -> gr.Blocks:
    """The page for a model.

    checkpoint: where the model came from, to show; folder: where results are written.
    """
    with gr.Blocks(title="megatron_videogpt", delete_cache=(CLEAN_EVERY, KEEP)) as page:
        outlines = "Given frames are outlined in blue, predicted ones in orange."
        gr.Markdown(
            f"# megatron_videogpt\nGive a clip or a picture, and watch what the model `{checkpoint}` expects "
            f"to follow.  {outlines}"
        )
        with gr.Row():
            with gr.Column(scale=2):
                fields = _fields(model)
                button = gr.Button("Continue", variant="primary", elem_id="continue")
            with gr.Column(scale=3):
                video = gr.Video(
                    show_label=False, autoplay=True, loop=True, interactive=False, elem_id="video", buttons=[]
                )
                text = gr.Textbox(label="Result", interactive=False, lines=2, elem_id="result")
                download = gr.DownloadButton("Download mp4", interactive=False, elem_id="download")
                sheet = gr.Image(
                    show_label=False, type="filepath", interactive=False, elem_id="sheet", buttons=["fullscreen"]
                )

        def press(*values: Any, progress: gr.Progress = gr.Progress()) -> tuple[str, str, gr.DownloadButton, str]:  # noqa: B008 (Gradio finds it by its default)
            return handle(model, folder, values, progress)

        button.click(
            press,
            fields,
            [video, text, download, sheet],
            concurrency_limit=1,
            show_progress_on=video,
            api_visibility="private",
        )
    return page.queue(max_size=MOST_WAITING)


def _fields(model: Model) -> list[Any]:
    """Inputs in the order of `Request`, the scene as kind and number."""
    sample, interval = model.config.sample, model.config.data.frame_interval[0]
    longest = most_frames(model.config)
    clip = min(sample.clips[0], longest)
    clips = max(1, min(len(sample.clips), MOST_CLIPS, MOST_FRAMES // clip))
    file = gr.File(
        label=f"Video or image, up to {LARGEST_MB} MB",
        file_types=sorted(EXTENSIONS | IMAGES),
        height=140,
        elem_id="file",
    )
    with gr.Row():
        kind = gr.Dropdown(
            list(SCENES), value=SCENES[0], label="Physics scene", info="where there is no file", elem_id="scene"
        )
        number = gr.Number(1, label="Number of the scene", info="another number, another scene", precision=0)
    with gr.Row():
        count = gr.Slider(1, MOST_CLIPS, clips, step=1, label="Clips", info="one after another", elem_id="clips")
        joined = model.codec.temporal_stride
        latent = f"latent ones, {joined} pictures each" if joined > 1 else None
        frames = gr.Slider(1, longest, clip, step=1, label="Frames per clip", info=latent, elem_id="frames")
    tokens = draws_tokens(model.config)
    with gr.Row(visible=not tokens):
        steps = gr.Slider(
            1, MOST_STEPS, min(sample.steps, MOST_STEPS), step=1, label="Steps", info="slower, finer", elem_id="steps"
        )
        guidance = gr.Slider(
            *GUIDANCE,
            min(max(sample.guidance, GUIDANCE[0]), GUIDANCE[1]),
            step=0.1,
            label="Guidance",
            info="1: off, faster",
            elem_id="guidance",
        )
    temperature = gr.Slider(
        *TEMPERATURE,
        min(sample.temperature, TEMPERATURE[1]),
        step=0.05,
        label="Temperature",
        info="0: always the likeliest",
        visible=tokens,
        elem_id="temperature",
    )
    with gr.Row():
        given = gr.Number(
            0, label="Frames given", info="from the start; 0: those before the end", min_width=100, elem_id="given"
        )
        every = gr.Number(
            interval, label="Every N-th frame", info="of the video is used", min_width=100, elem_id="interval"
        )
        seed = gr.Number(0, label="Seed", info="another one, another future", min_width=100, elem_id="seed")
    return [file, kind, number, count, frames, given, every, steps, guidance, seed, _shown(model), temperature]


def _shown(model: Model) -> Any:
    """What the video is to show; nothing to see of it for models that take neither class nor text."""
    condition = model.config.condition
    if condition.kind == "class":
        names = [("", ""), *((name, name) for name in condition.classes)]
        return gr.Dropdown(names, value="", label="Class", info="empty: what the scene says", elem_id="shown")
    return gr.Textbox("", label="Text", visible=condition.kind == "text", elem_id="shown")


def handle(
    model: Model, folder: Path, values: tuple[Any, ...], progress: Any
) -> tuple[str, str, gr.DownloadButton, str]:
    """What the button does: values of the fields -> video, text, download button, contact sheet; gr.Error, one line,
    for what cannot be done.
    """
    file, kind, number, *rest = values
    request = Request(None if file is None else Path(file), (kind, number), *rest)
    try:
        result = continue_one(model, request, folder, lambda done, text: progress(done, desc=text))
    except UserError as error:
        # Gradio shows the message as HTML, and names of files come from outside.
        raise gr.Error(html.escape(" ".join(str(error).split())), duration=None, print_exception=False) from error
    return (
        str(result.video),
        result.text,
        gr.DownloadButton(value=str(result.video), interactive=True),
        str(result.sheet),
    )


def launch(page: gr.Blocks, host: str, port: int) -> None:
    """Serve the page in the background: no link to the outside, no fonts from there."""
    fonts = ("ui-sans-serif", "system-ui", "sans-serif")
    theme = gr.themes.Default(font=fonts, font_mono=("ui-monospace", "monospace"))
    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        inbrowser=False,
        quiet=True,
        prevent_thread_lock=True,
        theme=theme,
        footer_links=[],
        enable_monitoring=False,
        ssr_mode=False,
        max_file_size=LARGEST_MB * 10**6,
    )
