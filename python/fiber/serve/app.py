"""The application: endpoints of the methods of a model, its health and its metrics."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

import fiber
from fiber.config_io import nearest
from fiber.messages import printable
from fiber.serve.batcher import Batcher, QueuedRequest
from fiber.serve.body import parse, read_body
from fiber.serve.errors import RequestError
from fiber.serve.metrics import Metrics
from fiber.serve.origins import LoopbackOnly
from fiber.serve.requests import REQUESTS, Request, served_methods

#: Status of a request whose client hung up, as nginx logs it; nobody receives it.
_HUNG_UP = 499
#: Start of the paths of methods.
_PREFIX = "/v1/"


@dataclass(frozen=True)
class ServeLimits:
    """Limits of a server."""

    #: Maximum size of the body of a request, in bytes.
    max_body: int = 16 << 20
    #: Maximum number of pixels of an image.
    max_pixels: int = 50_000_000
    #: Maximum memory in bytes for decoding one image; None means no limit.
    max_decode_bytes: int | None = None
    #: Maximum number of requests that are received, wait or are computed.
    max_queue: int = 64
    #: Maximum number of requests that are computed together.
    max_batch: int = 16
    #: Seconds for receiving a request, and again for its result.
    timeout_seconds: float = 60.0


class Service:
    """A model behind endpoints.

    Args:
        model: a `fiber.Model`, or one of exported graphs.
        name: name of the model in results.
        limits: limits of requests.
    """

    def __init__(self, model: Any, name: str, limits: ServeLimits | None = None) -> None:
        self.model, self.name, self.limits = model, name, limits or ServeLimits()
        self.metrics = Metrics()
        decoding = {
            "max_pixels": self.limits.max_pixels,
            "max_decode_bytes": self.limits.max_decode_bytes,
        }
        self.batcher = Batcher(model, name, decoding, self.limits.max_batch, self.metrics)
        #: Number of requests that are received, wait or are computed.
        self.open = 0
        self.metrics.watch_open(lambda: self.open)

    async def reply(self, http: HTTPRequest, kind: type[Request]) -> Response:
        """Answer a request for a method."""
        start = time.perf_counter()
        if self.open >= self.limits.max_queue:
            response = _error(
                429, f"{self.open} requests are waiting, the limit of this server; try again"
            )
        else:
            self.open += 1
            try:
                response = await self._answer(http, kind)
            except RequestError as error:
                response = _error(error.status, str(error))
            except ClientDisconnect:
                response = Response(status_code=_HUNG_UP)
            finally:
                self.open -= 1
        self.metrics.end_request(kind.method, response.status_code, time.perf_counter() - start)
        return response

    async def _answer(self, http: HTTPRequest, kind: type[Request]) -> Response:
        seconds = self.limits.timeout_seconds
        try:
            async with asyncio.timeout(seconds):
                body = await read_body(http, self.limits.max_body)
        except TimeoutError:
            message = f"the body did not arrive within {seconds:g} seconds"
            raise RequestError(408, message) from None
        parsed = await parse(http, body, kind, self.limits.max_pixels)
        del body
        job = QueuedRequest(
            parsed.request,
            parsed.request.batch_key(),
            [image.name for image in parsed.images],
            [image.data for image in parsed.images],
            parsed.pixels,
            asyncio.get_running_loop().create_future(),
        )
        self.batcher.submit(job)
        left = asyncio.create_task(_hung_up(http))
        try:
            await asyncio.wait(
                (job.result, left), timeout=seconds, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            left.cancel()
            # One that is still in the queue is dropped.
            answered = job.result.done() and not job.result.cancelled()
            job.result.cancel()
        if answered:
            return _json(200, job.result.result())
        if left.done():
            raise ClientDisconnect
        raise RequestError(503, f"no result within {seconds:g} seconds; try again later")

    def describe(self) -> dict[str, Any]:
        """Return the model, its methods with the fields of their requests, and the limits."""
        return {
            "fiber": fiber.__version__,
            "model": self.name,
            "heads": list(self.model.heads),
            "classes": list(getattr(self.model, "classes", ())),
            "methods": {
                name: {
                    "path": _PREFIX + name,
                    "images": list(REQUESTS[name].image_fields),
                    "fields": REQUESTS[name].model_json_schema(),
                }
                for name in served_methods(self.model)
            },
            "limits": vars(self.limits),
        }


def make_app(service: Service, *, loopback_only: bool = False) -> FastAPI:
    """Make the application of a service.

    Args:
        service: the model. Its requests are computed while the application runs.
        loopback_only: turn away requests of pages that are not of this machine; see
            `LoopbackOnly`.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.batcher.start()
        try:
            yield
        finally:
            await service.batcher.stop()

    # The pages of documentation of FastAPI load scripts from the web.
    app = FastAPI(
        title="fiber", version=fiber.__version__, docs_url=None, redoc_url=None, lifespan=lifespan
    )
    if loopback_only:
        app.add_middleware(LoopbackOnly)
    methods = served_methods(service.model)
    for name in methods:
        _add_method(app, service, REQUESTS[name])

    @app.get("/health/live")
    async def live() -> dict[str, str]:
        """Tell that the process answers."""
        return {"status": "ok"}

    @app.get("/health/ready")
    async def ready() -> Response:
        """Tell whether a request would be computed now."""
        if not service.batcher.is_running:
            return _error(503, "requests are not computed")
        if service.open >= service.limits.max_queue:
            return _error(503, f"{service.open} requests are waiting")
        return _json(200, {"status": "ok"})

    @app.get("/metrics")
    async def metrics() -> Response:
        """Return metrics in the text format of Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/model")
    async def model() -> Response:
        """Describe the model and its methods."""
        return _json(200, service.describe())

    @app.exception_handler(HTTPException)
    async def failed(http: HTTPRequest, error: HTTPException) -> Response:
        path = printable(http.url.path, 60)
        if error.status_code == 404:
            known = [_PREFIX + name for name in methods]
            known += ["/v1/model", "/health/live", "/health/ready", "/metrics"]
            return _error(404, f"{path} does not exist; {nearest(path, known)}")
        return _error(error.status_code, f"{http.method} {path}: {error.detail}", error.headers)

    return app


def _add_method(app: FastAPI, service: Service, kind: type[Request]) -> None:
    schema = kind.model_json_schema()
    fields = dict(schema.get("properties", {}))
    for name in kind.image_fields:
        image = {"type": "string", "format": "byte", "description": "image in base64"}
        fields[name] = {"type": "array", "items": image} if name == "images" else image
    needed = [*kind.image_fields, *schema.get("required", [])]
    body = {"schema": {"type": "object", "properties": fields, "required": needed}}
    documented = {"content": {"application/json": body, "multipart/form-data": body}}

    async def ask(http: HTTPRequest) -> Response:
        return await service.reply(http, kind)

    app.post(
        _PREFIX + kind.method,
        name=kind.method,
        description=kind.__doc__,
        openapi_extra={"requestBody": documented},
    )(ask)


async def _hung_up(http: HTTPRequest) -> None:
    """Return when the client of a request, whose body was read, has hung up."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _json(status: int, value: Any, headers: Mapping[str, str] | None = None) -> Response:
    text = json.dumps(value, ensure_ascii=False)
    return Response(
        text.encode("utf-8", "surrogatepass"),
        status,
        headers=headers,
        media_type="application/json",
    )


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    more = {"Retry-After": "1"} if status in (429, 503) else {}
    return _json(status, {"error": message}, {**(headers or {}), **more})
