"""The page, and the application that serves it on this machine only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from fiber.messages import shown
from fiber.serve.app import ServeLimits
from fiber.serve.origins import LoopbackOnly
from fiber.serve.requests import served_methods
from fiber.web.examples import PageExamples
from fiber.web.library import gr
from fiber.web.tabs import add_tab

#: Maximum size of a JSON message of the page, which has texts and the paths of uploads.
_MAX_MESSAGE = 1 << 20


def make_page(model: Any, name: str, limits: ServeLimits, *, is_packaged: bool = False) -> Any:
    """Make the page of a model, with a tab for each method that it has a head for.

    Args:
        model: a `fiber.Model`, or one of exported graphs.
        name: name of the model in results.
        limits: limits of images and of the queue.
        is_packaged: whether it is the model in the package, whose examples are generated.
    """
    examples = PageExamples(model, is_packaged=is_packaged)
    with gr.Blocks(title=f"fiber: {name}", analytics_enabled=False) as page:
        gr.Markdown(f"# fiber\nModel: `{name}`")
        if is_packaged:
            gr.Markdown("This model knows only drawings of colored shapes.")
        with gr.Tabs():
            for method in served_methods(model):
                add_tab(model, name, method, limits, examples)
    # Gradio has copied the images of the examples.
    examples.close()
    page.queue(max_size=limits.max_queue, default_concurrency_limit=1)
    return page


def make_web_app(
    page: Any, limits: ServeLimits, folder: Path, *, loopback_only: bool = False
) -> Any:
    """Make the ASGI application of a page.

    Args:
        page: what `make_page` made.
        limits: limits of uploads.
        folder: folder of uploads and results, from `upload_folder`.
        loopback_only: turn away requests of pages that are not of this machine; see
            `LoopbackOnly`.
    """
    app = gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        page,
        path="/",
        footer_links=[],
        run_history=False,
        max_file_size=limits.max_body,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        # Fonts of the system, since others would be fetched.
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
    )
    guarded: Any = _OnlyUploads(app, limits.max_body, folder)
    return LoopbackOnly(guarded) if loopback_only else guarded


class _OnlyUploads:
    """ASGI middleware that limits bodies, and refuses files that are no uploads.

    Gradio downloads a file whose path in a message is a URL, and reads any in the folder for
    temporary files of this machine.
    """

    def __init__(self, app: Any, max_body: int, folder: Path) -> None:
        self.app, self.max_body, self.folder = app, max_body, folder

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, or reply with status 403, 413 or 422."""
        asked = scope["path"].partition("/file=")[2] if scope["type"] == "http" else ""
        if asked and not _is_inside(asked, self.folder):
            error = f"{shown(asked)} is no uploaded file or result"
            await JSONResponse({"error": error}, 403)(scope, receive, send)
            return
        if scope["type"] != "http" or scope["method"] not in ("POST", "PUT", "PATCH"):
            await self.app(scope, receive, send)
            return
        is_upload = Headers(scope=scope).get("content-type", "").startswith("multipart/")
        # Several files may be uploaded at once.
        limit = 4 * self.max_body if is_upload else _MAX_MESSAGE
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > limit:
                error = f"the request has more than {limit:,} bytes, the limit of this server"
                await JSONResponse({"error": error}, 413)(scope, receive, send)
                return
        if not is_upload and (path := _foreign_path(bytes(body), self.folder)) is not None:
            error = f"{shown(path)} is no uploaded file; URLs are not fetched"
            await JSONResponse({"error": error}, 422)(scope, receive, send)
            return
        parts = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> Any:
            return parts.pop() if parts else await receive()

        await self.app(scope, replay, send)


def _is_inside(path: object, folder: Path) -> bool:
    """Check whether a path is that of a file in a folder, or in one of its folders."""
    if not isinstance(path, str):
        return False
    try:
        return folder.resolve() in Path(path).resolve().parents
    # Too long for a name, or with a null character.
    except (OSError, ValueError):
        return False


def _foreign_path(body: bytes, folder: Path) -> object | None:
    """Return the first path in a JSON message that is not in a folder, or None."""
    try:
        values = [json.loads(body)] if body.strip() else []
    # A body that is no JSON is an error of the application.
    except (ValueError, RecursionError):
        return None
    while values:
        value = values.pop()
        if isinstance(value, dict):
            path = value.get("path")
            if path is not None and not _is_inside(path, folder):
                return path
            values += value.values()
        elif isinstance(value, list):
            values += value
    return None
