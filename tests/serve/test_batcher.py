"""Batches of requests, the queue, and clients that hang up."""

import asyncio
import base64
import io

import httpx
import pytest
from PIL import Image, ImageDraw

from fiber.serve.app import ServeLimits, Service, make_app


def picture(number: int) -> bytes:
    image = Image.new("RGB", (80 + 8 * (number % 3), 64), (200, 190, 20 * number))
    ImageDraw.Draw(image).ellipse((5 + number, 10, 40, 50), fill=(220, 40, 9 * number))
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


class Server:
    """A server whose requests wait until `start`, so that batches are always the same."""

    def __init__(self, model, **limits):
        self.service = Service(model, "model", ServeLimits(**limits))
        self.sizes: list[tuple[str, int]] = []
        self.service.metrics.start_batch = lambda *batch: self.sizes.append(batch)
        transport = httpx.ASGITransport(make_app(self.service))
        self.client = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")

    def post(self, method: str, number: int = 0, **fields) -> asyncio.Task[httpx.Response]:
        files = {"image": (f"{number}.png", picture(number))}
        return asyncio.create_task(self.client.post(f"/v1/{method}", data=fields, files=files))

    async def waiting(self, count: int) -> None:
        """Wait until requests are in the queue."""
        while len(self.service.batcher._queue) < count:
            await asyncio.sleep(0.001)

    def start(self) -> None:
        self.service.batcher.start()

    async def __aenter__(self):
        return self

    async def __aexit__(self, *error):
        await self.client.aclose()
        await self.service.batcher.stop()


def test_requests_that_wait_are_computed_together(both_stages):
    asked = [("ground", {"phrases": f"a red circle; shape {number}"}) for number in range(6)]
    asked += [("answer", {"question": f"what is {number}?"}) for number in range(5)]
    asked += [
        ("ground", {"caption": "a star on a ring", "phrases": "a star"}),
        ("ground", {"phrases": "<s>"}),
    ]
    asked += [("match", {"text": "a star"}), ("match", {"text": "a star"})]

    async def ask(together: bool) -> tuple[list[httpx.Response], list[tuple[str, int]]]:
        async with Server(both_stages, max_batch=4) as server:
            replies = []
            if not together:
                server.start()
            for number, (method, fields) in enumerate(asked):
                replies.append(server.post(method, number, **fields))
                await (server.waiting(number + 1) if together else replies[-1])
            if together:
                server.start()
            return await asyncio.gather(*replies), server.sizes

    replies, sizes = asyncio.run(ask(True))
    # Each batch starts with the first request that waits. Of the second one, "<s>" is at fault.
    expected = "ground 4, ground 3, answer 4, answer 1, ground 1, match 2"
    assert ", ".join(f"{method} {size}" for method, size in sizes) == expected
    single, sizes = asyncio.run(ask(False))
    assert {size for _, size in sizes} == {1}
    for (method, fields), one, other in zip(asked, replies, single, strict=True):
        bad = fields.get("phrases") == "<s>"
        assert one.status_code == other.status_code == (422 if bad else 200)
        assert close(one.json(), other.json()), (method, one.json(), other.json())


def close(one, other) -> bool:
    """Compare JSON values; numbers that are rounded may differ by one in the last place."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(close, one, other))
    if isinstance(one, float):
        return one == pytest.approx(other, abs=0.0101 if abs(one) > 1 else 0.00011)
    return one == other


def test_the_queue_is_limited(both_stages):
    async def run() -> None:
        async with Server(both_stages, max_queue=2) as server:
            first = [server.post("answer", question="what?") for _ in range(2)]
            await server.waiting(2)
            assert (await server.client.get("/health/ready")).status_code == 503
            refused = await server.post("answer", question="what?")
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
            server.start()
            assert [reply.status_code for reply in await asyncio.gather(*first)] == [200, 200]
            assert (await server.post("answer", question="what?")).status_code == 200

    asyncio.run(run())


def test_a_request_without_a_result_ends(both_stages):
    async def run() -> None:
        async with Server(both_stages, timeout_seconds=0.05) as server:
            late = await server.post("answer", question="what?")
            assert (late.status_code, "0.05 seconds" in late.text) == (503, True)
            assert server.service.open == 0
            # It is no longer in the queue.
            server.service.limits = ServeLimits()
            other = server.post("answer", question="what?")
            await server.waiting(2)
            server.start()
            assert (await other).status_code == 200
            assert server.sizes == [("answer", 1)]

    asyncio.run(run())


def raw_request(service: Service, parts: list[bytes], after: asyncio.Future) -> asyncio.Task:
    """Send parts of a body, and then what `after` returns, to the application itself."""
    sent: list[dict] = []
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    messages[-1]["more_body"] = parts[-1] == b"more"

    async def receive() -> dict:
        return messages.pop(0) if messages else await after

    async def send(message: dict) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": "/v1/answer",
        "raw_path": b"/v1/answer",
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "headers": [(b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }

    async def run() -> list[dict]:
        await make_app(service)(scope, receive, send)
        return sent

    return asyncio.create_task(run())


def test_a_client_that_hangs_up_is_dropped_from_the_queue(both_stages):
    image = base64.b64encode(picture(1))
    body = b'{"question": "what?", "image": "' + image + b'"}'

    async def run() -> None:
        async with Server(both_stages) as server:
            for parts in ([body], [body[:100], b"more"]):
                after = asyncio.get_running_loop().create_future()
                task = raw_request(server.service, parts, after)
                if parts == [body]:
                    await server.waiting(1)
                after.set_result({"type": "http.disconnect"})
                assert (await task)[0]["status"] == 499
                assert server.service.open == 0
            stays = server.post("answer", question="what?")
            await server.waiting(1)
            server.start()
            assert (await stays).status_code == 200
            assert server.sizes == [("answer", 1)]

    asyncio.run(run())


def test_a_body_that_does_not_arrive_ends(both_stages):
    async def run() -> None:
        async with Server(both_stages, timeout_seconds=0.05) as server:
            after = asyncio.get_running_loop().create_future()
            reply = await raw_request(server.service, [b"{", b"more"], after)
            assert reply[0]["status"] == 408

    asyncio.run(run())
