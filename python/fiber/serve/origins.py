"""Turn away pages of the web that send requests to a server on the loopback."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from fiber.messages import shown

#: Hosts that only programs of the same machine reach.
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class LoopbackOnly:
    """ASGI middleware for a server on the loopback.

    A web page can send requests to a server on the machine of its reader, and read the replies if
    its own name leads to 127.0.0.1. Such requests have the name of the page in `Host` or `Origin`.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, or reply with status 403."""
        if scope["type"] in ("http", "websocket"):
            headers = Headers(scope=scope)
            host, origin = headers.get("host", ""), headers.get("origin")
            given = {"Host": f"//{host}"} | ({} if origin is None else {"Origin": origin})
            for name, url in given.items():
                if _host_of(url) not in LOOPBACK:
                    message = (
                        f"{name} {shown(headers[name.lower()])} is not this machine; the server"
                        " answers pages and programs of this machine only, unless --host names"
                        " another address"
                    )
                    await JSONResponse({"error": message}, 403)(scope, receive, send)
                    return
        await self.app(scope, receive, send)


def _host_of(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None
