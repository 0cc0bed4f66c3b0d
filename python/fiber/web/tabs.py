"""Tabs of the page: inputs and outputs of each method."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fiber.data import load_image
from fiber.inference.image_text import Entailment
from fiber.inference.inputs import naming
from fiber.postprocess import Detections
from fiber.postprocess.segmentation import Segmentation
from fiber.serve.app import ServeLimits
from fiber.serve.body import check_fields
from fiber.serve.errors import as_request_error, one_line
from fiber.serve.requests import MAX_SEARCHED, REQUESTS, Asked, Request
from fiber.web.examples import PageExamples
from fiber.web.library import gr

log = logging.getLogger("fiber")


@dataclass(frozen=True)
class _Text:
    """A text that a tab asks for."""

    #: Field of the request.
    field: str
    label: str
    placeholder: str


@dataclass(frozen=True)
class _Tab:
    """What the tab of a method shows."""

    title: str
    #: Lines that describe a result, as the command prints them.
    lines: Callable[[Any], list[str]]
    #: Texts to fill in, the first of which the examples have.
    texts: tuple[_Text, ...] = ()
    #: Texts that are out of sight until they are asked for. Numbers, too, since an empty number
    #: of Gradio would be 0; the request parses and checks them.
    options: tuple[_Text, ...] = ()
    #: Whether an image with the result on it is shown.
    draws: bool = False


def _boxes(found: Detections) -> list[str]:
    lines = []
    for each in found.to_dict()["detections"]:
        box = " ".join(f"{edge:7.1f}" for edge in each["box_xyxy"])
        lines.append(f"{each['score']:.2f}  {box}  {each['label']}")
    return lines or ["nothing found"]


def _segments(found: Segmentation) -> list[str]:
    return [f"{each.score:.2f}  {each.label}" for each in found.segments] or ["nothing found"]


def _entailment(found: Entailment) -> list[str]:
    scores = {name: score for name, score in found._asdict().items() if name != "label"}
    return [f"{score:.2f}  {name}" for name, score in scores.items()]


_PHRASES = _Text("phrases", "Phrases, separated by semicolons", "a red circle; the square")
_CLASSES = _Text("classes", "Classes, separated by semicolons", "circle; square")
_STUFF = _Text("stuff", "Classes without instances, such as sky", "sky")
_DEFAULT = "as of the command"
_THRESHOLD = _Text("threshold", "Minimum score, from 0 to 1", _DEFAULT)
_OF_BOXES = (
    _THRESHOLD,
    _Text("presence", "Minimum presence, from 0 to 1", _DEFAULT),
    _Text("negatives", "What is not wanted, separated by semicolons", "a blue circle"),
)
_TABS = {
    "ground": _Tab("Ground", _boxes, (_PHRASES,), _OF_BOXES, draws=True),
    "detect": _Tab("Detect", _boxes, (_CLASSES,), _OF_BOXES, draws=True),
    "segment": _Tab("Segment", _segments, (_PHRASES, _CLASSES, _STUFF), (_THRESHOLD,), draws=True),
    "answer": _Tab(
        "Ask",
        lambda found: [f"{score:.2f}  {answer}" for answer, score in found],
        (_Text("question", "Question", "what color is the square?"),),
    ),
    "caption": _Tab("Caption", lambda found: [found]),
    "match": _Tab(
        "Match",
        lambda found: [f"{found:.2f}"],
        (_Text("text", "Text", "a red circle on a square"),),
    ),
    "search": _Tab(
        "Search",
        lambda found: [f"{rank}. {hit.score:.3f}" for rank, hit in enumerate(found, start=1)],
        (_Text("text", "Text", "a red circle"),),
        draws=True,
    ),
    "reason": _Tab(
        "Reason",
        lambda found: [str(found).lower()],
        (_Text("statement", "Statement about both images", "both show a circle"),),
    ),
    "entail": _Tab(
        "Entail",
        _entailment,
        (_Text("hypothesis", "Hypothesis", "there is a red circle on a square"),),
    ),
}


def add_tab(
    model: Any, name: str, method: str, limits: ServeLimits, examples: PageExamples
) -> None:
    """Add the tab of a method to the page that is being built.

    Args:
        model: a `fiber.Model`, or one of exported graphs.
        name: name of the model in results.
        method: a key of `REQUESTS`.
        limits: limits of decoding an image.
        examples: images and texts to start with.
    """
    tab, kind = _TABS[method], REQUESTS[method]
    with gr.Tab(tab.title, id=method):
        with gr.Row():
            with gr.Column():
                images = [_image_input(field) for field in kind.image_fields]
                texts = [_text_input(text, method, model) for text in tab.texts]
                options = []
                if tab.options:
                    with gr.Accordion("Options", open=False, elem_id=f"options-{method}"):
                        options = [_text_input(text, method, model) for text in tab.options]
                button = gr.Button("Run", variant="primary", elem_id=f"run-{method}")
            with gr.Column():
                outputs = _outputs(tab, method)
        if found := examples.of(method):
            rows = [[*paths, text][: len(images) + len(texts)] for paths, text in found]
            gr.Examples(rows, [*images, *texts[:1]])
    ask = _asker(model, name, kind, tab, limits)
    inputs = [*images, *texts, *options]
    for number, event in enumerate([button.click, *(text.submit for text in texts)]):
        # One at a time, whatever the tab: the model has all cores.
        shared: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}
        event(ask, inputs, outputs, api_name=f"{method}_{number}" if number else method, **shared)


def _image_input(field: str) -> Any:
    if field == "images":
        return gr.File(label="Images", file_count="multiple", file_types=["image"])
    # As a path, since the image is decoded as by the commands.
    return gr.Image(
        label=field.capitalize(), type="filepath", image_mode=None, sources=["upload", "clipboard"]
    )


def _text_input(text: _Text, method: str, model: Any) -> Any:
    of_model = getattr(model, "classes", ()) if method == "detect" else ()
    value = "; ".join(of_model) if text is _CLASSES else ""
    return gr.Textbox(label=text.label, value=value, placeholder=text.placeholder, max_lines=4)


def _outputs(tab: _Tab, method: str) -> list[Any]:
    """Make the components of a result: an image or images if it is drawn, lines, and JSON."""
    drawn = []
    if tab.draws:
        make = gr.Gallery if method == "search" else gr.Image
        # Without the button that shares an image on the web.
        buttons = ["download", "fullscreen"]
        settings: dict[str, Any] = {"label": tab.title, "elem_id": f"drawn-{method}"}
        drawn = [make(format="png", interactive=False, buttons=buttons, **settings)]
    lines = gr.Textbox(label="Result", interactive=False, lines=2, elem_id=f"lines-{method}")
    return [*drawn, lines, gr.JSON(label="JSON", open=True, elem_id=f"json-{method}")]


def _asker(
    model: Any, name: str, kind: type[Request], tab: _Tab, limits: ServeLimits
) -> Callable[..., list[Any]]:
    """Return the function from the values of a tab to its outputs."""

    def ask(*values: Any) -> list[Any]:
        count = len(kind.image_fields)
        asked = zip((*tab.texts, *tab.options), values[count:], strict=True)
        fields = {text.field: value.strip() for text, value in asked if (value or "").strip()}
        paths = values[0] or [] if kind.image_fields == ("images",) else values[:count]
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
) -> list[Any]:
    request = check_fields(fields, kind)
    if len(paths) > MAX_SEARCHED:
        raise ValueError(f"got {len(paths):,} images; expected at most {MAX_SEARCHED}")
    decoding: dict[str, Any] = {
        "max_pixels": limits.max_pixels,
        "max_decode_bytes": limits.max_decode_bytes,
    }
    names = [Path(path).name for path in paths]
    images = []
    for path, own in zip(paths, names, strict=True):
        # The message does not name the place of the upload.
        with naming(own):
            images.append(load_image(Path(path).read_bytes(), keep_alpha=True, **decoding))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        (result,) = kind.compute(model, [Asked(request, names, images)])
    for each in caught:
        gr.Warning(one_line(each.message))
    drawn = []
    if kind.image_fields == ("images",):
        drawn = [[(load_image(images[hit.index]), names[hit.index]) for hit in result]]
    elif tab.draws:
        drawn = [result.draw()]
    value = request.as_json(result, names, images, name)
    return [*drawn, "\n".join(tab.lines(result)), value]
