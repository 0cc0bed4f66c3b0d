"""Images from URLs, by a server on this machine, which only these tests allow."""

import io
import shutil
import socket
import ssl
import subprocess
import threading
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from fiber.data import load_image
from fiber.data.storage import image_url
from fiber.data.storage.image_url import fetch_image, is_public

PIXELS = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
file = io.BytesIO()
Image.fromarray(PIXELS).save(file, "PNG")
PNG = file.getvalue()


def loopback(address):
    return address == "127.0.0.1"


fetch = partial(fetch_image, allowed=loopback)


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *parts):
        pass

    def answer(self, status, content=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self):
        self.server.asked.append((self.path, self.headers["Host"]))
        name, _, rest = self.path.lstrip("/").partition("/")
        if name == "redirect":
            self.answer(302, Location=unquote(rest).replace("!", "//"))
        elif name == "again":
            self.answer(301, Location="/again")
        elif name == "nowhere":
            self.answer(307)
        elif name == "long":
            self.answer(200, Content_Length=str(1 << 40))
        elif name == "endless":
            self.answer(200)
            while not self.server.ended.is_set():
                self.wfile.write(bytes(1 << 16))
        elif name == "cut":
            self.answer(200, PNG[:40], Content_Length=str(len(PNG)))
        elif name in ("slow", "slow_header"):
            if name == "slow":
                self.answer(200)
            else:
                self.wfile.write(b"HTTP/1.0 200 OK\r\nX: ")
            # A byte now and then, until the client has closed the connection.
            while not self.server.ended.wait(0.02):
                self.wfile.write(b"a")
                self.wfile.flush()
        elif name in ("404", "204"):
            self.answer(int(name))
        else:
            self.answer(200, PNG)


class Server(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """A client that hangs up is what some tests want."""


@contextmanager
def serving(wrap=lambda server: None):
    server = Server(("127.0.0.1", 0), Handler)
    server.asked, server.ended = [], threading.Event()
    wrap(server)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    server.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield server
    finally:
        server.ended.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def module_site():
    with serving() as server:
        yield server


@pytest.fixture
def site(module_site):
    module_site.asked.clear()
    return module_site


def test_a_picture_is_fetched(site):
    assert fetch(f"{site.url}/a b.png?q=ü&r=%20#part") == PNG
    host = f"127.0.0.1:{site.server_port}"
    assert site.asked == [("/a%20b.png?q=%C3%BC&r=%20", host)]


def test_load_image_fetches_only_if_allowed(site, monkeypatch, tmp_path):
    url = f"{site.url}/a.png"
    with pytest.raises(ValueError, match=r"127\.0\.0\.1.* is a URL.*allow_url=True"):
        load_image(url)
    with pytest.raises(ValueError, match=r"the host is at 127\.0\.0\.1; expected public"):
        load_image(url, allow_url=True)
    assert site.asked == []
    monkeypatch.setattr(image_url, "is_public", loopback)
    assert np.array_equal(load_image(url, allow_url=True), PIXELS)
    with pytest.raises(ValueError, match="expected at most 10; pass a larger max_download_bytes"):
        load_image(url, allow_url=True, max_download_bytes=10)
    # Paths are read as ever.
    (tmp_path / "a.png").write_bytes(PNG)
    assert np.array_equal(load_image(tmp_path / "a.png", allow_url=True), PIXELS)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"allow_url": "yes"}, TypeError),
        ({"max_download_bytes": 0}, ValueError),
        ({"timeout_seconds": 0}, ValueError),
        ({"timeout_seconds": float("nan")}, ValueError),
        ({"timeout_seconds": float("inf")}, ValueError),
        ({"timeout_seconds": "9"}, TypeError),
    ],
)
def test_bad_limits(options, error):
    with pytest.raises(error, match=next(iter(options))):
        load_image("a.png", **options)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/a.png",
        "file:///etc/passwd",
        "s3://bucket/a.png",
        "http:///a.png",
        "http://[::1/a.png",
        "http://example.com:99999/a.png",
        "http://user:secret@example.com/a.png",
        "http://exa mple.com/a.png",
        "http://ex\u2100ample.com/a.png",
        f"http://{'ü' * 70}.com/",
        f"http://example.com/{'a' * 5000}",
    ],
)
def test_odd_urls_are_refused_before_anything_is_resolved(url, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("resolved"))
    with pytest.raises(ValueError, match="image") as caught:
        fetch_image(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("::ffff:93.184.216.34", True),
        ("64:ff9b::93.184.216.34", True),
        ("127.0.0.1", False),
        ("127.9.9.9", False),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.0.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("192.0.2.1", False),
        ("224.0.0.1", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("::127.0.0.1", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:169.254.169.254", False),
        ("64:ff9b::127.0.0.1", False),
        ("64:ff9b:1::10.0.0.1", False),
        ("2002:7f00:1::", False),
        ("2001:0:4136:e378:8000:63bf:f5ff:fffe", False),
        ("example.com", False),
    ],
)
def test_public_addresses(address, public):
    assert is_public(address) is public


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]", "localhost"]
)
def test_every_way_to_write_this_machine_is_refused(host, monkeypatch):
    monkeypatch.setattr(socket, "create_connection", lambda *_: pytest.fail("connected"))
    with pytest.raises((ValueError, ConnectionError), match=r"expected public|cannot be resolved"):
        fetch_image(f"http://{host}:9/a.png")


def test_a_host_with_one_private_address_is_refused(site, monkeypatch):
    named(monkeypatch, {"mixed.test": ["127.0.0.1", "10.0.0.1"]})
    with pytest.raises(ValueError, match=r"mixed\.test.*at 10\.0\.0\.1;"):
        fetch(f"http://mixed.test:{site.server_port}/a.png")
    assert site.asked == []


def test_a_name_that_resolves_differently_the_second_time_does_not_help(site, monkeypatch):
    """The checked address is the one that is connected to."""
    calls = named(monkeypatch, {"rebound.test": ["127.0.0.1"]}, then=["10.0.0.1"])
    url = f"http://rebound.test:{site.server_port}/a.png"
    assert fetch(url) == PNG
    assert calls == ["rebound.test"]
    assert site.asked == [("/a.png", f"rebound.test:{site.server_port}")]


def named(monkeypatch, hosts, then=None):
    """Resolve hosts to addresses, at later calls to `then`; return the list of calls."""
    real, calls = socket.getaddrinfo, []

    def resolve(host, port, *rest, **options):
        if host not in hosts:
            return real(host, port, *rest, **options)
        addresses = then if host in calls and then else hosts[host]
        calls.append(host)
        kind = socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, ""
        return [(*kind, (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return calls


@pytest.mark.parametrize(
    "target",
    ["http:!10.0.0.1/a.png", "!192.168.1.1/a.png", "http:!169.254.169.254/latest", "http:![::1]/"],
)
def test_redirects_to_other_addresses_are_refused(target, site):
    with pytest.raises(ValueError, match="expected public addresses"):
        fetch(f"{site.url}/redirect/{target}")
    assert len(site.asked) == 1


def test_redirects(site):
    assert fetch(f"{site.url}/redirect//a.png") == PNG
    with pytest.raises(ValueError, match="expected a URL of http or https"):
        fetch(f"{site.url}/redirect/file:!/etc/passwd")
    with pytest.raises(ConnectionError, match="more than 5 redirects"):
        fetch(f"{site.url}/again")
    with pytest.raises(ConnectionError, match="without a new URL"):
        fetch(f"{site.url}/nowhere")


@pytest.mark.parametrize("path", ["long", "endless"])
def test_large_contents(path, site):
    with pytest.raises(ValueError, match=f"{path}.*expected at most 100,000"):
        fetch(f"{site.url}/{path}", max_bytes=100_000)
    assert len(fetch(f"{site.url}/a", max_bytes=len(PNG))) == len(PNG)


@pytest.mark.parametrize("path", ["slow", "slow_header"])
def test_a_server_that_sends_a_byte_now_and_then_is_left_at_the_deadline(path, site):
    with pytest.raises(TimeoutError, match=r"within 0\.4 seconds"):
        fetch(f"{site.url}/{path}", timeout_seconds=0.4)


def test_a_resolver_that_does_not_answer_is_left_at_the_deadline(monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: ended.wait() and [])
    with pytest.raises(TimeoutError, match=r"within 0\.1 seconds"):
        fetch("http://example.com/", timeout_seconds=0.1)
    ended.set()


@pytest.mark.parametrize(
    ("path", "message"), [("404", "status 404"), ("204", "status 204"), ("cut", "40 of")]
)
def test_failures_of_the_server(path, message, site):
    with pytest.raises(ConnectionError, match=rf"/{path}' cannot be fetched: .*{message}"):
        fetch(f"{site.url}/{path}")


def test_nobody_listens(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionError, match="cannot be fetched: Connection refused"):
            fetch(f"http://127.0.0.1:{free.getsockname()[1]}/a.png")
    named(monkeypatch, {"none.test": []})
    with pytest.raises(ValueError, match="at no address"):
        fetch("http://none.test/")


def test_what_is_no_image_is_named(site, monkeypatch):
    monkeypatch.setattr(image_url, "fetch_image", lambda *_, **__: b"<!doctype html>")
    with pytest.raises(ValueError, match="HTML page"):
        load_image("https://example.com/a.png", allow_url=True)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_certificates_are_checked_for_the_name_of_the_host(tmp_path, monkeypatch):
    command = "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out own.pem -days 9"
    command += " -subj /CN=own.test -addext subjectAltName=DNS:own.test"
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "own.pem", tmp_path / "key.pem")

    def wrap(server):
        server.socket = context.wrap_socket(server.socket, server_side=True)

    named(monkeypatch, {"own.test": ["127.0.0.1"], "other.test": ["127.0.0.1"]})
    with serving(wrap) as server:
        own = f"https://own.test:{server.server_port}"
        with pytest.raises(ConnectionError, match="certificate verify failed"):
            fetch(f"{own}/a.png")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "own.pem"))
        assert fetch(f"{own}/a.png") == PNG
        with pytest.raises(ConnectionError, match="certificate verify failed"):
            fetch(f"https://other.test:{server.server_port}/a.png")
        with pytest.raises(ValueError, match="redirected from https to http"):
            fetch(f"{own}/redirect/http:!own.test/a.png")
        with pytest.raises(TimeoutError, match=r"within 0\.5 seconds"):
            fetch(f"{own}/slow", timeout_seconds=0.5)
