"""Ports, hosts, and a server that listens."""

import base64
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from starlette.testclient import TestClient

from fiber.cli import main
from fiber.serve.app import Service, make_app
from fiber.serve.server import address_of, listen, make_server


def test_a_port_in_use_is_named(capsys):
    with listen("127.0.0.1", 0) as opened:
        port = opened.getsockname()[1]
        with pytest.raises(ValueError, match=str(port)):
            listen("127.0.0.1", port)
        assert main(["serve", "scenes", "--port", str(port)]) == 2
    assert f"--port {port} of 127.0.0.1 is in use" in capsys.readouterr().err
    listen("127.0.0.1", port).close()


@pytest.mark.parametrize(
    ("host", "port"), [("no-such-host.invalid", 0), ("192.0.2.1", 0), ("127.0.0.1", 70_000)]
)
def test_an_address_that_cannot_be_opened_is_named(host, port):
    with pytest.raises(ValueError, match=str(port) if port else host):
        listen(host, port)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "127.0.0.1:8000"}, 200),
        ({"Host": "localhost"}, 200),
        ({"Host": "[::1]:8000", "Origin": "http://localhost:3000"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Host": "localhost", "Origin": "https://evil.example"}, 403),
        ({"Host": "localhost", "Origin": "null"}, 403),
    ],
)
def test_pages_of_the_web_do_not_reach_the_loopback(both_stages, headers, status):
    client = TestClient(make_app(Service(both_stages, "model"), loopback_only=True))
    reply = client.get("/health/live", headers=headers)
    assert (reply.status_code, "error" in reply.text) == (status, status != 200)


class HeldModel:
    """A model that computes when `go` is set."""

    heads = ("itm",)

    def __init__(self):
        self.go, self.begun = threading.Event(), threading.Event()
        self.texts: list[str] = []

    def match(self, images, text):
        self.texts.append(text)
        self.begun.set()
        assert self.go.wait(100)
        return np.full(len(images), 0.5)


def test_a_client_that_hangs_up_is_not_waited_for(scene_picture):
    model = HeldModel()
    service = Service(model, "model")
    server = make_server(make_app(service, loopback_only=True), service.limits)
    opened = listen("127.0.0.1", 0)
    address = address_of(opened)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]})
    thread.start()

    def post(text: str) -> httpx.Response:
        files = {"image": ("a.jpg", scene_picture.read_bytes())}
        return httpx.post(f"{address}/v1/match", files=files, data={"text": text}, timeout=100)

    try:
        with ThreadPoolExecutor() as pool:
            first = pool.submit(post, "first")
            assert model.begun.wait(100)
            leaving = socket.create_connection(opened.getsockname())
            image = base64.b64encode(scene_picture.read_bytes())
            body = b'{"text": "left", "image": "%b"}' % image
            about = f"Content-Type: application/json\r\nContent-Length: {len(body)}"
            head = f"POST /v1/match HTTP/1.1\r\nHost: localhost\r\n{about}\r\n\r\n"
            leaving.sendall(head.encode() + body)
            while service.open < 2:
                time.sleep(0.01)
            leaving.close()
            while service.open > 1:
                time.sleep(0.01)
            last = pool.submit(post, "last")
            while service.open < 2:
                time.sleep(0.01)
            model.go.set()
            assert [first.result().json()["text"], last.result().json()["text"]] == [
                "first",
                "last",
            ]
        assert model.texts == ["first", "last"]
        assert 'status="499"} 1.0' in httpx.get(f"{address}/metrics").text
    finally:
        model.go.set()
        server.should_exit = True
        thread.join(100)
        opened.close()
    assert not thread.is_alive()
