"""An HTTP server of a folder, on this machine, which fails a part of its requests."""

import random
import select
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

#: What may happen to a request: no answer, an error, an answer that is cut, shorter, of changed
#: bytes, or none until the client gives up.
FAULTS = ("drop", "error", "cut", "short", "lie", "delay")


class Site:
    """What a server has done, and what it does with the next requests."""

    def __init__(self, folder, rate, seed=0):
        self.folder, self.rate = Path(folder), rate
        self.random, self.lock = random.Random(seed), threading.Lock()
        self.faults = Counter()
        #: (name, first byte, end) of each request.
        self.requests = []
        #: Faults of the next requests of a file, before those that are drawn: {name: [fault]}.
        self.planned = {}
        self.ignores_ranges = False
        self.url = ""

    def fault(self, name, start, end):
        """Draw what happens to a request."""
        with self.lock:
            self.requests.append((name, start, end))
            if planned := self.planned.get(name):
                fault = planned.pop(0)
            elif self.random.random() < self.rate:
                fault = self.random.choice(FAULTS)
            else:
                return None
            self.faults[fault] += 1
            return fault


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        site = self.server.site
        name = self.path.lstrip("/")
        path = site.folder / name
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        start, end, status = 0, len(data), 200
        if (asked := self.headers.get("Range")) and not site.ignores_ranges:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end, status = int(first), min(int(last) + 1, len(data)), 206
        fault = site.fault(name, start, end)
        data = data[start:end]
        if fault == "drop":
            self.close_connection = True
            return
        if fault == "error":
            self.send_error(503)
            return
        if fault == "delay":
            # Readable once the client has closed it.
            select.select([self.connection], [], [], 60)
            self.close_connection = True
            return
        if fault == "short":
            data = data[: len(data) // 2]
        if fault == "lie" and data:
            data = bytes([data[0] ^ 4]) + data[1:]
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if fault == "cut":
            self.close_connection = True
            data = data[: len(data) // 2]
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """The client has gone, as after a timeout."""


@contextmanager
def served(folder, rate=0.0, seed=0):
    """Serve a folder; yield its `Site`."""
    site = Site(folder, rate, seed)
    server = Server(("127.0.0.1", 0), Handler)
    server.site = site
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
