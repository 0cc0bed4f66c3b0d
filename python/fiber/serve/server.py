"""Listen on a port, and serve a model until a signal stops it."""

from __future__ import annotations

import errno
import signal
import socket
import sys
from typing import Any, NoReturn

import uvicorn

from fiber.serve.app import ServeLimits, Service, make_app
from fiber.serve.origins import LOOPBACK

#: Seconds that open requests have after a signal.
_GRACE_SECONDS = 10


def listen(host: str, port: int) -> socket.socket:
    """Open a port.

    Args:
        host: address or name of a network interface of this machine.
        port: number of the port, or 0 for a free one.

    Raises:
        ValueError: if the port is in use or not allowed, or the host is none of this machine.
    """
    if not 0 <= port <= 65_535:
        raise ValueError(f"--port {port}: expected 0 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        opened = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ValueError(f"--host {host}: {error.strerror or error}") from error
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        # At once: two processes may bind a port, but only one may listen.
        opened.listen(128)
    except OSError as error:
        opened.close()
        if error.errno == errno.EADDRINUSE:
            raise ValueError(
                f"--port {port} of {host} is in use by another program; pass another one, or 0 for"
                " a free one"
            ) from error
        raise ValueError(f"--host {host} --port {port}: {error.strerror}") from error
    return opened


def address_of(opened: socket.socket) -> str:
    """Return the URL of an open port."""
    host, port = opened.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def make_server(app: Any, limits: ServeLimits) -> uvicorn.Server:
    """Make the HTTP server of an application. `run(sockets=[listen(...)])` runs it."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        # Connections beyond those in the queue, such as of clients that send nothing.
        limit_concurrency=4 * limits.max_queue + 64,
        timeout_graceful_shutdown=_GRACE_SECONDS,
        server_header=False,
    )
    return uvicorn.Server(config)


def run_until_signal(app: Any, opened: socket.socket, limits: ServeLimits) -> None:
    """Run an application on an open port until SIGINT or SIGTERM; the main thread calls this.

    Raises:
        KeyboardInterrupt: after SIGINT.
        SystemExit: after SIGTERM, with code 0.
    """

    def end(*_: object) -> NoReturn:
        raise SystemExit(0)

    # uvicorn raises the signal that stopped it again, which would end the process at once.
    before = signal.signal(signal.SIGTERM, end)
    try:
        make_server(app, limits).run(sockets=[opened])
    finally:
        signal.signal(signal.SIGTERM, before)


def serve(model: Any, name: str, opened: socket.socket, host: str, limits: ServeLimits) -> None:
    """Serve a model on an open port until SIGINT or SIGTERM, then finish the open requests.

    Args:
        model: a `fiber.Model`, or one of exported graphs.
        name: name of the model in results.
        opened: port that `listen` opened.
        host: the host that it was opened for. On the loopback, pages of the web are turned away.
        limits: limits of requests.
    """
    app = make_app(Service(model, name, limits), loopback_only=host in LOOPBACK)
    print(f"fiber: serving {name} at {address_of(opened)}", file=sys.stderr, flush=True)
    run_until_signal(app, opened, limits)
