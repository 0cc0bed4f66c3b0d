"""Tabs of the page: inputs and outputs of each method."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from fiber.data import load_image
from fiber.serve.app import ServeLimits
from fiber.serve.body import check_fields
from fiber.serve.errors import as_request_error, one_line
from fiber.serve.requests import MAX_SEARCHED, REQUESTS, Asked, Request
from fiber.web.examples import Examples

log = logging.getLogger("fiber")

#: Default minimum score of the boxes of phrases and of classes.
_GROUND_THRESHOLD, _DETECT_THRESHOLD = 0.0, 0.3


@dataclass(frozen=True)
class _Tab:
    """What the tab of a method shows."""

    title: str
    #: Make the output for people from the result, the names of the images and the images.
    show: Callable[[Any, Sequence[np.ndarray]], Any]
    #: Label of the text, and an example of it; no text if empty.
    text: str = ""
    placeholder: str = ""
    #: Field of the request that the text is.
    field: str = ""
    #: Kind of the output: image, text or gallery.
    output: str = "text"
    #: Default of the slider of the minimum score; none if None.
    threshold: float | None = None


def _drawn(result: Any, images: Sequence[np.ndarray]) -> Any:
    return result.draw()


def _hits(result: Any, images: Sequence[np.ndarray]) -> list[tuple[np.ndarray, str]]:
    return [
        (load_image(images[hit.index]), f"{rank}. {hit.score:.3f}")
        for rank, hit in enumerate(result, start=1)
    ]


def _answers(result: Any, images: Sequence[np.ndarray]) -> str:
    return "\n".join(f"{score:.2f}  {answer}" for answer, score in result)


def _entailment(result: Any, images: Sequence[np.ndarray]) -> str:
    scores = {name: score for name, score in result._asdict().items() if name != "label"}
    return "\n".join([result.label, *(f"{score:.2f}  {name}" for name, score in scores.items())])


_PHRASES = "Phrases, separated by semicolons"
_TABS = {
    "ground": _Tab(
        *("Ground", _drawn, _PHRASES, "a red circle; the square", "phrases", "image"),
        threshold=_GROUND_THRESHOLD,
    ),
    "detect": _Tab(
        *("Detect", _drawn, "Classes, separated by semicolons", "circle; square", "classes"),
        output="image",
        threshold=_DETECT_THRESHOLD,
    ),
    "segment": _Tab("Segment", _drawn, _PHRASES, "the left zebra; the grass", "phrases", "image"),
    "answer": _Tab("Ask", _answers, "Question", "what color is the square?", "question"),
    "caption": _Tab("Caption", lambda result, images: result),
    "match": _Tab(
        *("Match", lambda result, images: f"{result:.2f}", "Text", "a red circle", "text"),
    ),
    "search": _Tab("Search", _hits, "Text", "a red circle", "text", "gallery"),
    "reason": _Tab(
        *("Reason", lambda result, images: str(result).lower(), "Statement about both images"),
        *("both show a circle", "statement"),
    ),
    "entail": _Tab("Entail", _entailment, "Hypothesis", "two dogs are playing", "hypothesis"),
}


def add_tab(model: Any, name: str, method: str, limits: ServeLimits, examples: Examples) -> None:
    """Add the tab of a method to the page that is being built.

    Args:
        model: a `fiber.Model`, or one of exported graphs.
        name: name of the model in results.
        method: a key of `REQUESTS`.
        limits: limits of decoding an image.
        examples: images and texts to start with.
    """
    tab, kind = _TABS[method], REQUESTS[method]
    with gr.Tab(tab.title, id=method), gr.Row():
        with gr.Column():
            inputs = [_image_input(field) for field in kind.image_fields]
            if tab.text:
                inputs.append(_text_input(tab, method, model))
            shown_in_examples = list(inputs)
            if tab.threshold is not None:
                inputs.append(gr.Slider(0, 1, tab.threshold, step=0.01, label="Minimum score"))
            button = gr.Button("Run", variant="primary", elem_id=f"run-{method}")
            found = examples.of(method)
            if found:
                rows = [[*images, *([text] if tab.text else [])] for images, text in found]
                gr.Examples(rows, shown_in_examples)
        with gr.Column():
            outputs = [_output(tab, method), gr.JSON(label="JSON", elem_id=f"json-{method}")]
    ask = _asker(model, name, kind, tab, limits)
    # One at a time, whatever the tab: the model has all cores.
    shared: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}
    events = [button.click]
    if isinstance(text := shown_in_examples[-1], gr.Textbox):
        events.append(text.submit)
    for event in events:
        event(ask, inputs, outputs, api_name=method, **shared)


def _image_input(field: str) -> Any:
    if field == "images":
        return gr.File(label="Images", file_count="multiple", file_types=["image"])
    # As a path, since the image is decoded as by the commands.
    return gr.Image(
        label=field.capitalize(), type="filepath", image_mode=None, sources=["upload", "clipboard"]
    )


def _text_input(tab: _Tab, method: str, model: Any) -> gr.Textbox:
    classes = getattr(model, "classes", ()) if method == "detect" else ()
    return gr.Textbox(
        label=tab.text, value="; ".join(classes), placeholder=tab.placeholder, max_lines=4
    )


def _output(tab: _Tab, method: str) -> Any:
    settings: dict[str, Any] = {"label": tab.title, "elem_id": f"result-{method}"}
    if tab.output == "image":
        return gr.Image(format="png", interactive=False, **settings)
    if tab.output == "gallery":
        return gr.Gallery(format="png", **settings)
    return gr.Textbox(interactive=False, lines=3, **settings)


def _asker(
    model: Any, name: str, kind: type[Request], tab: _Tab, limits: ServeLimits
) -> Callable[..., tuple[Any, Any]]:
    """Return the function from the values of a tab to its outputs."""

    def ask(*values: Any) -> tuple[Any, Any]:
        given = list(values)
        fields: dict[str, Any] = {}
        if tab.threshold is not None:
            fields["threshold"] = given.pop()
        if tab.text and (text := (given.pop() or "").strip()):
            fields[tab.field] = text
        paths = given[0] or [] if kind.image_fields == ("images",) else given
        if not paths or not all(paths):
            raise gr.Error("Upload an image first.", print_exception=False)
        try:
            return _compute(model, name, kind, fields, paths, limits, tab)
        except Exception as error:
            known = as_request_error(error) or (error if isinstance(error, OSError) else None)
            if known is None:
                log.error("%s failed", kind.method, exc_info=error)
                known = RuntimeError("internal error; the log of the server has it")
            raise gr.Error(one_line(known), print_exception=False) from None

    return ask


def _compute(
    model: Any,
    name: str,
    kind: type[Request],
    fields: dict[str, Any],
    paths: Sequence[str],
    limits: ServeLimits,
    tab: _Tab,
) -> tuple[Any, Any]:
    request = check_fields(fields, kind)
    if len(paths) > MAX_SEARCHED:
        raise ValueError(f"got {len(paths):,} images; expected at most {MAX_SEARCHED}")
    decoding: dict[str, Any] = {
        "max_pixels": limits.max_pixels,
        "max_decode_bytes": limits.max_decode_bytes,
    }
    images = [load_image(path, keep_alpha=True, **decoding) for path in paths]
    names = [Path(path).name for path in paths]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        (result,) = kind.compute(model, [Asked(request, names, images)])
    for each in caught:
        gr.Warning(one_line(each.message))
    return tab.show(result, images), request.as_json(result, names, images, name)
