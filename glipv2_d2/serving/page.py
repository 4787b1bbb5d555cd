"""The web page of a model, with Gradio: an image and a prompt in, a drawing, text and JSON out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from glipv2_d2.predictor import Predictor
from glipv2_d2.serving.page_content import (
    CAPTION,
    CLASSES,
    COLUMNS,
    DESCRIBE,
    HINTS,
    QUESTION,
    phrases_in_text,
    rows_of,
    run_task,
    write_result,
)
from glipv2_d2.visualization import draw_prediction

Example = tuple[str, str, str]
"""Path of an image, task and prompt."""


def make_run(predictor: Predictor, folder: Path) -> Callable[..., tuple[Any, ...]]:
    """The function behind the button."""

    def run(path: str | None, task: str, prompt: str, threshold: float) -> tuple[Any, ...]:
        if path is None:
            raise gr.Error("choose an image first")
        try:
            image, result = run_task(predictor, path, task, prompt or "", threshold)
        except (OSError, ValueError) as error:
            raise gr.Error(str(error), duration=None) from error
        drawn = draw_prediction(image, result.prediction)
        return (
            drawn,
            gr.update(value=result.text, visible=bool(result.text)),
            phrases_in_text(result.prediction),
            rows_of(result.prediction),
            write_result(folder, result),
        )

    return run


def build_page(
    predictor: Predictor,
    *,
    model: str,
    threshold: float,
    folder: Path,
    examples: Sequence[Example] = (),
) -> gr.Blocks:
    """The page of a model.

    Args:
        threshold: initial minimum score of a box.
        folder: for the JSON files to download.
        examples: under the image.
    """
    tasks = [CLASSES, CAPTION]
    heads = getattr(predictor.model, "text_tasks", None)
    tasks += [QUESTION] if heads is not None and heads.answer is not None else []
    tasks += [DESCRIBE] if heads is not None and heads.caption is not None else []
    with gr.Blocks(title=f"GLIPv2: {model}") as page:
        gr.Markdown(f"# GLIPv2\nFind anything by its name. Model: {model}")
        with gr.Row():
            with gr.Column():
                image: Any = gr.Image(type="filepath", label="Image", elem_id="image", height=360)
                # Unopened: the library's own reader runs nothing that is in a file.
                image.preprocess = lambda payload: None if payload is None else payload.path
                task = gr.Radio(tasks, value=CLASSES, label="Task", elem_id="task")
                prompt = gr.Textbox(
                    label=CLASSES, placeholder=HINTS[CLASSES], elem_id="prompt", max_length=10_000
                )
                minimum = gr.Slider(0, 1, threshold, label="Minimum score", elem_id="threshold")
                button = gr.Button("Run", variant="primary", elem_id="run")
                if examples:
                    gr.Examples([list(x) for x in examples], [image, task, prompt])
            with gr.Column():
                drawn = gr.Image(
                    label="Result", show_label=False, format="jpeg", elem_id="result", height=360
                )
                text = gr.Textbox(label="Text", visible=False, elem_id="text")
                phrases = gr.HighlightedText(label="Found", elem_id="phrases")
                table = gr.Dataframe(headers=COLUMNS, label="Boxes", elem_id="table")
                download = gr.File(label="JSON", elem_id="download")
        outputs = [drawn, text, phrases, table, download]
        inputs = [image, task, prompt, minimum]
        run = make_run(predictor, folder)
        gr.on([button.click, prompt.submit], run, inputs, outputs, api_name="run")
        task.change(
            lambda name: gr.update(label=name, placeholder=HINTS[name], visible=name != DESCRIBE),
            task,
            prompt,
            api_visibility="private",
        )
    return page
