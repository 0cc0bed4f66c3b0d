"""Load of `fiber serve`: python -m tests.serve_load [--clients 16] [--seconds 60].

Clients send requests at once; one in twenty is bad, and one in twenty hangs up. The answer to each
good one is compared with that of a single call of the method. Prints the throughput of all clients
beside that of one client that asks one by one, batch sizes, and memory. Exit code 1 if a request
was lost or wrong, or memory grew.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import httpx
import numpy as np

COLORS = ("red", "blue", "green", "yellow", "white", "purple")
SHAPES = ("circle", "square", "star", "ring", "triangle", "cross")
#: Growth of memory in the second half of the run that counts as a leak, in bytes.
MOST_GROWTH = 40 << 20
#: Share of requests that are bad, and of those whose client hangs up.
FAULTS = 0.05
#: Number of times that one client and all of them take turns.
ROUNDS = 4


def images(count: int) -> list[bytes]:
    """Draw pictures of a few sizes, as PNG and JPEG."""
    from PIL import Image, ImageDraw

    drawn = []
    for number in range(count):
        rng = random.Random(number)
        size = (96 + 32 * (number % 4), 96 + 32 * (number // 4 % 3))
        image = Image.new("RGB", size, tuple(rng.randrange(256) for _ in range(3)))
        pen = ImageDraw.Draw(image)
        for _ in range(3):
            x, y = rng.randrange(60), rng.randrange(60)
            color = tuple(rng.randrange(256) for _ in range(3))
            rng.choice((pen.ellipse, pen.rectangle))((x, y, x + 25, y + 25), fill=color)
        file = io.BytesIO()
        image.save(file, ("png", "jpeg")[number % 2])
        drawn.append(file.getvalue())
    return drawn


@dataclass(frozen=True)
class Question:
    """A good request."""

    method: str
    image: int
    fields: tuple[tuple[str, str], ...]


def questions(methods: list[str], count: int) -> list[Question]:
    """Return requests for some methods, with several images and texts each."""
    rng = random.Random(0)
    made = []
    for number in range(count):
        text = f"a {rng.choice(COLORS)} {rng.choice(SHAPES)}"
        fields = {
            "ground": (("phrases", text), ("phrases", f"the {rng.choice(SHAPES)}")),
            "answer": (("question", f"what color is the {rng.choice(SHAPES)}?"),),
            "match": (("text", "a red circle"),),
            "caption": (("num_beams", "1"),),
        }
        method = methods[number % len(methods)]
        made.append(Question(method, rng.randrange(24), fields[method]))
    return made


@dataclass
class Tally:
    """What happened to the requests."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, what: str, wrong: str = "") -> None:
        with self.lock:
            self.counts[what] += 1
            if wrong:
                self.wrong.append(wrong)

    def merge(self, other: Tally) -> None:
        self.counts += other.counts
        self.wrong += other.wrong


def close(one: object, other: object) -> bool:
    """Compare JSON values, where rounded numbers may differ by one in the last place."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(close(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(close, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= (0.0101 if abs(one) > 1 else 0.000101)
    return one == other


BAD: list[tuple[dict, int]] = [
    ({"json": {"image": "http://192.0.2.1/a.png", "phrases": "a"}}, 422),
    ({"json": {"image": "AAAA", "phrases": "a"}}, 422),
    ({"json": {}}, 422),
    ({"content": b"{", "headers": {"content-type": "application/json"}}, 400),
    ({"content": b"x" * 100}, 415),
    ({"files": {"image": ("a.png", b"no image")}, "data": {"phrases": "a"}}, 422),
    ({"files": {"image": ("a.png", b"0" * 3_000_000)}, "data": {"phrases": "a"}}, 413),
]


class Load:
    """Clients of a server at an address."""

    def __init__(self, address: str, pictures: list[bytes], asked: list[Question]) -> None:
        self.address, self.pictures, self.asked = address, pictures, asked
        self.expected: dict[Question, object] = {}

    def post(self, client: httpx.Client, question: Question) -> httpx.Response:
        data: dict[str, list[str]] = {}
        for name, value in question.fields:
            data.setdefault(name, []).append(value)
        files = {"image": ("a.png", self.pictures[question.image])}
        return client.post(f"{self.address}/v1/{question.method}", data=data, files=files)

    def expect(self, model: object) -> None:
        """Compute each answer by a single call in this process."""
        for question in dict.fromkeys(self.asked):
            value = [text for _, text in question.fields]
            picture, name = self.pictures[question.image], "a.png"
            about = {"image": name}
            if question.method == "ground":
                found = model.ground(picture, value)  # type: ignore[attr-defined]
                self.expected[question] = found.to_dict(image=name, model="scenes")
                continue
            if question.method == "answer":
                answers = model.answer(picture, value[0], top_k=3)  # type: ignore[attr-defined]
                scored = [{"answer": text, "score": round(score, 4)} for text, score in answers]
                about |= {"question": value[0], "answers": scored}
            elif question.method == "match":
                score = model.match(picture, value[0])  # type: ignore[attr-defined]
                about |= {"text": value[0], "score": round(score, 4)}
            else:
                about |= {"caption": model.caption(picture, num_beams=1)}  # type: ignore[attr-defined]
            self.expected[question] = about

    def is_right(self, question: Question, reply: dict) -> bool:
        expected = self.expected[question]
        assert isinstance(expected, dict)
        return close({name: reply.get(name) for name in expected}, expected)

    def hang_up(self, rng: random.Random) -> None:
        """Send a request, or half of one, and close the connection."""
        host, _, port = self.address.removeprefix("http://").partition(":")
        body = json.dumps({"image": "A" * 2000, "phrases": "a"}).encode()
        with socket.create_connection((host, int(port))) as connection:
            head = "POST /v1/ground HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json"
            request = f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
            connection.sendall(request[: rng.choice((20, 200, len(request)))])

    def run(self, seed: int, until: float, tally: Tally, faults: float) -> None:
        """Send requests one after the other until a time."""
        rng = random.Random(seed)
        with httpx.Client(timeout=100) as client:
            while time.monotonic() < until:
                draw = rng.random()
                try:
                    if draw < faults:
                        arguments, status = rng.choice(BAD)
                        reply = client.post(f"{self.address}/v1/ground", **arguments)
                        wrong = "" if reply.status_code == status else f"bad: {reply.text[:200]}"
                        tally.add("bad", wrong)
                    elif draw < 2 * faults:
                        self.hang_up(rng)
                        tally.add("hung up")
                    else:
                        question = rng.choice(self.asked)
                        reply = self.post(client, question)
                        right = reply.status_code == 200 and self.is_right(question, reply.json())
                        tally.add("good", "" if right else f"{question}: {reply.text[:300]}")
                except httpx.WriteError:
                    # The server has refused a body that is too large before all of it was sent.
                    tally.add("bad" if draw < faults else "lost")
                except httpx.HTTPError as error:
                    tally.add("lost", f"{type(error).__name__}: {error}")


def memory_of(process: int) -> int:
    """Return the resident memory of a process in bytes."""
    with open(f"/proc/{process}/status") as status:  # noqa: PTH123
        return int(re.search(r"VmRSS:\s+(\d+)", status.read())[1]) << 10  # type: ignore[index]


def run_clients(load: Load, clients: int, seconds: float, faults: float, process: int) -> tuple:
    """Run clients; return the tally, the time, and memory each second."""
    tally, start = Tally(), time.monotonic()
    threads = [
        threading.Thread(target=load.run, args=(seed, start + seconds, tally, faults))
        for seed in range(clients)
    ]
    for thread in threads:
        thread.start()
    memory = []
    while any(thread.is_alive() for thread in threads):
        memory.append(memory_of(process))
        time.sleep(1)
    return tally, time.monotonic() - start, memory


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--methods", nargs="+", default=["ground", "answer", "match", "caption"])
    options = parser.parse_args()

    import fiber

    load = Load("", images(24), questions(options.methods, 96))
    load.expect(fiber.load("scenes", device="cpu"))
    command = [sys.executable, "-m", "fiber", "serve", "scenes", "--port", "0", "--device", "cpu"]
    server = subprocess.Popen(
        [*command, "--max-body", "2MB"], stderr=subprocess.PIPE, text=True, env={**os.environ}
    )
    try:
        assert server.stderr is not None
        for line in server.stderr:
            if "serving" in line:
                load.address = line.split(" at ")[1].strip()
                break
        else:
            raise SystemExit("the server did not start")
        log: list[str] = []
        threading.Thread(target=lambda: log.extend(server.stderr or ()), daemon=True).start()
        run_clients(load, options.clients, 5, 0, server.pid)
        single, many, memory, ratios = Tally(), Tally(), [], []
        # In turns, since the speed of the machine may change.
        for _ in range(ROUNDS):
            alone, alone_seconds, _ = run_clients(
                load, 1, options.seconds / ROUNDS / 2, 0, server.pid
            )
            together, seconds, used = run_clients(
                load, options.clients, options.seconds / ROUNDS, FAULTS, server.pid
            )
            rates = [alone.counts["good"] / alone_seconds, together.counts["good"] / seconds]
            print(
                f"one client {rates[0]:6.1f}, {options.clients} clients {rates[1]:6.1f} answers/s"
            )
            ratios.append(rates[1] / rates[0])
            single.merge(alone)
            many.merge(together)
            memory += used
        metrics = httpx.get(f"{load.address}/metrics").text
    finally:
        server.terminate()
        server.wait(60)
    half = memory[len(memory) // 2 :]
    growth = int(np.median(half[-5:]) - np.median(half[:5]))
    ratio = f"{np.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    print(f"ratio, median of {ROUNDS}: {ratio}; load average {os.getloadavg()[0]:.1f}")
    print(f"requests: {dict(many.counts)}; wrong: {len(many.wrong) + len(single.wrong)}")
    for line in re.findall(r"fiber_batch_size_(?:sum|count).*|fiber_open_requests .*", metrics):
        print(f"  {line}")
    print(f"memory: {memory[0] >> 20} to {memory[-1] >> 20} MB; second half {growth >> 20:+d} MB")
    print(*(many.wrong + single.wrong)[:5], *log[-5:], sep="\n")
    failed = many.wrong or single.wrong or many.counts["lost"] or growth > MOST_GROWTH
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
