"""Serve the page of a model until a signal ends it."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

from fiber.checkpoints.stages import PACKAGED
from fiber.serve.app import ServeLimits
from fiber.serve.origins import LOOPBACK
from fiber.serve.server import address_of, run_until_signal
from fiber.web.page import make_page, make_web_app
from fiber.web.uploads import deleting_old, upload_folder


def show_page(model: Any, name: str, opened: socket.socket, host: str, limits: ServeLimits) -> None:
    """Serve the page of a model on an open port until SIGINT or SIGTERM.

    Args:
        model: a `fiber.Model`, or one of exported graphs.
        name: name of the model in results.
        opened: port that `fiber.serve.server.listen` opened.
        host: the host that it was opened for. On the loopback, pages of the web are turned away.
        limits: limits of uploads, images and the queue.
    """
    with upload_folder() as folder:
        # A folder of that name would have been loaded in its place.
        is_packaged = name.partition("/")[0] in PACKAGED and not Path(name).exists()
        page = make_page(model, name, limits, is_packaged=is_packaged)
        app = make_web_app(page, limits, folder, loopback_only=host in LOOPBACK)
        print(f"fiber: the page of {name} is at {address_of(opened)}", file=sys.stderr, flush=True)
        with deleting_old(folder):
            run_until_signal(app, opened, limits)
