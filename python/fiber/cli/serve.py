"""`fiber serve` and `fiber web`: a model over HTTP, and on a page."""

from __future__ import annotations

import argparse
import importlib.util
from typing import Any

from fiber.cli.arguments import (
    DEVICE,
    LIMITS,
    VOCABULARIES,
    add_options,
    nonnegative_int,
    path_text,
    pick,
    positive_float,
)
from fiber.cli.models import RUNTIMES, choose_model, load_graphs, load_quietly
from fiber.messages import shown_names

_SERVE = """
Answer HTTP requests with the JSON that the commands print: POST /v1/ground, /v1/answer and others,
with images as uploaded files or in base64. Requests that wait are computed in batches. GET
/v1/model, /health/live, /health/ready and /metrics describe the server. It fetches no URL and reads
no file for a client, and has no passwords: it listens on this machine only unless --host names
another address. docs/serve.md has examples.
"""
_WEB = """
Open a page to try a model in a browser, with a tab for each of its methods. The page works without
a network, and fetches no URL. It has no passwords: it listens on this machine only unless --host
names another address.
"""
#: Options of the model, as entries of `add_options`.
_MODEL = {
    "model MODEL": "model folder, checkpoint file, folder of exported graphs, name on the Hub, or"
    " scenes, the model in the package",
    "--runtime": "library that runs exported graphs: onnx (onnxruntime) or openvino (default:"
    " onnxruntime for ONNX)",
    **VOCABULARIES,
    **DEVICE,
}
_MODEL_SETTINGS: dict[str, Any] = {
    "tokenizer": {"type": path_text},
    "answers": {"type": path_text},
    "runtime": {"choices": tuple(RUNTIMES)},
}
_ADDRESS = {
    "--host HOST": "address to listen on (default: 127.0.0.1, which only this machine reaches)",
    "--port N": "port to listen on, or 0 for a free one",
}


#: Limits of both, as entries of `add_options`.
_LIMITS = {
    "--max-body SIZE": "maximum size of a request (default: 16MB)",
    "--max-pixels N": "maximum number of pixels of an image (default: 50000000)",
    "--max-decode-bytes SIZE": LIMITS["--max-decode-bytes SIZE"],
    "--max-queue N": "maximum number of requests that are received, wait or are computed; others"
    " are turned away (default: 64)",
}
_LIMIT_SETTINGS: dict[str, Any] = {
    "max_body": {"default": 16 << 20},
    "max_pixels": {"default": 50_000_000},
    "max_queue": {"default": 64},
}


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add `serve` and `web` to the table of commands."""
    serve = commands.add_parser(
        "serve", help="answer HTTP requests with a model", description=_SERVE
    )
    add_options(
        serve,
        {
            **_MODEL,
            **_ADDRESS,
            **_LIMITS,
            "--max-batch N": "maximum number of requests that are computed together (default: 16)",
            "--timeout SECONDS": "seconds until a request ends without a result (default: 60)",
        },
        host={"default": "127.0.0.1"},
        port={"type": nonnegative_int, "default": 8000},
        max_batch={"default": 16},
        timeout={"type": positive_float, "default": 60.0},
        **_MODEL_SETTINGS,
        **_LIMIT_SETTINGS,
    )
    serve.set_defaults(
        run=_serve, when_stopped="the server has ended", example="`fiber serve scenes`"
    )
    web = commands.add_parser("web", help="open a page to try a model", description=_WEB)
    add_options(
        web,
        {**_MODEL, **_ADDRESS, **_LIMITS},
        host={"default": "127.0.0.1"},
        port={"type": nonnegative_int, "default": 7860},
        **_MODEL_SETTINGS,
        **_LIMIT_SETTINGS,
    )
    web.set_defaults(run=_web, when_stopped="the page has ended", example="`fiber web scenes`")


def _serve(options: argparse.Namespace) -> int:
    _need("serve", "fastapi", "uvicorn", "python_multipart", "prometheus_client")
    from fiber.serve.app import ServeLimits
    from fiber.serve.server import listen, serve

    # First, since it takes seconds to load a model.
    opened = listen(options.host, options.port)
    given = pick(options, "max_body", "max_pixels", "max_decode_bytes", "max_queue", "max_batch")
    limits = ServeLimits(**given, timeout_seconds=options.timeout)
    decoding = pick(options, "max_pixels", "max_decode_bytes")
    name, model = _load(options, decoding)
    serve(model, name, opened, options.host, limits)
    return 0


def _web(options: argparse.Namespace) -> int:
    _need("web", "gradio", "fastapi", "uvicorn", "python_multipart", "prometheus_client")
    from fiber.serve.app import ServeLimits
    from fiber.serve.server import listen

    opened = listen(options.host, options.port)
    limits = ServeLimits(**pick(options, "max_body", "max_pixels", "max_decode_bytes", "max_queue"))
    decoding = pick(options, "max_pixels", "max_decode_bytes")
    name, model = _load(options, decoding)
    from fiber.web.server import show_page

    show_page(model, name, opened, options.host, limits)
    return 0


def _need(extra: str, *packages: str) -> None:
    """Raise ModuleNotFoundError, which names the extra, if one of its packages is missing."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"fiber {extra} needs {shown_names(missing)}: pip install 'fiber-vl[{extra}]'",
            name=missing[0],
        )


def _load(options: argparse.Namespace, limits: dict[str, Any]) -> tuple[str, Any]:
    """Return the name of the model, and the model."""
    settings = pick(options, "tokenizer", "answers", "device")
    graphs = load_graphs(options.model, options.runtime, settings, limits)
    if graphs is not None:
        return options.model, graphs
    name = choose_model(options.model)
    return name, load_quietly(name, **settings, **limits)
